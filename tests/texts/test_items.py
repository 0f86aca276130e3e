"""Items made from held-out documents, and the n-gram model that they are balanced by.

Trusted: the formula of Witten and Bell written out with dictionaries; the sum of probabilities; and what is planted in
artificial documents: each has a name of its own, once near its beginning and once near its end, among common words that
follow one another by chance. The tokenizer is trained on them; no two documents share a name.
"""

import json
from collections import Counter

import numpy as np
import pytest

from reptrace.texts import items
from reptrace.texts.corpora import Corpus, train_tokenizer
from reptrace.texts.items import REACH, cloze, continuation, distance, make, words_of
from reptrace.texts.ngrams import NgramModel

CONTEXT = 64
SYLLABLES = [first + second for first in "bdfgklmnprst" for second in "aeiou"]


def name_of(rng):
    return "".join(rng.choice(SYLLABLES, 3)).capitalize()


def documents(count, seed):
    """`seed` sets the names too: held-out documents hold names that the training text does not."""
    rng = np.random.default_rng(seed)
    common = [f"{a}{b}" for a in ("the", "an", "set", "get", "run", "put") for b in ("", "s", "ing", "ed")]
    texts = []
    for _ in range(count):
        words, name = rng.choice(common, 60).tolist(), name_of(rng)
        words[5] = words[40] = name
        texts.append(" ".join(words) + ".")
    return texts


@pytest.fixture(scope="module")
def training():
    return Corpus("made/train", documents(400, 0))


@pytest.fixture(scope="module")
def held_out():
    return Corpus("made/probe", documents(400, 1))


@pytest.fixture(scope="module")
def tokenizer(training):
    return train_tokenizer(training.documents, 420)


@pytest.fixture(scope="module")
def tokens(training, tokenizer):
    encoded = tokenizer(training.documents, add_special_tokens=False)["input_ids"]
    return np.concatenate([[*ids, tokenizer.eos_token_id] for ids in encoded]).astype(np.uint16)


@pytest.fixture(scope="module")
def ngrams(tokens, tokenizer):
    return NgramModel(tokens, len(tokenizer))


@pytest.fixture(scope="module")
def made(training, held_out, tokenizer, tokens, tmp_path_factory):
    files = make(training, held_out, tokenizer, tokens, CONTEXT, tmp_path_factory.mktemp("tasks"))
    return {name: [json.loads(line) for line in path.read_text().splitlines()] for name, path in files.items()}


def ranks(ngrams, questions, tokenizer, passage="passage"):
    """The true choice's rank under the n-grams, 0 being the best, for each item."""
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    pairs = [(encode(q[passage]), encode(f" {choice}")) for q in questions for choice in q["choices"]]
    scores = ngrams.score(pairs).reshape(-1, 4)
    return np.array([(row > row[q["answer"]]).sum() for row, q in zip(scores, questions, strict=True)])


# N-grams


def witten_bell(tokens, vocabulary, history, token):
    if history is None:
        return 1 / vocabulary
    n = len(history)
    grams = Counter(tuple(tokens[k : k + n + 1]) for k in range(len(tokens) - n))
    followers = {gram[-1]: times for gram, times in grams.items() if gram[:-1] == history}
    shorter = witten_bell(tokens, vocabulary, history[1:] if history else None, token)
    if not followers:
        return shorter
    return (followers.get(token, 0) + len(followers) * shorter) / (sum(followers.values()) + len(followers))


@pytest.mark.parametrize("order", [1, 2, 4])
def test_ngram_probabilities_are_witten_and_bells(order, rng):
    tokens = rng.integers(0, 5, 60)
    model = NgramModel(tokens, 7, order)  # two ids never occur
    windows = rng.integers(0, 7, (80, order))
    expected = [witten_bell(tokens.tolist(), 7, tuple(row[:-1]), row[-1]) for row in windows.tolist()]
    np.testing.assert_allclose(model.probability(windows), expected, rtol=1e-12)


def test_ngram_probabilities_of_all_tokens_sum_to_one_after_any_history(rng):
    model = NgramModel(rng.integers(0, 30, 500), 33, 3)
    for history in ([0, 1], [32, 31], [-1, 4], [-1, -1]):
        assert model.probability([[*history, token] for token in range(33)]).sum() == pytest.approx(1, rel=1e-12)


def test_a_score_sums_the_logarithms_over_the_continuation(rng):
    tokens = rng.integers(0, 5, 100)
    model = NgramModel(tokens, 5, 3)
    context, continuation_ids = [3, 1, 4, 1], [2, 0, 3]
    whole = [*context, *continuation_ids]
    expected = sum(np.log(witten_bell(tokens.tolist(), 5, tuple(whole[k - 2 : k]), whole[k])) for k in (4, 5, 6))
    found = model.score([(context, continuation_ids), ([], [2]), (context, [])])
    alone = np.log(witten_bell(tokens.tolist(), 5, (), 2))
    np.testing.assert_allclose(found, [expected, alone, 0], rtol=1e-12)
    assert NgramModel(tokens, 5, 3).score([]).shape == (0,)


@pytest.mark.parametrize(("tokens", "vocabulary", "order", "message"), [
    ([1, 2, 3], 2**16, 5, "an order from 1 to 3 fits a vocabulary of 65536, got 5"), ([1, 2], 9, 0, "order"),
    ([1, 2], 9, 3, "holds no 3-gram"), ([1, 9], 9, 1, "below the vocabulary of 9, got 9")])
def test_ngrams_that_cannot_be_counted_are_refused(tokens, vocabulary, order, message):
    with pytest.raises(ValueError, match=message):
        NgramModel(tokens, vocabulary, order)


# Items


@pytest.mark.parametrize("task", ["continuation", "cloze"])
def test_items_come_from_held_out_documents_one_each_and_fit_the_context(task, made, held_out, tokenizer):
    hashes = {items._hash(text): text for text in held_out.documents}
    questions = made[task]
    assert len(questions) > 100 and len({q["document"] for q in questions}) == len(questions)
    for q in questions:
        truth = q["choices"][q["answer"]]
        assert f"{q['passage']} {truth}" in hashes[q["document"]]
        lengths = {len(tokenizer(f" {choice}", add_special_tokens=False)["input_ids"]) for choice in q["choices"]}
        known = tokenizer(q["passage"], add_special_tokens=False)["input_ids"]
        assert len(set(q["choices"])) == 4 and len(lengths) == 1 and len(known) + max(lengths) <= CONTEXT


def test_the_true_word_of_a_cloze_stands_far_back_and_the_others_nowhere(made, tokenizer):
    for q in made["cloze"]:
        truth = q["choices"][q["answer"]]
        assert distance(q["passage"], truth, tokenizer) == q["distance"] >= REACH
        assert truth not in q["near"] and q["passage"].endswith(q["near"])
        assert not any(word.lower() in q["passage"].lower() for word in q["choices"] if word != truth)


def test_cloze_words_are_alike_in_capitals_and_rare(made, training):
    counts = words_of(training)
    for q in made["cloze"]:
        assert len({(word.islower(), word.isupper(), word.istitle()) for word in q["choices"]}) == 1
        assert max(counts[word] for word in q["choices"]) <= items.RARE


def test_the_place_of_the_answer_and_its_rank_among_the_ngrams_are_even(made, ngrams, tokenizer):
    questions = made["cloze"]
    found = np.bincount(ranks(ngrams, questions, tokenizer), minlength=4)
    assert found.max() - found.min() <= 1  # each rank a quarter of the items
    for task in ("continuation", "cloze"):
        places = np.bincount([q["answer"] for q in made[task]], minlength=4)
        assert (np.abs(places - places.mean()) < 4 * np.sqrt(places.mean())).all()  # four standard errors


def test_words_that_follow_by_rule_are_known_to_ngrams_in_continuation_but_not_in_cloze(tokenizer):
    """Documents in which every common word is followed by one that it decides: n-grams know those, and no name."""
    rng = np.random.default_rng(2)
    chain = ["running", "the", "gets", "puting", "set", "an", "runed", "theing", "getting", "sets", "putted", "ans"]

    def text(k):
        start = k % len(chain)
        words = [chain[(start + j) % len(chain)] for j in range(60)]
        words[5] = words[40] = name_of(rng)
        return " ".join(words) + "."

    train, held = ([text(k) for k in range(300)] for _ in range(2))
    ids = np.concatenate(tokenizer(train, add_special_tokens=False)["input_ids"])
    model = NgramModel(ids, len(tokenizer))
    first = [item.__dict__ for item in continuation(held, tokenizer, CONTEXT)]
    second = [item.__dict__ for item in cloze(held, tokenizer, CONTEXT, model, words_of(Corpus("train", train)))]
    assert (ranks(model, first, tokenizer) == 0).mean() > 0.9
    assert (ranks(model, second, tokenizer) == 0).mean() == pytest.approx(0.25, abs=1 / len(second))


def test_distance_counts_the_tokens_behind_the_last_place(tokenizer):
    passage = "Bado run the Bado get Badolo an"
    count = len(tokenizer(" get Badolo an", add_special_tokens=False)["input_ids"])
    assert distance(passage, "Bado", tokenizer) == count and distance(passage, "Lobo", tokenizer) is None


# Files


def test_files_are_made_once_and_again_for_other_inputs(training, held_out, tokenizer, tokens, tmp_path, monkeypatch):
    held_out, ids = Corpus("some", held_out.documents[:150]), tmp_path / "tokens"
    tokens.tofile(ids)
    files = make(training, held_out, tokenizer, str(ids), CONTEXT, tmp_path, count=50)
    assert files["cloze"] == files["cloze_near"] != files["continuation"]
    content = {path: path.read_bytes() for path in files.values()}
    assert all(40 < text.count(b"\n") <= 50 for path, text in content.items() if path.stem != "questions")
    assert 50 < content[files["questions"]].count(b"\n") <= 150
    monkeypatch.setattr(items, "continuation", None)
    assert make(training, held_out, tokenizer, tokens, CONTEXT, tmp_path, count=50) == files
    monkeypatch.undo()
    others = [make(training, held_out, tokenizer, tokens, **{"context": CONTEXT, "folder": tmp_path, "count": 50,
                                                             **change}) for change in ({"context": 62}, {"seed": 1})]
    others.append(make(training, held_out, tokenizer, np.roll(tokens, 7), CONTEXT, tmp_path, count=50))
    assert len({files["cloze"].parent, *(other["cloze"].parent for other in others)}) == 4
    for path in content:
        path.unlink()
    make(training, held_out, tokenizer, tokens, CONTEXT, tmp_path, count=50)
    assert all(path.read_bytes() == text for path, text in content.items())


def test_documents_are_a_list_of_texts_and_nothing_else(tokenizer):
    with pytest.raises(TypeError, match="documents must be a list of strings"):
        items.continuation("one text", tokenizer, CONTEXT)


def test_a_context_too_short_for_a_cloze_leaves_the_other_task(training, tokenizer, tokens, tmp_path):
    assert set(make(training, training, tokenizer, tokens, 2 * REACH, tmp_path)) == {"continuation", "questions"}
    assert "cloze" not in make(training, training, tokenizer, tokens, 2 * REACH, tmp_path), "the same when read again"


def test_what_yields_no_items_is_refused(training, tokenizer, tokens, tmp_path):
    short = Corpus("short", ["Too short.", "For any item."])
    with pytest.raises(ValueError, match="'short' yields no item for the task 'continuation'"):
        make(training, short, tokenizer, tokens, CONTEXT, tmp_path)

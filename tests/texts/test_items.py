"""Items made from held-out documents, and the n-gram model that they are balanced by.

Trusted: the formula of Witten and Bell written out with dictionaries; the sum of probabilities; and what is planted in
artificial documents: each has a name of its own, once near its beginning and once near its end, among common words that
follow one another by chance. The tokenizer is trained on them; no two documents share a name.
"""

import json
import re
from collections import Counter

import numpy as np
import pytest

from reptrace.texts import drafts, items
from reptrace.texts.corpora import Corpus, train_tokenizer
from reptrace.texts.drafts import hashed
from reptrace.texts.items import continuation, make, runs_of, words_of
from reptrace.texts.ngrams import NgramModel
from reptrace.texts.repeats import RARE, REACH, cloze

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


def space(task):
    """What stands between a passage and a choice."""
    return "" if task == "copy" else " "


def after(tokenizer, q, choice, between):
    """Token ids of a passage, and of a choice that follows it."""
    known, whole = tokenizer([q["passage"], f"{q['passage']}{between}{choice}"], add_special_tokens=False)["input_ids"]
    assert whole[: len(known)] == known
    return known, whole[len(known) :]


def ranks(ngrams, questions, tokenizer, between=" "):
    """The true choice's rank under the n-grams, 0 being the best, for each item."""
    pairs = [after(tokenizer, q, choice, between) for q in questions for choice in q["choices"]]
    scores = ngrams.score(pairs).reshape(-1, 4)
    return np.array([(row > row[q["answer"]]).sum() for row, q in zip(scores, questions, strict=True)])


def since(tokenizer, passage, name):
    """Tokens of a passage after the last place of a name."""
    spans = tokenizer(passage, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    end = passage.rindex(name) + len(name)
    return sum(start >= end for start, _ in spans)


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


@pytest.mark.parametrize("task", ["continuation", "cloze", "copy"])
def test_items_come_from_held_out_documents_one_each_and_fit_the_context(task, made, held_out, tokenizer):
    hashes = {hashed(text): text for text in held_out.documents}
    questions = made[task]
    assert len(questions) > 100 and len({q["document"] for q in questions}) == len(questions)
    for q in questions:
        assert f"{q['passage']}{space(task)}{q['choices'][q['answer']]}" in hashes[q["document"]]
        pairs = [after(tokenizer, q, choice, space(task)) for choice in q["choices"]]
        lengths = {len(ids) for _, ids in pairs}
        assert len(set(q["choices"])) == 4 and len(lengths) == 1 and len(pairs[0][0]) + max(lengths) <= CONTEXT


def test_the_true_word_of_a_cloze_stands_far_back_and_the_others_nowhere(made, tokenizer):
    for q in made["cloze"]:
        truth = q["choices"][q["answer"]]
        assert since(tokenizer, q["passage"], truth) == q["distance"] >= REACH
        assert truth not in q["near"] and q["passage"].endswith(q["near"])
        assert not any(word.lower() in q["passage"].lower() for word in q["choices"] if word != truth)


def test_the_identifier_of_a_copy_stands_far_back_and_goes_on_otherwise_nowhere(made, training, tokenizer):
    runs = runs_of(training)
    for q in made["copy"]:
        head, truth = re.search(r"\w+$", q["passage"]).group(), q["choices"][q["answer"]]
        assert since(tokenizer, q["passage"], head + truth) == q["distance"] >= REACH
        assert head + truth not in q["near"] and q["passage"].endswith(q["near"]) and q["near"].endswith(head)
        standing = [head + choice in q["passage"] for choice in q["choices"]]
        assert sum(standing) == 1 and standing[q["answer"]]  # who looks up what followed the head is always right
        assert runs[head + truth] <= RARE


def test_choices_are_alike_in_letters_and_rare(made, training):
    counts = words_of(runs_of(training))
    for q in made["cloze"]:
        assert len({(word.islower(), word.isupper(), word.istitle()) for word in q["choices"]}) == 1
        assert max(counts[word] for word in q["choices"]) <= RARE
    for q in made["copy"]:
        kinds = ["".join("a" if c.islower() else "A" if c.isupper() else c for c in rest) for rest in q["choices"]]
        assert len({re.sub(r"(.)\1+", r"\1", kind) for kind in kinds}) == 1


def test_a_name_with_underscores_and_digits_is_cut_behind_its_first_letters(tokenizer, ngrams):
    rng = np.random.default_rng(5)
    texts = []
    for text in documents(60, 6):
        words = text.split()
        words[5] = words[40] = f"_{name_of(rng).lower()}_{name_of(rng)}{rng.integers(10)}"
        texts.append(" ".join(words))
    found = items.copy(texts, tokenizer, 2 * CONTEXT, ngrams, Counter())
    heads = [re.search(r"\w+$", item.passage).group() for item in found]
    assert len(found) > 20
    for head, item in zip(heads, found, strict=True):
        assert re.fullmatch("_[a-z]+", head) and item.passage.count(head + item.choices[item.answer]) == 1


def test_words_are_counted_within_names_too():
    assert words_of(runs_of(Corpus("one", ["get_it2 got it, get _it"]))) == {"get": 2, "it": 3, "got": 1}


def test_the_place_of_the_answer_and_its_rank_among_the_ngrams_are_even(made, ngrams, tokenizer):
    for task in ("cloze", "copy"):
        found = np.bincount(ranks(ngrams, made[task], tokenizer, space(task)), minlength=4)
        assert found.max() - found.min() <= 1  # each rank a quarter of the items
    for task in ("continuation", "cloze", "copy"):
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
    counts = words_of(runs_of(Corpus("train", train)))
    second = [item.__dict__ for item in cloze(held, tokenizer, CONTEXT, model, counts)]
    assert (ranks(model, first, tokenizer) == 0).mean() > 0.9
    assert (ranks(model, second, tokenizer) == 0).mean() == pytest.approx(0.25, abs=1 / len(second))


def test_only_the_beginning_of_a_long_document_is_looked_at(tokenizer, monkeypatch):
    texts = documents(30, 3)
    monkeypatch.setattr(drafts, "LONGEST", 250)
    found = continuation(texts, tokenizer, CONTEXT)
    whole = {hashed(text): text for text in texts}
    assert len(found) > 20
    for item in found:
        assert whole[item.document].index(f"{item.passage} {item.choices[item.answer]}") + len(item.passage) < 250


# Files


def test_files_are_made_once_and_again_for_other_inputs(training, held_out, tokenizer, tokens, tmp_path, monkeypatch):
    held_out, ids = Corpus("some", held_out.documents[:150]), tmp_path / "tokens"
    tokens.tofile(ids)
    files = make(training, held_out, tokenizer, str(ids), CONTEXT, tmp_path, count=50)
    assert files["cloze"] == files["cloze_near"] != files["copy"] == files["copy_near"] != files["continuation"]
    content = {path: path.read_bytes() for path in files.values()}
    assert all(30 < text.count(b"\n") <= 50 for path, text in content.items() if path.stem != "questions")
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


def test_a_context_too_short_for_what_is_far_back_leaves_the_other_task(training, tokenizer, tokens, tmp_path):
    for _ in range(2):  # the same when read again
        assert set(make(training, training, tokenizer, tokens, 2 * REACH, tmp_path)) == {"continuation", "questions"}


def test_what_yields_no_items_is_refused(training, tokenizer, tokens, tmp_path):
    short = Corpus("short", ["Too short.", "For any item."])
    with pytest.raises(ValueError, match="'short' yields no item for the task 'continuation'"):
        make(training, short, tokenizer, tokens, CONTEXT, tmp_path)

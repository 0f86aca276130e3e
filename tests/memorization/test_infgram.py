"""The infinity-gram model, its index on disk, and token ids.

Trusted: a count of every occurrence in a plain loop over documents (`counted`), the definition itself, and where it is
installed the `infini-gram` package, the authors' engine. Counts are whole numbers, so all comparisons are exact; a
log-probability is a difference of two logarithms below 20, right to 1e-14.
"""

import itertools
import json
import math
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from limits import run

import reptrace.memorization.infgram
from reptrace.memorization import suffix_array
from reptrace.memorization.infgram import build_infgram, open_infgram
from reptrace.memorization.suffix_array import DamagedIndexError
from reptrace.texts.corpora import train_tokenizer
from reptrace.texts.token_ids import OtherTokenizerError, tokenizer_fingerprint

FACTS = {"corpus": "0123456789abcdef", "tokenizer": "fedcba9876543210"}
FILES = ("text.npy", "positions.npy", "links.npy", "index.json")


@pytest.fixture
def built(tmp_path):
    """A function that indexes documents (lists of ids), each time in a folder of its own."""
    numbers = itertools.count()

    def build(documents, separator=0, vocabulary=64, **facts):
        stream = np.array([token for document in documents for token in [*document, separator]], np.int64)
        return build_infgram(stream, tmp_path / str(next(numbers)), separator=separator, vocabulary=vocabulary,
                             **FACTS | facts, progress=False)

    return build


def counted(documents, context, separator=0):
    """Longest suffix of a context, its count, and the count of each next token, by looking everywhere."""
    context = list(context)
    if separator in context:
        context = context[len(context) - context[::-1].index(separator) :]
    for length in range(len(context), -1, -1):
        suffix, following = context[len(context) - length :], {}
        for document in documents:
            for start in range(len(document) + 1 - length):
                if document[start : start + length] == suffix:
                    token = [*document, separator][start + length]
                    following[token] = following.get(token, 0) + 1
        if following:
            return length, sum(following.values()), following


def random_documents(rng, tokens, alphabet):
    """Documents of 0 to 40 ids from 1 to alphabet, with stretches said again, so that long suffixes occur."""
    documents = [[]]
    while sum(map(len, documents)) < tokens:
        said = documents[rng.integers(len(documents))]
        if len(said) > 3 and rng.random() < 0.5:
            start = rng.integers(len(said))
            documents[-1] += said[start : start + rng.integers(1, 20)]
        else:
            documents[-1] += rng.integers(1, alphabet + 1, rng.integers(1, 8)).tolist()
        if rng.random() < 0.2:
            documents.append([])
    return documents


def random_contexts(rng, documents, alphabet, count, separator=0):
    """Stretches of documents, also across their ends, whole documents, random ids, mixtures of these, and nothing."""
    stream = [token for document in documents for token in [*document, separator]]
    contexts = [[], *([*document] for document in documents[:5])]
    while len(contexts) < count:
        start, length = rng.integers(len(stream)), rng.integers(0, 45)
        noise = rng.integers(1, alphabet + 1, rng.integers(0, 4)).tolist()
        contexts.append([*noise, *stream[start : start + length]] if rng.random() < 0.7 else
                        [*stream[start : start + length], *noise])
    return contexts


def assert_counts(model, documents, contexts, tokens, separator=0):
    expected = [counted(documents, context, separator) for context in contexts]
    found = model.next_token(contexts, tokens)
    assert found.length.tolist() == [length for length, _, _ in expected]
    assert found.count.tolist() == [count for _, count, _ in expected]
    assert found.token_count.tolist() == [next_.get(token, 0) for (_, _, next_), token
                                          in zip(expected, tokens, strict=True)]


# Against counting


@pytest.mark.parametrize(("alphabet", "tokens"), [(1, 30), (2, 5), (2, 200), (3, 600), (12, 300), (60, 600)])
@pytest.mark.parametrize("seed", range(4))
def test_counts_are_those_of_looking_everywhere(built, alphabet, tokens, seed):
    rng = np.random.default_rng([alphabet, tokens, seed])
    documents = random_documents(rng, tokens, alphabet)
    contexts = random_contexts(rng, documents, alphabet, 120)
    asked = rng.integers(0, alphabet + 2, len(contexts)).tolist()  # the separator and an unseen token among them
    model = built(documents)
    assert_counts(model, documents, contexts, asked)
    for context, found in zip(contexts[:40], model.distribution(contexts[:40]), strict=True):
        length, count, following = counted(documents, context)
        assert (found.length, found.count, found.exact) == (length, count, True)
        assert dict(zip(found.tokens.tolist(), found.token_counts.tolist(), strict=True)) == following
        assert found.tokens.tolist() == sorted(following)


@pytest.mark.parametrize("narrow", [0, 1, 3, 10_000])
@pytest.mark.parametrize("window", [1, 4, 32])
def test_no_count_depends_on_how_it_is_searched(built, monkeypatch, narrow, window):
    rng = np.random.default_rng(narrow + window)
    documents = random_documents(rng, 400, 4)
    contexts = random_contexts(rng, documents, 4, 100)
    monkeypatch.setattr(reptrace.memorization.infgram, "NARROW", narrow)
    monkeypatch.setattr(reptrace.memorization.infgram, "WINDOW", window)
    assert_counts(built(documents), documents, contexts, rng.integers(0, 6, len(contexts)).tolist())


@pytest.mark.parametrize("times", [1, 3, 60])  # few places and many
def test_a_context_of_hundreds_of_tokens_that_was_said_before_is_found_whole(built, times):
    rng = np.random.default_rng(0)
    passage = rng.integers(1, 60, 300).tolist()
    model = built([[7, *passage, 9]] * times)
    found = model.next_token([passage, [8, *passage], [7, *passage], passage[:-1], [7, *passage, 9], [*passage, 8]],
                             [9, 9, 9, passage[-1], 0, 9])
    assert found.length.tolist()[:5] == [300, 300, 301, 299, 302]
    assert found.count.tolist()[:5] == [times] * 5 and found.token_count.tolist()[:5] == [times] * 5
    assert found.length[5] <= 1  # "8" may stand in the passage


@pytest.mark.parametrize(("separator", "vocabulary"), [(65535, 65536), (0, 65536), (40_000, 65536), (2, 65536),
                                                       (100_257, 100_278), (65_536, 65_537)])
def test_every_id_of_a_vocabulary_may_be_text_or_separator(built, separator, vocabulary):
    rng = np.random.default_rng(separator)
    ids = sorted({0, 1, 2, 255, 256, 257, 32_767, 32_768, 65_280, 65_533, 65_534, 65_535, vocabulary - 1} - {separator})
    ids = [token for token in ids if token < vocabulary]
    documents = [[ids[k - 1] for k in document] for document in random_documents(rng, 400, len(ids))]
    stream = [[ids[k - 1] for k in context] for context in
              random_contexts(rng, [list(range(1, len(ids) + 1))], len(ids), 50, separator=1)]
    contexts = [*stream, *random_contexts(rng, documents, 1, 60, separator)]
    asked = rng.choice([*ids, separator], len(contexts)).tolist()
    assert_counts(built(documents, separator, vocabulary), documents, contexts, asked, separator)


# Edges


DOCUMENTS = [[5, 6, 7], [5, 6], [], [4, 9, 5, 6, 8], [7, 5]]  # 12 tokens, 5 ends


@pytest.mark.parametrize(("context", "token", "expected"), [
    ([], 5, (0, 17, 4)),  # the empty context: all tokens and ends of documents
    ([], 0, (0, 17, 5)),  # an end after anything: one a document
    ([], 3, (0, 17, 0)),  # an unseen token
    ([3], 5, (0, 17, 4)),  # an unseen context backs off to the empty one
    ([5, 6, 3], 5, (0, 17, 4)),  # unseen at its end: nothing before it helps
    ([3, 5, 6], 7, (2, 3, 1)),  # unseen before its end
    ([4, 9, 5, 6], 8, (4, 1, 1)),  # the whole context was seen
    ([9, 4, 9, 5, 6], 8, (4, 1, 1)),  # longer than any document
    ([5, 6], 0, (2, 3, 1)),  # one of three times the document ends here
    ([7, 5], 6, (2, 1, 0)),  # the corpus ends here: it counts, and nothing follows but the end
    ([7, 5], 0, (2, 1, 1)),
    ([5, 6, 7], 5, (3, 1, 0)),  # a document ends here, though the next one begins with the token asked for
    ([7, 5, 6], 7, (2, 3, 1)),  # "7 | 5 6" across two documents is no occurrence
    ([5, 6, 7, 0, 5, 6], 7, (2, 3, 1)),  # nor with the separator written out
    ([5, 6, 7, 0], 5, (0, 17, 4)),  # behind an end stands the empty context
    ([0], 0, (0, 17, 5)),
])
def test_edges_of_documents_and_of_the_corpus(built, context, token, expected):
    length, count, token_count = expected
    model = built(DOCUMENTS)
    found = model.next_token([context], [token])
    assert (found.length.tolist(), found.count.tolist(), found.token_count.tolist()) == ([length], [count],
                                                                                         [token_count])
    probability = token_count / count
    assert found.log_probability[0] == pytest.approx(math.log(probability) if probability else -math.inf, abs=1e-14)
    assert counted(DOCUMENTS, context)[:2] == (length, count)
    lengths, counts = model.longest_suffix([context])
    assert (lengths.tolist(), counts.tolist()) == ([length], [count])


def test_a_corpus_of_one_token_and_one_of_none_but_separators(built):
    found = built([[3]]).next_token([[], [3], [3, 3], [4]], [3, 0, 3, 0])
    assert found.token_count.tolist() == [1, 1, 0, 1] and found.count.tolist() == [2, 1, 1, 2]
    found = built([[], []]).next_token([[], [4]], [0, 4])
    assert found.token_count.tolist() == [2, 0] and found.count.tolist() == [2, 2]


def test_the_last_separator_may_be_missing(tmp_path):
    stream = [5, 6, 0, 5, 7]
    models = [build_infgram(stream[:] + end, tmp_path / str(len(end)), separator=0, vocabulary=8, **FACTS,
                            progress=False) for end in ([], [0])]
    assert models[0].size == models[1].size == 6
    for model in models:
        assert model.next_token([[5, 7], [7]], [0, 5]).token_count.tolist() == [1, 0]


# Batches and input


def test_batches_of_one_and_of_thousands_agree_whatever_form_they_come_in(built, monkeypatch):
    rng = np.random.default_rng(5)
    documents = random_documents(rng, 2000, 9)
    stream = np.array([token for document in documents for token in document])
    contexts = stream[rng.integers(0, len(stream) - 20, 3000)[:, None] + np.arange(20)]
    tokens = rng.integers(0, 10, 3000)
    model = built(documents)
    whole = np.array(list(vars(model.next_token(contexts, tokens)).values()))
    assert whole[:, :40].T.tolist() == [
        [length, count, following.get(token, 0)] for (length, count, following), token
        in zip((counted(documents, row.tolist()) for row in contexts[:40]), tokens[:40].tolist(), strict=True)]
    ones = [list(vars(model.next_token(contexts[k : k + 1], tokens[k : k + 1])).values()) for k in range(50)]
    assert np.array_equal(np.concatenate(ones, axis=1), whole[:, :50])
    monkeypatch.setattr(reptrace.memorization.infgram, "CHUNK", 700)
    for form in (contexts, contexts.tolist(), contexts.astype(np.uint16), list(contexts), tuple(map(tuple, contexts))):
        assert np.array_equal(list(vars(model.next_token(form, tokens.tolist())).values()), whole)
    order = rng.permutation(3000)
    assert np.array_equal(list(vars(model.next_token(contexts[order], tokens[order])).values()), whole[:, order])


def test_arguments_are_left_as_they_are(built):
    model = built(DOCUMENTS)
    contexts, tokens = np.array([[5, 6], [0, 5]]), np.array([7, 6])
    copies = contexts.copy(), tokens.copy()
    model.next_token(contexts, tokens)
    model.distribution(contexts)
    assert np.array_equal(contexts, copies[0]) and np.array_equal(tokens, copies[1])


def test_no_queries_have_no_answers(built):
    model = built(DOCUMENTS)
    assert model.next_token([], []).log_probability.shape == (0,)
    assert model.distribution([]) == [] and model.longest_suffix([])[0].shape == (0,)


@pytest.mark.parametrize(("contexts", "tokens"), [([[64]], [1]), ([[-1]], [1]), ([[1], [2, 99]], [1, 1]), ([[1]], [64]),
                                                  ([[1]], [-3]), ([[70_000]], [1]), (np.array([[1, 64]]), [1])])
def test_ids_outside_of_the_vocabulary_are_refused(built, contexts, tokens):
    with pytest.raises(OtherTokenizerError, match=r"token id -?\d+ is outside of the vocabulary of 64"):
        built(DOCUMENTS).next_token(contexts, tokens)


def test_what_is_no_token_id_is_refused(built):
    model = built(DOCUMENTS)
    with pytest.raises(TypeError, match="whole numbers"):
        model.next_token([[1]], [0.5])
    with pytest.raises(TypeError, match="whole numbers"):
        model.next_token(np.array([[0.5]]), [1])
    with pytest.raises(ValueError, match="got 2 contexts and 1 tokens"):
        model.next_token([[1], [2]], [1])


# Properties


@pytest.mark.parametrize("seed", range(5))
def test_what_must_hold_for_any_corpus_and_context(built, seed):
    rng = np.random.default_rng([7, seed])
    documents = random_documents(rng, 500, 8)
    model = built(documents)
    contexts = random_contexts(rng, documents, 8, 200)
    tokens = rng.integers(0, 9, len(contexts))
    found = model.next_token(contexts, tokens)
    # More context to the left never shortens the suffix; the count of a longer suffix is never larger
    shorter = model.next_token([context[1:] for context in contexts], tokens)
    assert (found.length >= shorter.length).all()
    longer = found.length > shorter.length
    assert longer.any() and (found.count <= shorter.count)[longer].all()
    # A suffix that is not the whole context does not care about the rest of it
    same = ~longer
    assert np.array_equal(found.token_count[same], shorter.token_count[same])
    # More text never lowers a count of the same suffix, nor shortens a suffix
    more = built([*documents, *random_documents(rng, 100, 8)]).next_token(contexts, tokens)
    assert (more.length >= found.length).all()
    equal = more.length == found.length
    assert (more.count >= found.count)[equal].all() and (more.token_count >= found.token_count)[equal].all()
    # Probabilities, the end's among them, sum to one
    for each in model.distribution(contexts[:50]):
        assert each.token_counts.sum() == each.count and (each.token_counts > 0).all()
    # The order of documents does not matter
    shuffled = built([documents[k] for k in rng.permutation(len(documents))]).next_token(contexts, tokens)
    assert np.array_equal(list(vars(shuffled).values()), list(vars(found).values()))


def test_a_frequent_suffix_has_the_same_distribution_by_tokens_as_by_places(built, monkeypatch):
    rng = np.random.default_rng(3)
    model = built([rng.integers(1, 8, 3000).tolist()], vocabulary=8)  # above 16 occurrences a token of the vocabulary
    contexts = [[], [1], [1, 2]]
    by_token = model.distribution(contexts)
    monkeypatch.setattr(model, "vocabulary", 10**9)
    for one, other in zip(by_token, model.distribution(contexts), strict=True):
        assert np.array_equal(one.tokens, other.tokens) and np.array_equal(one.token_counts, other.token_counts)


# Against the authors' engine


@pytest.fixture(scope="module")
def engine():
    """A function that indexes documents with the `infini-gram` package."""
    package = pytest.importorskip("infini_gram.engine", reason="the infini-gram package is not installed (Linux only)")
    with tempfile.TemporaryDirectory() as folder:
        numbers = itertools.count()

        def build(documents, end_of_text):
            place = Path(folder) / str(next(numbers))
            place.mkdir()
            pieces = [b"\xff\xff" + np.array(document, np.uint16).tobytes() for document in documents]
            (place / "tokenized.0").write_bytes(b"".join(pieces))
            np.cumsum([0, *map(len, pieces[:-1])]).astype(np.uint64).tofile(place / "offset.0")
            run([sys.executable, "-m", "infini_gram.indexing", "--data_dir", place, "--save_dir", place, "--cpus", "1",
                 "--mem", "1", "--ulimit", "1024"], check=True)
            return package.InfiniGramEngine(index_dir=str(place), eos_token_id=end_of_text, vocab_size=65535,
                                            max_support=10**9)

        yield build


@pytest.mark.parametrize(("alphabet", "tokens", "shift"), [(3, 300, 0), (40, 3000, 0), (29, 1000, 65_504)])
def test_counts_are_those_of_the_authors_engine(built, engine, alphabet, tokens, shift):
    rng = np.random.default_rng(alphabet)
    documents = [[token + shift for token in document] for document in random_documents(rng, tokens, alphabet)]
    # The engine's distribution is wrong for a suffix that ends both the corpus and another document (it takes all that
    # stands between two ends in its table for ends): here the corpus ends with a token that stands nowhere else.
    documents[-1] = [*documents[-1], alphabet + 1 + shift]
    contexts = [[token + shift if token else 0 for token in context] for context in
                random_contexts(rng, [[token - shift for token in document] for document in documents], alphabet, 150)]
    asked = (rng.integers(1, alphabet + 1, len(contexts)) + shift).tolist()
    ours, theirs = built(documents, vocabulary=65_535), engine(documents, 0)
    found = ours.next_token(contexts, asked)
    for row, (context, token) in enumerate(zip(contexts, asked, strict=True)):
        answer = theirs.infgram_prob(prompt_ids=context, cont_id=token)
        assert (found.length[row], found.count[row], found.token_count[row]) == (
            answer["suffix_len"], answer["prompt_cnt"], answer["cont_cnt"])
        assert math.exp(found.log_probability[row]) == pytest.approx(answer["prob"], abs=1e-14)
    for context, one in zip(contexts[:60], ours.distribution(contexts[:60]), strict=True):
        answer = theirs.infgram_ntd(prompt_ids=context)
        assert not answer["approx"] and one.length == answer["suffix_len"] and one.count == answer["prompt_cnt"]
        assert dict(zip(one.tokens.tolist(), one.token_counts.tolist(), strict=True)) == {
            token: result["cont_cnt"] for token, result in answer["result_by_token_id"].items()}


def test_ends_of_documents_and_of_the_corpus_count_as_in_the_authors_engine(built, engine):
    documents = [document for document in DOCUMENTS if document]
    ours, theirs = built(documents), engine(documents, 0)
    for context in ([], [5, 6], [5, 6, 7], [5, 6, 8], [7, 5], [7], [3], [7, 5, 6], [5, 6, 7, 0], [5, 6, 7, 0, 5]):
        (one,), answer = ours.distribution([context]), theirs.infgram_ntd(prompt_ids=context)
        assert (one.length, one.count) == (answer["suffix_len"], answer["prompt_cnt"]), context
        # An end is given under the end-of-text id there too, also the corpus's own
        assert {token: result["cont_cnt"] for token, result in answer["result_by_token_id"].items()} == dict(
            zip(one.tokens.tolist(), one.token_counts.tolist(), strict=True)), context


# The index on disk


@pytest.mark.parametrize("separator", [0, 5, 63])
def test_the_arrays_are_the_sorted_suffixes_and_where_each_goes_on(built, rng, separator):
    documents = [[token for token in document if token != separator] for document in random_documents(rng, 300, 6)]
    array = built(documents, separator).array
    text = [token for document in documents for token in [*document, separator]]
    rows = sorted(range(len(text)), key=lambda start: text[start:])
    assert array.positions.tolist() == rows
    assert array.text.tolist() == [separator] * reptrace.memorization.infgram.WINDOW + text
    following = {start: row for row, start in enumerate(rows)}
    assert array.links.tolist() == [text[start] * len(text) + following.get(start + 1, 0) for start in rows]
    assert (np.diff(array.links) >= 0).all()


def test_a_reopened_index_answers_the_same(built, tmp_path):
    model = built(DOCUMENTS)
    again = open_infgram(tmp_path / "0", tokenizer=FACTS["tokenizer"], corpus=FACTS["corpus"])
    assert again.next_token([[5, 6], []], [7, 5]).token_count.tolist() == [1, 4]
    assert (again.separator, again.vocabulary, again.size) == (model.separator, model.vocabulary, model.size)
    assert sorted(path.name for path in (tmp_path / "0").iterdir()) == sorted(FILES)


def test_an_index_is_made_once_for_the_same_facts_and_anew_for_others(built, tmp_path, monkeypatch):
    arguments = {"separator": 0, "vocabulary": 64, "progress": False}
    build_infgram([5, 6, 0], tmp_path / "i", **FACTS, **arguments)
    with monkeypatch.context() as patch:
        patch.setattr("pydivsufsort.divsufsort", lambda *_: pytest.fail("sorted again"))
        assert build_infgram([5, 6, 0], tmp_path / "i", **FACTS, **arguments).size == 3
    other = FACTS | {"corpus": "other"}
    assert build_infgram([5, 6, 7, 0], tmp_path / "i", **other, **arguments).size == 4
    assert open_infgram(tmp_path / "i", tokenizer=FACTS["tokenizer"], corpus="other").size == 4


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["cut short", "longer", "one bit", "missing", "empty"])
def test_a_damaged_index_is_detected_and_can_be_built_anew(built, tmp_path, name, damage):
    built(DOCUMENTS * 20)
    path = tmp_path / "0" / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "one bit":
        path.write_bytes(content[:-40] + bytes([content[-40] ^ 1]) + content[-39:])
    else:
        path.write_bytes({"cut short": content[:-3], "longer": content + b"\0", "empty": b""}[damage])
    with pytest.raises(DamagedIndexError, match=f"{name}.*Build it anew"):
        open_infgram(tmp_path / "0", tokenizer=FACTS["tokenizer"])
    stream = [token for document in DOCUMENTS * 20 for token in [*document, 0]]
    model = build_infgram(stream, tmp_path / "0", separator=0, vocabulary=64, **FACTS, progress=False)
    assert model.next_token([[]], [5]).token_count.tolist() == [80]


def test_an_edited_description_is_detected(built, tmp_path):
    built(DOCUMENTS)
    path = tmp_path / "0" / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"separator": 5}))
    with pytest.raises(DamagedIndexError, match=r"index\.json.*changed since it was written"):
        open_infgram(tmp_path / "0", tokenizer=FACTS["tokenizer"])


def test_an_index_of_another_format_is_refused(built, tmp_path, monkeypatch):
    built(DOCUMENTS)
    monkeypatch.setattr(suffix_array, "FORMAT", 2)
    with pytest.raises(DamagedIndexError, match="format 1, this version reads 2"):
        open_infgram(tmp_path / "0", tokenizer=FACTS["tokenizer"])


def test_without_an_index_the_error_says_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="build_infgram"):
        open_infgram(tmp_path / "none", tokenizer="x")


@pytest.mark.parametrize("moment", ["sorting", "writing", "renaming"])
def test_a_build_that_breaks_off_leaves_no_index_and_the_next_one_is_whole(built, tmp_path, monkeypatch, moment):
    target = {"sorting": "pydivsufsort.divsufsort", "writing": "numpy.save", "renaming": "os.replace"}[moment]

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(target, interrupted)
        with pytest.raises(KeyboardInterrupt):
            built(DOCUMENTS)
    assert not list(tmp_path.glob("[!.]*")) and not list(tmp_path.glob("*.partial"))
    (tmp_path / ".1.partial").mkdir()  # what a killed process would leave
    assert built(DOCUMENTS).size == 17
    assert not (tmp_path / ".1.partial").exists()


def test_an_index_never_replaces_a_folder_that_holds_other_files(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(FileExistsError, match=r"holds other files \(thesis\.tex\)"):
        build_infgram([1, 0], tmp_path / "mine", separator=0, vocabulary=4, **FACTS, progress=False)
    assert os.listdir(tmp_path / "mine") == ["thesis.tex"]


@pytest.mark.parametrize(("tokens", "options", "message"), [
    ([], {}, "no tokens"), ([1, 0], {"separator": 64}, "separator must be an id below"),
    ([1, 0], {"separator": -1}, "separator must be")])
def test_what_cannot_be_indexed_is_refused(tmp_path, tokens, options, message):
    with pytest.raises(ValueError, match=message):
        build_infgram(tokens, tmp_path / "i", **{"separator": 0, "vocabulary": 64, **FACTS, **options})
    with pytest.raises(OtherTokenizerError, match="64 is outside of the vocabulary of 64"):
        build_infgram([64], tmp_path / "i", separator=0, vocabulary=64, **FACTS)


# Tokenizers


@pytest.fixture(scope="module")
def tokenizers():
    texts = [f"value {k} of the array, given shape ({k}, {k % 7})" for k in range(200)]
    return [train_tokenizer(texts, size) for size in (300, 301)]


def test_a_tokenizers_fingerprint_is_that_of_the_ids_it_gives(tokenizers, tmp_path):
    from transformers import AutoTokenizer

    one, other = tokenizers
    known = tokenizer_fingerprint(one)
    assert known != tokenizer_fingerprint(other)
    one.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    again(["a long enough text"], truncation=True, max_length=2, padding="max_length")
    assert tokenizer_fingerprint(again) == known == tokenizer_fingerprint(known)
    again.add_tokens(["shape"])
    assert tokenizer_fingerprint(again) != known


def test_an_index_of_other_tokens_is_replaced_whatever_it_is_called(tmp_path):
    options = {"separator": 0, "vocabulary": 9, **FACTS, "progress": False}
    for tokens in ([1, 2, 0, 3, 0], [1, 2, 0, 4, 0], [1, 2, 0], [1, 2, 0, 4, 0, 5]):
        index = build_infgram(tokens, tmp_path / "i", **options)
        whole = tokens if tokens[-1] == 0 else [*tokens, 0]
        assert index.array.text[-len(whole):].tolist() == whole and index.size == len(whole)
    known = (tmp_path / "i" / "index.json").stat().st_mtime_ns
    build_infgram([1, 2, 0, 4, 0, 5, 0], tmp_path / "i", **options)  # the separator at its end may be missing
    assert (tmp_path / "i" / "index.json").stat().st_mtime_ns == known


def test_an_index_made_with_another_tokenizer_or_of_another_text_is_refused(tokenizers, tmp_path):
    one, other = tokenizers
    tokens = [*one("given shape", add_special_tokens=False)["input_ids"], one.eos_token_id]
    build_infgram(tokens, tmp_path / "i", separator=one.eos_token_id, vocabulary=len(one), corpus="text", tokenizer=one,
                  progress=False)
    assert open_infgram(tmp_path / "i", tokenizer=one).size == len(tokens)
    with pytest.raises(OtherTokenizerError, match=f"{tokenizer_fingerprint(one)}.*{tokenizer_fingerprint(other)}"):
        open_infgram(tmp_path / "i", tokenizer=other)
    with pytest.raises(ValueError, match="of text text, not of novel"):
        open_infgram(tmp_path / "i", tokenizer=one, corpus="novel")

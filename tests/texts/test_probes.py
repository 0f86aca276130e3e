"""Probes, and the first tokens of a text.

Trusted: transformers' own call on one whole document at a time, without special tokens, truncation and padding, by a
tokenizer that stores none of them. Everything is exact, so there is no tolerance.
"""

import copy
import functools
import hashlib
import itertools
import pickle
import random
import string

import pandas as pd
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizer, PreTrainedTokenizerFast, ProcessorMixin

from reptrace.texts import probes
from reptrace.texts.corpora import Corpus, Probe, train_tokenizer
from reptrace.texts.probes import TokenizingError, first_tokens, probe

WORDS = ["array", "shape", "returns", "value", "the", "of", "a", "model", "layer", "if", "given", "default", "is",
         "naïve", "café", "日本語", "🎉", "it's", "don't", "foo_bar(x,", "y=3)", ">>>", "print()", "1234567"]


def texts(count, seed=0):
    """Different documents of 1 to 120 words, with the line breaks and rulers of docstrings."""
    draw = random.Random(seed)
    return [f"Document {k}.\n\n    {'-' * draw.randint(0, 60)}\n{' '.join(draw.choices(WORDS, k=draw.randint(1, 120)))}"
            for k in range(count)]


def whole(tokenizer, text):
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(texts(300), 512)


@pytest.fixture
def corpus():
    return Corpus("here", texts(400, seed=1))


def test_a_probes_fingerprint_tells_its_sequences_apart(corpus, tokenizer):
    fingerprints = [probe(corpus, tokenizer, 50, **options).fingerprint for options in
                    ({}, {"seed": 1}, {"max_length": 64}, {"min_length": 40})]
    assert len({*fingerprints, probe(corpus, tokenizer, 49).fingerprint}) == 5
    assert probe(corpus, tokenizer, 50).fingerprint == fingerprints[0]


# Probes


@pytest.mark.parametrize(("max_length", "min_length"), [(512, 32), (64, 32), (40, 40), (16, 1)])
def test_sequences_are_documents_cut_at_the_longest_and_none_is_too_short(corpus, tokenizer, max_length, min_length):
    found = probe(corpus, tokenizer, 100, max_length, min_length)
    assert len(found.sequences) == 100 and found.tokens == sum(len(sequence) for sequence in found.sequences)
    assert {len(sequence) for sequence in found.sequences} <= set(range(min_length, max_length + 1))
    own = [tokenizer(document, add_special_tokens=False)["input_ids"][:max_length] for document in corpus.documents]
    assert {tuple(sequence) for sequence in found.sequences} <= {tuple(ids) for ids in own}
    assert len({tuple(sequence) for sequence in found.sequences}) > 90  # each document once; short cuts may coincide


def test_all_documents_that_are_long_enough_can_be_asked_for(corpus, tokenizer):
    own = [tokenizer(document, add_special_tokens=False)["input_ids"] for document in corpus.documents]
    enough = sorted(ids[:64] for ids in own if len(ids) >= 32)
    assert sorted(probe(corpus, tokenizer, len(enough), 64).sequences) == enough


def test_documents_whose_tokens_are_long_are_not_cut_short():
    rulers = ["=" * count for count in range(100, 400)]
    own = train_tokenizer(rulers, 400)
    corpus = Corpus("rulers", [ruler + " end" * 9 for ruler in rulers])
    expected = [own(document, add_special_tokens=False)["input_ids"][:8] for document in corpus.documents]
    assert max(len(own.decode(ids)) for ids in expected) > 8 * 32  # eight tokens do hold that many characters
    assert sorted(probe(corpus, own, 300, max_length=8, min_length=1).sequences) == sorted(expected)


def test_a_probe_is_the_same_in_every_call_whatever_the_order_of_the_documents(corpus, tokenizer):
    first = probe(corpus, tokenizer, 50)
    assert probe(corpus, tokenizer, 50) == first
    shuffled = Corpus("here", random.Random(3).sample(corpus.documents, 400) + corpus.documents[:50])
    assert probe(shuffled, tokenizer, 50) == first
    assert probe(corpus, tokenizer, 50, seed=1) != first


def test_a_smaller_probe_is_the_beginning_of_a_larger_one(corpus, tokenizer):
    assert probe(corpus, tokenizer, 20).sequences == probe(corpus, tokenizer, 100).sequences[:20]


def test_more_than_a_thousand_documents_are_gone_through(tokenizer):
    many = Corpus("many", texts(2500))
    assert len(probe(many, tokenizer, 2000, 64, 1).sequences) == 2000


def test_fewer_sequences_than_asked_for_is_an_error_that_says_how_many_there_are(corpus, tokenizer):
    lengths = [len(tokenizer(document, add_special_tokens=False)["input_ids"]) for document in corpus.documents]
    enough = sum(length >= 32 for length in lengths)
    assert probe(corpus, tokenizer, enough, 64)
    with pytest.raises(ValueError, match=f"{enough + 1} sequences .* 'here' has {enough} among 400 .*lower the min"):
        probe(corpus, tokenizer, enough + 1, 64)
    with pytest.raises(ValueError, match="has 0 among 400"):
        probe(corpus, tokenizer, 2, 10_000, 10_000)


@pytest.mark.parametrize("options", [{"sequences": 1}, {"sequences": 5, "min_length": 0},
                                     {"sequences": 5, "min_length": 65, "max_length": 64}])
def test_a_probe_that_cannot_be_is_refused(corpus, tokenizer, options):
    with pytest.raises(ValueError, match="sequences >= 2 and 1 <= min_length <= max_length"):
        probe(corpus, tokenizer, **options)


@pytest.mark.parametrize("name", ["sequences", "min_length", "max_length"])
def test_a_number_of_a_probe_that_is_not_whole_is_refused_by_name(corpus, tokenizer, name):
    with pytest.raises(TypeError, match=f"{name} must be a whole number, got float 40.5"):
        probe(corpus, tokenizer, **{"sequences": 5, name: 40.5})


def test_a_processor_of_pictures_and_text_is_refused_with_what_to_pass(tokenizer):
    class Processor(ProcessorMixin):
        def __init__(self):
            self.tokenizer = tokenizer

    with pytest.raises(TypeError, match=r"Processor prepares more than text: pass its tokenizer, processor\.tokenizer"):
        first_tokens(Processor(), ["one"], 4)


def test_only_what_would_help_is_advised(tokenizer):
    def told(corpus, sequences, *lengths):
        with pytest.raises(ValueError) as error:
            probe(corpus, tokenizer, sequences, *lengths)
        return str(error.value).split(": ", 1)[1]

    one = Corpus("a.txt", ["word " * 100])
    blank_lines = "in a plain text file blank lines separate the documents; with one a line, pass .jsonl"
    assert told(one, 2) == f"{blank_lines}, or bring more text."
    assert told(Corpus("a.TXT.gz", one.documents), 2) == f"{blank_lines}, or bring more text."
    assert told(Corpus("a.jsonl", one.documents), 2) == "bring more text."
    assert told(Corpus("a.jsonl", ["one", "two"]), 2) == (
        "lower the minimum length (min_length, --min-length), or bring more text.")
    assert told(Corpus("a.jsonl", ["one", "two"]), 3, 8, 1) == "ask for fewer, or bring more text."
    with pytest.raises(ValueError, match=r"2 different documents \(9 rows were read, 7 of them without text\): "):
        probe(Corpus("a.csv", ["one", "two"], 7), tokenizer, 3, 8, 1)
    with pytest.raises(ValueError, match=r"has 0 among 2 different documents \(240 rows were read\): lower"):
        probe(Corpus("owner/name:train@0123", ["one", "two"] * 120), tokenizer, 60, 512, 500)
    for name in ("data@0123 (a.txt)", "data@0123 (7 files, a.txt.gz to g.md)", "data@0123 (a.MD.zst)"):
        assert told(Corpus(name, one.documents), 2) == f"{blank_lines}, or bring more text."
    assert told(Corpus("a.txt@0123 (a.jsonl)", one.documents), 2) == "bring more text."


@pytest.mark.parametrize(("given", "hint"), [(["a", "b"], r"Corpus\(name, texts\)"), ("a.txt", r"text_file\(path\)"),
                                             (None, "from a Corpus, got NoneType"),
                                             (Probe("x", [[1], [2]], 2, 1), r"Corpus, got Probe")])
def test_a_probe_is_made_from_a_corpus_and_nothing_else(tokenizer, given, hint):
    with pytest.raises(TypeError, match=hint):
        probe(given, tokenizer, 2)


@pytest.mark.parametrize("wrong", ["gpt2", None, Tokenizer(models.BPE())])
def test_what_is_no_transformers_tokenizer_is_refused(wrong):
    with pytest.raises(TypeError, match="a transformers tokenizer is needed, got"):
        first_tokens(wrong, ["a"], 4)


# What a tokenizer stores


TEMPLATE = processors.TemplateProcessing(single="<|endoftext|> $A <|padding|>",
                                         special_tokens=[("<|endoftext|>", 0), ("<|padding|>", 1)])
STORED = {
    "truncation side": lambda own: own.__setattr__("truncation_side", "left"),
    "truncation": lambda own: own.backend_tokenizer.enable_truncation(7, stride=2, direction="left"),
    "padding": lambda own: own.backend_tokenizer.enable_padding(direction="left", pad_id=1, length=900,
                                                                pad_token="<|padding|>"),
    "padding side": lambda own: own.__setattr__("padding_side", "left"),
    "longest": lambda own: own.__setattr__("model_max_length", 5),
    "template": lambda own: own.backend_tokenizer.__setattr__("post_processor", TEMPLATE),
    "dropout": lambda own: own.backend_tokenizer.model.__setattr__("dropout", 0.9),
}


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("what", [*STORED, "all"])
def test_the_first_tokens_are_those_of_the_bare_tokenizer_whatever_it_stores(tokenizer, tmp_path, what, saved):
    own, documents = copy.deepcopy(tokenizer), texts(40, seed=2)
    for name, store in STORED.items():
        if what in (name, "all"):
            store(own)
    if saved:
        own.save_pretrained(tmp_path)
        own = AutoTokenizer.from_pretrained(tmp_path)
    before = own.backend_tokenizer.to_str(), own.truncation_side, own.padding_side, own.model_max_length
    found = first_tokens(own, documents, 24)
    assert found == [whole(tokenizer, text)[:24] for text in documents] and max(map(len, found)) == 24
    assert (own.backend_tokenizer.to_str(), own.truncation_side, own.padding_side, own.model_max_length) == before
    assert not own.deprecation_warnings  # where transformers notes that it warned of a sequence that is too long


UNIGRAM = [("<unk>", 0.0), *((piece, -len(piece) / 2) for piece in ("▁", *"abcdefgh", "ab", "cd", "ef", "gh", "abcd"))]


@pytest.mark.parametrize("settings", [{"alpha": 0.1, "nbest_size": 64}, {"alpha": 0.1}, {"nbest_size": 64}], ids=str)
def test_a_unigram_model_that_draws_its_tokens_draws_none_here(settings):
    own = fast(models.Unigram(UNIGRAM, unk_id=0), pre_tokenizer=pre_tokenizers.Metaspace())
    documents = ["abcdefgh abcd ghabcdef " * 4] * 8
    expected = [whole(own, text)[:20] for text in documents]
    model = own.backend_tokenizer.model
    for name, value in settings.items():
        setattr(model, name, value)
    answers = {tuple(whole(own, text)) for text in documents}
    assert (len(answers) > 1) == ("alpha" in settings)  # the other says out of how many
    assert first_tokens(own, documents, 20) == expected
    assert {name: getattr(model, name) for name in settings} == pytest.approx(settings)


class Drawing:
    """What a slow tokenizer of transformers holds of sentencepiece (not installed here): may draw pieces."""

    def __init__(self, sampling):
        self._enable_sampling, self.draw = sampling, random.Random(0)

    def encode(self, text, out_type=str):
        wide = self.draw.random() < 0.5 if self._enable_sampling else False
        return [text] if wide else list(text)


class Sentences(PreTrainedTokenizer):
    """A slow tokenizer by pieces, as GPTSw3Tokenizer."""

    def __init__(self, sampling=False, **options):
        self.sp_model = Drawing(sampling)
        super().__init__(unk_token="?", **options)

    vocab_size = 128

    def get_vocab(self):
        return {chr(k): k for k in range(128)}

    def _tokenize(self, text, **options):
        return self.sp_model.encode(text)

    def _convert_token_to_id(self, token):
        return ord(token) if len(token) == 1 and ord(token) < 128 else 0

    def _convert_id_to_token(self, index):
        return chr(index)


def test_a_slow_tokenizer_that_draws_its_pieces_draws_none_here():
    own, documents = Sentences(sampling=True), texts(20)
    assert first_tokens(own, documents, 30) == [whole(Sentences(), text)[:30] for text in documents]
    assert own.sp_model._enable_sampling is True
    own._tokenize = lambda text: 1 / 0
    with pytest.raises(TokenizingError):
        first_tokens(own, documents, 30)
    assert own.sp_model._enable_sampling is True


def test_a_tokenizer_that_gives_one_text_two_answers_is_refused(corpus):
    draw = random.Random(0)

    def own(batch, **options):
        return {"input_ids": [[draw.randrange(2) for _ in text] for text in batch]}

    with pytest.raises(ValueError, match=r"function gives the same text other tokens at every call: it draws them"):
        first_tokens(own, ["", "one text", "another"], 4)
    with pytest.raises(ValueError, match="draws them"):
        probe(corpus, own, 20)
    with pytest.raises(ValueError, match="draws them"):
        first_tokens(own, [*[""] * 20, "x" * 10**6])


def test_a_tokenizer_has_its_settings_back_after_a_failure(tokenizer):
    own = copy.deepcopy(tokenizer)
    for store in STORED.values():
        store(own)
    own.backend_tokenizer.encode_special_tokens = True
    before = own.backend_tokenizer.to_str()
    own.__class__ = type("Failing", (type(own),), {"_convert_encoding": lambda *a, **k: 1 / 0})
    with pytest.raises(TokenizingError, match=r"texts\[0\]: Failing fails on it \(ZeroDiv.*begins with 'a b'"):
        first_tokens(own, ["a b", "c"], 4)
    assert own.backend_tokenizer.to_str() == before and own.backend_tokenizer.encode_special_tokens


def test_special_tokens_in_a_text_are_parsed_as_the_tokenizer_parses_them(tokenizer):
    text = "one<|endoftext|>two"
    assert 0 in first_tokens(tokenizer, [text], 9)[0]
    split = copy.deepcopy(tokenizer)
    split.split_special_tokens = True
    assert first_tokens(split, [text], 9) == [whole(split, text)[:9]] and 0 not in first_tokens(split, [text], 9)[0]


def test_without_a_largest_number_every_token_is_given(tokenizer):
    assert first_tokens(tokenizer, texts(5)) == [whole(tokenizer, text) for text in texts(5)]
    assert first_tokens(tokenizer, []) == first_tokens(tokenizer, [], 3) == []
    with pytest.raises(ValueError, match="max_length must be 1 or more, got 0"):
        first_tokens(tokenizer, ["a"], 0)


# Where a long document is cut


def fast(model, *, trained_on=None, pre_tokenizer=None, normalizer=None, trainer=None, added=()):
    """A transformers tokenizer of a model of the tokenizers library."""
    made = Tokenizer(model)
    for name, part in (("pre_tokenizer", pre_tokenizer), ("normalizer", normalizer)):
        if part:
            setattr(made, name, part)
    if trainer:
        made.train_from_iterator(trained_on or texts(60), trainer)
    made.add_special_tokens(list(added))
    return PreTrainedTokenizerFast(tokenizer_object=made)


def chain(count):
    """A BPE whose last letters decide how all before them are merged: the farther to the right, the sooner."""
    letters = [chr(0x4E00 + k) for k in range(count)]
    pairs = list(itertools.pairwise(letters))[::-1]
    names = [*letters, *(first + second for first, second in pairs)]
    return fast(models.BPE(vocab={name: k for k, name in enumerate(names)}, merges=pairs)), letters


class Letters(PreTrainedTokenizer):
    """A slow tokenizer, without a token for what it does not know."""

    def __init__(self, **options):
        self.letters = {letter: k for k, letter in enumerate(string.printable)}
        super().__init__(**options)

    vocab_size = property(lambda self: len(self.letters))

    def get_vocab(self):
        return dict(self.letters)

    def _tokenize(self, text, **options):
        return list(text)

    def _convert_token_to_id(self, token):
        return self.letters.get(token)


LEVEL, ALPHABET = pre_tokenizers.ByteLevel(add_prefix_space=False), pre_tokenizers.ByteLevel.alphabet()
BYTES = {"trainer": trainers.BpeTrainer(vocab_size=400, initial_alphabet=ALPHABET, show_progress=False),
         "trained_on": [*texts(60), *[" " * 300] * 5]}
UNKNOWN = {"special_tokens": ["<unk>"], "show_progress": False}
CHAIN, CHAINED = chain(700)
KMERS = {"<unk>": 0} | {"".join(six): k for k, six in enumerate(itertools.product("ACGT", repeat=6), 1)}


def by_rule(rule):
    """Words by a regular expression, then bytes."""
    split = pre_tokenizers.Split(Regex(rule), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


TOKENIZERS = {
    "byte-level BPE": lambda: fast(models.BPE(), pre_tokenizer=LEVEL, **BYTES),
    "digits from the right": lambda: fast(models.BPE(), pre_tokenizer=by_rule(
        r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))|\P{N}+"), **BYTES),
    "BPE of whole texts": lambda: fast(
        models.BPE(unk_token="<unk>", fuse_unk=True), trained_on=texts(20), normalizer=normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        trainer=trainers.BpeTrainer(vocab_size=300, max_token_length=16, **UNKNOWN)),
    "Metaspace BPE": lambda: fast(models.BPE(unk_token="<unk>"), pre_tokenizer=pre_tokenizers.Metaspace(),
                                  trainer=trainers.BpeTrainer(vocab_size=300, **UNKNOWN)),
    "Unigram": lambda: fast(models.Unigram(), normalizer=normalizers.NFKC(), pre_tokenizer=pre_tokenizers.Metaspace(),
                            trainer=trainers.UnigramTrainer(vocab_size=200, unk_token="<unk>", **UNKNOWN)),
    "WordPiece": lambda: fast(
        models.WordPiece(unk_token="<unk>"), pre_tokenizer=pre_tokenizers.BertPreTokenizer(),
        normalizer=normalizers.BertNormalizer(), trainer=trainers.WordPieceTrainer(vocab_size=300, **UNKNOWN)),
    "WordLevel": lambda: fast(models.WordLevel({"<unk>": 0, "the": 1, "of": 2}, unk_token="<unk>"),
                              pre_tokenizer=pre_tokenizers.Whitespace()),
    "6-mers": lambda: fast(models.WordLevel(KMERS, unk_token="<unk>"),
                           pre_tokenizer=pre_tokenizers.Split(Regex(".{1,6}"), "isolated")),
    "merged from the right": lambda: CHAIN,
    "blanks swallowed": lambda: fast(models.BPE(), pre_tokenizer=LEVEL, trainer=BYTES["trainer"],
                                     added=[AddedToken("<mask>", lstrip=True, rstrip=True)]),
    "slow letters": Letters,
    "slow bytes": ByT5Tokenizer,
}


@functools.cache
def made(name):
    return TOKENIZERS[name]()


@functools.cache
def whole_ids(name, text):
    return whole(made(name), text)


@functools.cache
def hard_documents(length):
    """Documents about so long, on which a careless cut shows."""
    draw, chained = random.Random(length), "".join(CHAINED)
    words = " ".join(draw.choices(WORDS, k=length // 5))
    letters, genome, digits = ("".join(draw.choices(kind, k=length)) for kind in (string.ascii_letters, "ACGT", "0123"))
    return [
        words, " " * length + words, words[:200] + " " * length + "x", f"a b {' ' * length}<mask> the end",
        "\n" * length, f"{words[:150]} {letters} {words}", "x" * length, genome, f"{digits} end", f"{digits}1 end",
        f"{digits}12", chained * (length // 700), chained * (length // 700) + chained[: length % 699 + 1],
        "日本語" * (length // 3), "the of " * (length // 7), "e\u0301" * (length // 2), "🎉" * length,
        "<|endoftext|>" * (length // 13), f"{'the ' * 70}{'q' * length}", "", "the"]


@pytest.mark.parametrize("length", [1, 12, 64])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_first_tokens_are_those_of_the_whole_document_wherever_it_is_cut(name, length, monkeypatch):
    monkeypatch.setattr(probes, "CUT", 500)  # so that documents need not be long to be cut
    monkeypatch.setattr(probes, "CUT_PER_TOKEN", 4)
    documents = [text for size in (300, 1999, 6001) for text in hard_documents(size)]
    if name == "slow letters":
        documents = [text for text in documents if text.isascii()]
    assert first_tokens(made(name), documents, length) == [whole_ids(name, text)[:length] for text in documents]


def test_a_document_is_read_on_until_its_tokens_are_enough():
    own = made("6-mers")
    draw = random.Random(0)
    genomes = ["".join(draw.choices("ACGT", k=6 * 520)) for _ in range(12)]
    found = probe(Corpus("genomes", genomes), own, 12, 512, 500)
    assert sorted(found.sequences) == sorted(whole(own, text)[:512] for text in genomes)
    assert set(map(len, found.sequences)) == {512}


def test_a_word_too_long_for_wordpiece_is_unknown_however_far_its_end_is(monkeypatch):
    monkeypatch.setattr(probes, "CUT", 500)
    monkeypatch.setattr(probes, "CUT_PER_TOKEN", 4)
    vocabulary = {"<unk>": 0, "x": 1, "##x": 2, "the": 3}
    own = fast(models.WordPiece(vocabulary, unk_token="<unk>", max_input_chars_per_word=1000),
               pre_tokenizer=pre_tokenizers.BertPreTokenizer())
    documents = [f"{'x' * length} {'the ' * 2000}" for length in (10, 999, 1000, 1001, 3000)]
    assert first_tokens(own, documents, 12) == [whole(own, text)[:12] for text in documents]


def batches_seen(monkeypatch):
    """A list that gets every batch of texts that is tokenized from now on."""
    batches, encoded = [], probes._encoded
    monkeypatch.setattr(probes, "_encoded", lambda own, batch, rows: batches.append(batch) or encoded(own, batch, rows))
    return batches


def test_a_very_long_document_costs_no_more_than_its_beginning(tokenizer, monkeypatch):
    text, few = " ".join(texts(20_000)), " " * 100_000  # blanks, of which a token may hold hundreds
    batches = batches_seen(monkeypatch)
    found = first_tokens(made("byte-level BPE"), [text, text[1:], few + text], 600)
    assert len(text) > 4_000_000 and sum(len(part) for batch in batches for part in batch) < 3_000_000
    assert found == [whole(made("byte-level BPE"), part)[:600] for part in (
        text[:20_000], text[1:20_001], few + text[:20_000])]


def test_many_documents_pass_through_a_tokenizer_a_few_million_characters_at_a_time(tokenizer, monkeypatch):
    monkeypatch.setattr(probes, "BATCH", 2000)
    batches = batches_seen(monkeypatch)
    documents = [*texts(50), "x" * 5000, *texts(50, seed=1)]
    assert first_tokens(tokenizer, documents, 30) == [whole(tokenizer, text)[:30] for text in documents]
    assert max(sum(map(len, batch)) for batch in batches) == 5000 and len(batches) > 20
    assert all(len(batch) == 1 or sum(map(len, batch)) <= 2000 for batch in batches)


# A tokenizer that fails


def test_the_document_that_a_tokenizer_fails_on_is_named():
    own = fast(models.WordLevel({"the": 0, "of": 1}, unk_token="<unk>"), pre_tokenizer=pre_tokenizers.Whitespace())
    documents = ["the of", "of the the", "the cat", "of"]
    with pytest.raises(TokenizingError, match=r"texts\[2\]: .*Missing \[UNK\].*begins with 'the cat'") as error:
        first_tokens(own, documents, 4)
    assert error.value.index == 2 and isinstance(error.value, ValueError)
    with pytest.raises(TokenizingError, match=r"document 3 of 'few': .*Missing \[UNK\]"):
        probe(Corpus("few", documents), own, 2, 4, 1)


def test_a_text_that_a_slow_tokenizer_has_no_token_for_is_named():
    with pytest.raises(TokenizingError, match=r"texts\[1\]: Letters has no token for a part of it"):
        first_tokens(Letters(), ["plain", "naïve"], 9)
    assert first_tokens(Letters(), ["plain", "two"], 9) == [whole(Letters(), text) for text in ("plain", "two")]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, SystemExit])
def test_what_stops_the_process_is_not_taken_for_a_bad_document(error):
    def own(*args, **options):
        raise error

    with pytest.raises(error):
        first_tokens(own, ["a", "b"], 4)


def test_a_panic_of_a_tokenizer_in_rust_is_a_failure_on_its_document():
    panic = type("PanicException", (BaseException,), {})

    def own(batch, **options):
        if "b" in batch:
            raise panic("index out of range")
        return {"input_ids": [[1]] * len(batch)}

    with pytest.raises(TokenizingError, match=r"texts\[1\]: function fails on it \(PanicException: index out of"):
        first_tokens(own, ["a", "b"], 4)


def test_the_failure_of_a_tokenizer_can_be_sent_to_another_process():
    error = pickle.loads(pickle.dumps(TokenizingError("texts[3]", 3, "it fails")))
    assert (str(error), error.index) == ("texts[3]: it fails", 3)


def test_pinned_documents_are_those_of_the_sequences(corpus, tokenizer, tmp_path):
    found = probe(corpus, tokenizer, 30, 16, 4)
    table = pd.read_parquet(found.pin(tmp_path))
    by_hash = {hashlib.sha256(text.encode()).hexdigest(): whole(tokenizer, text)[:16] for text in corpus.documents}
    assert [by_hash[document] for document in table.document] == found.sequences
    assert table.tokens.tolist() == list(map(len, found.sequences))

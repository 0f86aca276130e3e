"""Probes: texts -> the token sequences that a model is measured on, with a fingerprint that says exactly which."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from reptrace.records.store import write_atomically
from reptrace.support import arguments
from reptrace.support.fingerprints import document_hash, fingerprint, order_key
from reptrace.texts.given import as_texts

if TYPE_CHECKING:
    from reptrace.texts.corpora import Corpus

CUT = 2**15  # characters at least that a long document is cut at, and CUT_PER_TOKEN for every token wanted
CUT_PER_TOKEN = 32
NEIGHBOURS = 8  # further cuts, a character apart, under which the tokens must stay the same
SPARE = 8  # tokens at least between the last one wanted and a cut
DRAWING = ("dropout", "alpha")  # with these a BPE or Unigram model draws its tokens anew at every call
TRIED = (8, 2**12)  # texts, and characters of each, that are tokenized twice, for tokenizers that draw unbeknown to us
BATCH = 2**22  # characters tokenized at once: the tokenizer takes some 100 bytes a token meanwhile


class TokenizingError(ValueError):
    """A tokenizer fails on a text: `where` that stands, its `index` in what was given, and the `reason`."""

    def __init__(self, where: str, index: int, reason: str):
        super().__init__(where, index, reason)
        self.where, self.index, self.reason = where, index, reason

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


@dataclass(frozen=True)
class Probe:
    """Token sequences to measure a model on: M lists of ids, and what identifies them in a record.

    `documents` holds the SHA-256 of the document that each sequence was cut from, where they are known.
    """

    name: str
    sequences: list[list[int]]
    max_length: int
    min_length: int
    seed: int = 0
    documents: list[str] = field(default_factory=list, repr=False)

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(json.dumps(sequence).encode() for sequence in self.sequences)

    @property
    def tokens(self) -> int:
        return sum(map(len, self.sequences))

    def pin(self, folder: Path) -> Path:
        """Write, once, which documents these are: a Parquet file by fingerprint, columns document (SHA-256), tokens."""
        path = Path(folder) / f"{self.fingerprint}.parquet"
        if not path.exists():
            table = pd.DataFrame({"document": self.documents, "tokens": list(map(len, self.sequences))})
            write_atomically(path, table.assign(probe=self.name, seed=self.seed).to_parquet(index=False))
        return path


def probe(corpus: Corpus, tokenizer, sequences: int, max_length: int = 512, min_length: int = 32,
          seed: int = 0, fewest: int | None = None) -> Probe:
    """The first `sequences` documents, in an order set by their hash and the seed, each cut to its first max_length
    tokens.

    Parameters
    ----------
    corpus : Corpus
    tokenizer : transformers tokenizer; see `first_tokens` on what it stores
    sequences : int
        M. RankMe is biased down when M is not well above the model's width; the paper takes 15,000.
    max_length, min_length : int, default 512 and 32, as in the paper's OLMo script
        Documents of fewer than min_length tokens are passed over.
    fewest : int, optional
        Make do with so many sequences, or as many more as there are; default none fewer than `sequences`.

    Raises
    ------
    ValueError
        Fewer sequences than asked for are long enough: says how many there are.
    TokenizingError
        The tokenizer fails on a document: names it.
    TypeError
        Something else than a corpus; a tokenizer that cannot be called.
    """
    if not (hasattr(corpus, "documents") and hasattr(corpus, "split")):
        raise TypeError(f"a probe is made from a Corpus, got {arguments.shown(corpus)}. From a file: text_file(path); "
                        "from a list of strings: Corpus(name, texts) (reptrace.texts.corpora).")
    sequences, min_length, max_length = (arguments.whole(value, name, 0) for value, name in (
        (sequences, "sequences"), (min_length, "min_length"), (max_length, "max_length")))
    if sequences < 2 or not 1 <= min_length <= max_length:
        raise ValueError("a probe needs sequences >= 2 and 1 <= min_length <= max_length, got "
                         f"sequences={sequences}, min_length={min_length}, max_length={max_length}.")
    order = in_order(corpus.documents, seed)
    kept: list[tuple[list[int], str]] = []
    for start in range(0, len(order), 1024):
        documents = order[start : start + 1024]
        try:
            encoded = first_tokens(tokenizer, documents, max_length)
        except TokenizingError as error:
            number = corpus.documents.index(documents[error.index])
            raise TokenizingError(f"document {number + 1} of {corpus.name!r}", number, error.reason) from error
        kept += [pair for pair in zip(encoded, documents, strict=True) if len(pair[0]) >= min_length]
        if len(kept) >= sequences:
            break
    needed = sequences if fewest is None else min(fewest, sequences)
    if len(kept) >= max(needed, 2):
        chosen, sources = zip(*kept[:sequences], strict=True)
        return Probe(corpus.name, list(chosen), max_length, min_length, seed, list(map(document_hash, sources)))
    raise ValueError(f"{needed} sequences of at least {min_length} tokens were asked for, {corpus.name!r} has "
                     f"{len(kept)} among {len(order)} different documents{_rows_read(corpus, len(order))}: "
                     f"{_advice(corpus, len(kept), len(order), min_length)}.")


def shuffled(probe: Probe, seed: int = 0) -> Probe:
    """The same tokens, those of each sequence in an order that is drawn: a control without grammar or sense."""
    draw = np.random.default_rng(seed)
    return replace(probe, name=f"{probe.name}, shuffled", documents=[],
                   sequences=[draw.permutation(each).tolist() for each in probe.sequences])


def in_order(documents: Sequence[str], seed: int = 0) -> list[str]:
    """Documents in the order of a probe, by their hash and the seed, each different one once."""
    return sorted(dict.fromkeys(documents), key=lambda document: order_key(f"probe {seed}", document))


def first_tokens(tokenizer, texts: Sequence[str], max_length: int | None = None) -> list[list[int]]:
    """The first tokens of each text: exactly those that the tokenizer gives for the whole text by itself.

    Parameters
    ----------
    tokenizer : transformers tokenizer, fast or slow
        Left as it was. What it stores is not obeyed where it is about length and layout: truncation and its side,
        padding and its side, `model_max_length`, tokens put around a text (BOS, EOS, templates), and BPE dropout or
        sampling, which draw other tokens at every call. What decides how a text is read stays: normalizer,
        pre-tokenizer, model, added tokens. Special tokens written in a text are parsed as the tokenizer parses them
        (most take "<|endoftext|>" for the token of that name; `split_special_tokens` in its files says otherwise).
    texts : list of strings
    max_length : int, optional
        Tokens of each text at most, from its beginning; default all.

    Returns
    -------
    list of lists of token ids, in the order of the texts; shorter ones where a text has fewer tokens.

    Raises
    ------
    TokenizingError
        The tokenizer fails on a text, or knows no token for a part of it.
    TypeError, ValueError
        See `given.as_texts`; a tokenizer that cannot be called, or that gives a text other tokens at every call
        however it is set here; max_length below 1.

    A text of up to 32,768 characters, or 32 for every token wanted, is tokenized whole. Of a longer one so many are,
    and four times as many again, until all the tokens are there and eight shorter cuts give the same ones. Where tokens
    depend on whatever follows, that ends with the whole text: slow, and right. (A rule of the normalizer that hangs on
    what stands more than 16,384 characters later, and on nothing nearer, goes unseen.)
    """
    if not callable(tokenizer):
        raise TypeError(f"a transformers tokenizer is needed, got {arguments.shown(tokenizer)}. By name: "
                        "load_tokenizer(name) (reptrace.models.loading); one of the tokenizers library: "
                        "transformers.PreTrainedTokenizerFast(tokenizer_object=...).")
    if any(each.__name__ == "ProcessorMixin" for each in type(tokenizer).__mro__):
        raise TypeError(f"{type(tokenizer).__name__} prepares more than text: pass its tokenizer, processor.tokenizer.")
    max_length = None if max_length is None else arguments.whole(max_length, "max_length")
    texts = as_texts(texts)
    with _bare(tokenizer) as encode:
        _check_steady(tokenizer, encode, texts)
        if max_length is None:
            return list(encode(texts, range(len(texts))))
        return _first(encode, texts, max_length, _first_cut(tokenizer, max_length))


Encode = Callable[[Sequence[str], Sequence[int]], Iterator[list[int]]]  # texts, and their numbers, -> token ids


def _first(encode: Encode, texts: Sequence[str], length: int, size: int) -> list[list[int]]:
    """The first `length` tokens of each text, from its first `size` characters or as many more as decide them."""
    found: list[list[int]] = [[]] * len(texts)
    waiting: Sequence[int] = range(len(texts))
    while waiting:
        tried, waiting = waiting, []
        for row, ids in zip(tried, encode([texts[row][:size] for row in tried], tried), strict=True):
            if len(texts[row]) <= size or _settled(encode, texts[row][:size], row, ids, length):
                found[row] = ids[:length]
            else:
                waiting.append(row)
        size *= 4
    return found


def _settled(encode: Encode, text: str, row: int, ids: list[int], length: int) -> bool:
    """Whether the first tokens of the beginning of a text are those of the whole, by cuts nearer to them.

    If a token of the whole text lies across a cut and begins at a place p, then what stands before it is, for BPE,
    Unigram and WordPiece, what the text up to p gives by itself. So the cuts stand side by side, at every p that a
    short token may begin at; chains of merges, or digits grouped from the right, differ from one cut to the next.
    """
    if len(ids) < length + SPARE:
        return False
    near = len(text) // 8
    while near < len(text) and len(next(encode([text[:near]], [row]))) < length + SPARE:
        near *= 2
    # An added token may swallow the blanks before it, however many; so these must end within the text.
    if near >= len(text) or text[near:].isspace():
        return False
    cuts = encode([text[: near - k] for k in range(NEIGHBOURS)], [row] * NEIGHBOURS)
    return all(cut[:length] == ids[:length] for cut in cuts)


def _first_cut(tokenizer, length: int) -> int:
    """Characters that suffice to tell whether a word is too long for WordPiece, beside what `first_tokens` says."""
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    return max(CUT, CUT_PER_TOKEN * length, 4 * getattr(model, "max_input_chars_per_word", 0))


@contextmanager
def _bare(tokenizer) -> Iterator[Encode]:
    """A function that tokenizes texts whole and bare; the tokenizer has its own settings back afterwards."""

    def encode(texts: Sequence[str], rows: Sequence[int]) -> Iterator[list[int]]:
        first = 0
        for batch in _batches(texts):
            yield from _encoded(tokenizer, batch, rows[first : first + len(batch)])
            first += len(batch)

    with without_draws(tokenizer), _whole_texts(tokenizer):
        yield encode


@contextmanager
def without_draws(tokenizer) -> Iterator[None]:
    """The tokenizer's one answer to a text, where it would draw one of many; it draws again afterwards."""
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    pieces = getattr(tokenizer, "sp_model", None)  # a SentencePieceProcessor, of a slow tokenizer
    switches = [*((model, name, None) for name in DRAWING), (pieces, "_enable_sampling", False)]
    held = [(owner, name, off, getattr(owner, name)) for owner, name, off in switches
            if getattr(owner, name, None) is not None]
    try:
        for owner, name, off, _ in held:
            setattr(owner, name, off)
        yield
    finally:
        for owner, name, _, value in held:
            setattr(owner, name, value)


@contextmanager
def _whole_texts(tokenizer) -> Iterator[None]:
    """A fast tokenizer has its truncation, padding and parsing back afterwards, which a call would leave changed."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        yield
        return
    truncation, padding, splitting = backend.truncation, backend.padding, backend.encode_special_tokens
    try:
        yield
    finally:
        backend.encode_special_tokens = splitting
        backend.enable_truncation(**truncation) if truncation else backend.no_truncation()
        backend.enable_padding(**padding) if padding else backend.no_padding()


def _check_steady(tokenizer, encode: Encode, texts: Sequence[str]) -> None:
    """ValueError where a tokenizer gives a text other tokens at the second call."""
    count, size = TRIED
    rows = [row for row, text in enumerate(texts) if text][:count]
    tried = [texts[row][:size] for row in rows]
    if list(encode(tried, rows)) != list(encode(tried, rows)):
        raise ValueError(f"{type(tokenizer).__name__} gives the same text other tokens at every call: it draws them, "
                         "and no measurement could be repeated. Turn that off (dropout, sampling) where it is made.")


def _batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """The texts in their order, about BATCH characters at a time."""
    first, size = 0, 0
    for number, text in enumerate(texts):
        if size and size + len(text) > BATCH:
            yield texts[first:number]
            first, size = number, 0
        size += len(text)
    if first < len(texts):
        yield texts[first:]


def _encoded(tokenizer, texts: Sequence[str], rows: Sequence[int]) -> list[list[int]]:
    """Token ids of whole texts; a TokenizingError says which of them has none, by its row."""
    try:
        ids = tokenizer(list(texts), add_special_tokens=False, padding=False, truncation=False,
                        return_attention_mask=False, verbose=False)["input_ids"]
    except BaseException as error:
        panic = type(error).__name__ == "PanicException"  # of a tokenizer in Rust; it is no Exception
        if isinstance(error, MemoryError) or not (isinstance(error, Exception) or panic):
            raise
        if len(texts) == 1:
            raise _failure(tokenizer, texts[0], rows[0], f"fails on it ({type(error).__name__}: {error})") from error
        return [_encoded(tokenizer, [text], [row])[0] for text, row in zip(texts, rows, strict=True)]
    for text, row, sequence in zip(texts, rows, ids, strict=True):
        if None in sequence:
            raise _failure(tokenizer, text, row, "has no token for a part of it, not even the one for unknown parts")
    return ids


def _failure(tokenizer, text: str, row: int, reason: str) -> TokenizingError:
    return TokenizingError(f"texts[{row}]", row, f"{type(tokenizer).__name__} {reason}. It begins with {text[:60]!r}.")


def _rows_read(corpus: Corpus, different: int) -> str:
    """How many rows the documents come from, where it is another number than theirs."""
    rows = len(corpus.documents) + corpus.passed_over
    blank = f", {corpus.passed_over} of them without text" if corpus.passed_over else ""
    return f" ({rows} rows were read{blank})" if rows > different else ""


def _advice(corpus: Corpus, found: int, documents: int, min_length: int) -> str:
    """What would bring more sequences, or make do with those that there are."""
    plain = re.search(r"\.(txt|md)(\.gz|\.zst)?\)?$", corpus.name, re.IGNORECASE)  # of a folder, in brackets
    tips = ["in a plain text file blank lines separate the documents; with one a line, pass .jsonl"] if plain else []
    if found >= 2:
        tips.append("ask for fewer")
    if found < documents and min_length > 1:
        tips.append("lower the minimum length (min_length, --min-length)")
    return f"{', '.join([*tips, ''])}or bring more text" if tips else "bring more text"

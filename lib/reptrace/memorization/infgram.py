"""The infinity-gram model: the next token's probability after the longest suffix of a context that the corpus holds.

Liu et al. 2024 (arXiv 2401.17377): of a context x_1..x_n let s be the longest suffix that occurs in the corpus (the
empty one occurs everywhere). Then

    P(token | context) = count(s token) / count(s).

Counts are exact and never cross the end of a document. As in the authors' engine, a suffix counts where a document ends
with it too; what is missing to 1 is then the probability of that end, which stands here, as in the engine's next-token
distribution, under the separator's id. The empty suffix counts every token and every end of a document. Of a context
that holds separators only what follows the last one counts. Zeros stay zeros: a token never seen after s has
log-probability -inf.

The search is the FM-index's (Ferragina and Manzini 2000), with the links of Sadakane's compressed suffix array in place
of rank tables: if a string s begins the suffixes in rows lo..hi of the suffix array, then "token s" begins those
between the places of token * N + lo and token * N + hi in the sorted array `links`. So a batch of contexts is read from
the last tokens leftwards, one `np.searchsorted` a token; once few rows are left, their places in the text are
compared with the context.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reptrace.memorization.suffix_array import SuffixArray, built, opened
from reptrace.texts.token_ids import OtherTokenizerError, aligned, checked_ids, tokenizer_fingerprint

NARROW = 16  # rows: from here on comparing places with the context is quicker than further searches
WINDOW = 32  # tokens compared at once; also the separators before the text, so that every window lies inside the file
CHUNK = 2**16  # contexts at a time: sorted searches pass through the index in one sweep, temporaries stay near 100 MB


@dataclass(frozen=True)
class Lookups:
    """Answers to "how likely is this token after this context": arrays of shape (queries,), int64.

    `length`: tokens of the longest suffix; `count`: its occurrences; `token_count`: those with the token after them.
    """

    length: np.ndarray
    count: np.ndarray
    token_count: np.ndarray

    @property
    def log_probability(self) -> np.ndarray:
        """Natural logarithm of P(token | context), (queries,) float64; -inf where the token never follows."""
        with np.errstate(divide="ignore"):
            return np.log(self.token_count) - np.log(self.count)


@dataclass(frozen=True)
class Distribution:
    """What follows a context's longest suffix (`length` tokens, `count` times): ids, ascending, and their counts.

    `exact` is False only where the web API drew a sample.
    """

    length: int
    count: int
    tokens: np.ndarray
    token_counts: np.ndarray
    exact: bool = True


class InfinityGram:
    """The model over a suffix array; `build_infgram` and `open_infgram` make it.

    Contexts are an integer array of shape (queries, tokens), or a sequence of token-id sequences of any lengths, empty
    ones too. A batch of tens of thousands is several times quicker a query than one of hundreds.
    """

    def __init__(self, array: SuffixArray):
        self.array = array
        self.size = len(array.links)  # N: tokens and ends of documents
        self.separator, self.vocabulary = array.facts["separator"], array.facts["vocabulary"]
        self._windows = np.lib.stride_tricks.sliding_window_view(array.text, WINDOW)

    def next_token(self, contexts, tokens) -> Lookups:
        """Counts, and with them the probability, of a given next token for each context.

        Parameters
        ----------
        contexts : see the class
        tokens : (queries,) integers
            The separator asks for the end of the document.

        Raises
        ------
        OtherTokenizerError
            An id is outside of the vocabulary.
        """
        tokens = checked_ids(tokens, self.vocabulary)
        if len(tokens) != len(contexts):
            raise ValueError(f"one token for each context: got {len(contexts)} contexts and {len(tokens)} tokens.")
        parts = [self._next_token(*self._aligned(chunk), tokens[start : start + CHUNK])
                 for start, chunk in _chunks(contexts)]
        return Lookups(*np.concatenate(parts, axis=1)) if parts else Lookups(*np.zeros((3, 0), np.int64))

    def longest_suffix(self, contexts) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of each context's longest suffix that occurs, and its count: two int64 arrays (queries,)."""
        found = self.next_token(contexts, np.full(len(contexts), self.separator))
        return found.length, found.count

    def distribution(self, contexts) -> list[Distribution]:
        """The whole next-token distribution of each context, one context at a time."""
        return [self._distribution(row[None], length[None]) for _, chunk in _chunks(contexts)
                for row, length in zip(*self._aligned(chunk), strict=True)]

    def _aligned(self, contexts) -> tuple[np.ndarray, np.ndarray]:
        return aligned(contexts, self.vocabulary, self.separator, WINDOW)

    def _next_token(self, ids: np.ndarray, lengths: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        low, high, depth = self._rows(ids, lengths)
        count, token_count = high - low, np.zeros_like(low)
        few, many = np.flatnonzero(count <= NARROW), np.flatnonzero(count > NARROW)
        depth[few], query, after = self._at_places(ids[few], lengths[few], low[few], high[few], depth[few])
        count[few] = np.bincount(query, minlength=len(few))
        token_count[few] = np.bincount(query[after == tokens[few][query]], minlength=len(few))
        token_count[many] = self._count(ids[many], depth[many], tokens[many])
        return np.stack([depth, count, token_count])

    def _rows(self, ids: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows low..high that begin with the last `depth` tokens: all that occur, or as many as NARROW allows."""
        low, high = np.zeros(len(ids), np.int64), np.full(len(ids), self.size)
        depth, live = np.zeros(len(ids), np.int64), np.arange(len(ids))
        for step in range(ids.shape[1]):
            live = live[(lengths[live] > step) & (high[live] - low[live] > NARROW)]
            if not len(live):
                break
            first, last = self._preceded(ids[live, -1 - step], low[live], high[live])
            occurs = last > first
            live = live[occurs]
            low[live], high[live], depth[live] = first[occurs], last[occurs], step + 1
        return low, high, depth

    def _count(self, ids: np.ndarray, lengths: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Occurrences of the last `lengths` tokens of each context with the given token after them."""
        low, high = self._preceded(tokens, np.zeros(len(ids), np.int64), np.full(len(ids), self.size))
        for step in range(max(lengths, default=0)):
            live = np.flatnonzero((lengths > step) & (high > low))
            low[live], high[live] = self._preceded(ids[live, -1 - step], low[live], high[live])
        return high - low

    def _preceded(self, tokens: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Rows of the suffixes that begin with the token and go on as one of the rows low..high: shape (2, queries)."""
        keys = np.tile(tokens.astype(np.int64) * self.size, 2) + np.concatenate([low, high])
        order = np.argsort(keys)  # neighbours then touch the same memory: some five times quicker
        rows = np.empty(len(keys), np.int64)
        rows[order] = np.searchsorted(self.array.links, keys[order])
        return rows.reshape(2, -1)

    def _at_places(self, ids, lengths, low, high, depth) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Length of the longest suffix at the places of the rows low..high; of each place where it stands, the query
        and the token that follows."""
        rows = high - low
        query, starts = np.repeat(np.arange(len(ids)), rows), np.cumsum(rows) - rows
        row = np.arange(len(query)) + np.repeat(low - starts, rows)
        ends = self.array.positions[row] + depth[query]  # where in the text the next token stands
        matched = self._matched(ids, lengths, query, ends)
        length = np.maximum.reduceat(matched, starts) if len(query) else lengths
        here = matched == length[query]
        return length, query[here], self.array.text[WINDOW + ends[here]]

    def _matched(self, ids: np.ndarray, lengths: np.ndarray, query: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """How many tokens before each end equal the last tokens of its query's context."""
        matched, live = np.zeros(len(ends), np.int64), np.arange(len(ends))
        for done in range(0, ids.shape[1], WINDOW):
            # The text begins WINDOW entries into the file, so the window before position p begins at entry p.
            windows = self._windows[ends[live] - done]
            context = ids[:, ids.shape[1] - done - WINDOW : ids.shape[1] - done][query[live]]
            equal = (windows == context)[:, ::-1]
            run = np.where(equal.all(1), WINDOW, equal.argmin(1))
            matched[live] += run
            live = live[(run == WINDOW) & (lengths[query[live]] > done + WINDOW)]
        return np.minimum(matched, lengths[query])

    def _distribution(self, ids: np.ndarray, lengths: np.ndarray) -> Distribution:
        low, high, depth = self._rows(ids, lengths)
        count = high[0] - low[0]
        if count > 16 * self.vocabulary:  # asking for every token in turn is then quicker
            every = np.arange(self.vocabulary)
            counts = self._count(np.repeat(ids, len(every), 0), np.repeat(depth, len(every)), every)
            return Distribution(int(depth[0]), int(count), every[counts > 0], counts[counts > 0])
        if count > NARROW:
            length, after = depth, self.array.text[WINDOW + depth + self.array.positions[low[0] : high[0]]]
        else:
            length, _, after = self._at_places(ids, lengths, low, high, depth)
        tokens, counts = np.unique(after, return_counts=True)
        return Distribution(int(length[0]), len(after), tokens.astype(np.int64), counts)


def build_infgram(tokens, folder: str | Path, *, separator: int, vocabulary: int, corpus: str, tokenizer,
                  progress: bool = True) -> InfinityGram:
    """Index a tokenized corpus; opens the index that is there already if it is whole and of the same corpus.

    Parameters
    ----------
    tokens : (tokens,) integers
        Documents one after another, each followed by the separator (after the last it may be missing).
    folder : str or Path
        Becomes the index, all at once when it is done: 14 bytes a token, or 16 if `vocabulary` is above 65,536.
    separator : int
        Id that ends a document, the end-of-text token's; any id below `vocabulary`.
    vocabulary : int
        Number of ids; all are below it.
    corpus : str
        Fingerprint of the text (`Corpus.fingerprint`).
    tokenizer : transformers tokenizer, or its `tokenizer_fingerprint`
    progress : bool, default True

    10 million tokens take about 5 s and 350 MB of memory, on one core.
    """
    tokens = checked_ids(tokens, vocabulary)
    if not 0 <= separator < vocabulary:
        raise ValueError(f"the separator must be an id below the vocabulary of {vocabulary}, got {separator}.")
    if not len(tokens):
        raise ValueError("the corpus has no tokens: there is nothing to index.")
    facts = {"corpus": corpus, "tokenizer": tokenizer_fingerprint(tokenizer), "separator": separator,
             "vocabulary": vocabulary}
    return InfinityGram(built(tokens, Path(folder), facts, WINDOW, progress))


def open_infgram(folder: str | Path, *, tokenizer, corpus: str | None = None) -> InfinityGram:
    """Open an index, memory-mapped, after a check of every byte of it.

    Parameters
    ----------
    folder : str or Path
    tokenizer : transformers tokenizer, or its `tokenizer_fingerprint`
        Where the ids of the queries come from.
    corpus : str, optional
        Fingerprint of the text that the index must be of; default: any.

    Raises
    ------
    FileNotFoundError
        There is no index.
    DamagedIndexError
        It was cut short or changed on disk.
    OtherTokenizerError
        It was made with another tokenizer.
    ValueError
        It is of another text.
    """
    array = opened(Path(folder))
    given, known = tokenizer_fingerprint(tokenizer), array.facts["tokenizer"]
    if given != known:
        raise OtherTokenizerError(f"the index in {str(folder)!r} was made with tokenizer {known}, these ids come from "
                                  f"tokenizer {given}: tokenize the corpus with the model's own and index it anew.")
    if corpus not in (None, array.facts["corpus"]):
        raise ValueError(f"the index in {str(folder)!r} is of text {array.facts['corpus']}, not of {corpus}.")
    return InfinityGram(array)


def _chunks(contexts: Sequence) -> Iterator[tuple[int, Sequence]]:
    return ((start, contexts[start : start + CHUNK]) for start in range(0, len(contexts), CHUNK))

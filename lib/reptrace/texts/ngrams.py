"""An n-gram model of a tokenized text, interpolated after Witten and Bell: what the last few tokens alone can tell.

    P(w | h) = (c(h w) + t(h) P(w | h')) / (c(h) + t(h)),  P(w | nothing known) = 1 / vocabulary

c counts in the text, t(h) is the number of different tokens that follow h there, h' is h without its first token. A
history that the text does not hold is passed over: the probability is that after h'.

Reference: I. H. Witten, T. C. Bell, "The zero-frequency problem", IEEE Trans. Inf. Theory 37 (1991), method C.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ORDER = 5


@dataclass(frozen=True)
class _Counts:
    """The n-grams of one length. An n-gram is one whole number, its token ids side by side; all arrays are sorted."""

    grams: np.ndarray
    times: np.ndarray
    histories: np.ndarray
    history_times: np.ndarray
    followers: np.ndarray


class NgramModel:
    """Counts of all n-grams of a text up to a length. 13 million tokens take about 4 s and 1 GB while it is made.

    Parameters
    ----------
    tokens : array of int, shape (T,)
        Training text, documents one after the other; n-grams reach across their ends, where end-of-text stands.
    vocabulary : int
        Number of token ids; `order` of them side by side must fit into 63 bits.
    order : int, default 5
        Longest n-gram: the token and the order - 1 before it.
    """

    def __init__(self, tokens, vocabulary: int, order: int = ORDER):
        self.vocabulary, self.order, self.bits = vocabulary, order, max(1, (vocabulary - 1).bit_length())
        if order < 1 or order * self.bits > 63:
            raise ValueError(f"an order from 1 to {63 // self.bits} fits a vocabulary of {vocabulary}, got {order}.")
        tokens = np.asarray(tokens, dtype=np.int64)
        if len(tokens) < order:
            raise ValueError(f"a text of {len(tokens)} tokens holds no {order}-gram.")
        if tokens.min() < 0 or tokens.max() >= vocabulary:
            raise ValueError(f"token ids must lie below the vocabulary of {vocabulary}, got {tokens.max()}.")
        self._counts, grams = [], tokens
        for n in range(1, order + 1):
            grams = grams if n == 1 else grams[:-1] << self.bits | tokens[n - 1 :]
            self._counts.append(self._counted(grams))

    def probability(self, windows) -> np.ndarray:
        """P(last token | those before it) of every row of windows, shape (N, order); -1 stands for no token."""
        windows = np.asarray(windows, dtype=np.int64)
        probability, keys, known = np.full(len(windows), 1 / self.vocabulary), 0, True
        for n, counts in enumerate(self._counts, 1):
            first = windows[:, self.order - n]
            known = known & (first >= 0)
            keys = keys | np.where(known, first, 0) << self.bits * (n - 1)
            seen, followers = (_found(counts.histories, values, keys >> self.bits)
                               for values in (counts.history_times, counts.followers))
            share = (_found(counts.grams, counts.times, keys) + followers * probability) / np.maximum(
                seen + followers, 1)
            probability = np.where(known & (seen > 0), share, probability)
        return probability

    def score(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> np.ndarray:
        """ln P(continuation | context), nats, of each (context, continuation), both lists of token ids; shape (N,)."""
        windows, owners = [], []
        for owner, (context, continuation) in enumerate(pairs):
            known = [*[-1] * self.order, *context[-self.order :], *continuation]
            ends = range(len(known) - len(continuation) + 1, len(known) + 1)
            windows += [known[end - self.order : end] for end in ends]
            owners += [owner] * len(continuation)
        if not windows:
            return np.zeros(len(pairs))
        return np.bincount(owners, np.log(self.probability(windows)), minlength=len(pairs))

    def _counted(self, grams: np.ndarray) -> _Counts:
        grams, times = np.unique(grams, return_counts=True)
        histories, starts = np.unique(grams >> self.bits, return_index=True)
        return _Counts(grams, times, histories, np.add.reduceat(times, starts), np.diff([*starts, len(grams)]))


def _found(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Values of the wanted keys; 0 where there is no such key."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)

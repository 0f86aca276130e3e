"""Token frequencies changed while the text stays: each type gets a set of ids, each occurrence one of them at random.

Types that share their set are merged: what tells them apart is lost. Types that have several ids are split into
synonyms: every occurrence becomes harder to predict by ln(number of ids) nats, for any model. Two such maps, which
keep the number V of ids:

- `flattened`: near-uniform frequencies. Frequent types are split in proportion to their counts, rare ones merged.
- `swapped`: frequencies as they were. Each occurrence is replaced by one of the g types nearest to it in frequency,
  with g set so that as much randomness is added as `flattened` adds: the control for what flattening does besides.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from reptrace.texts.probes import Probe


@dataclass(frozen=True, eq=False)
class Remapping:
    """Type i becomes one of the ids first[i], ..., first[i] + count[i] - 1, all equally likely.

    Parameters
    ----------
    first, count : integer arrays, shape (V,)
        Sets of two types are the same or share no id. The ids of one set are called a unit.
    """

    first: np.ndarray
    count: np.ndarray

    def draw(self, ids, seed: int = 0) -> np.ndarray:
        """The ids (any shape) with each occurrence replaced by one of its type's, in the same dtype."""
        ids = np.asarray(ids)
        offset = (np.random.default_rng(seed).random(ids.shape) * self.count[ids]).astype(np.int64)
        return (self.first[ids] + offset).astype(ids.dtype)

    def units(self, drawn) -> np.ndarray:
        """First id of the unit that each drawn id belongs to: the inverse of `draw`, up to merged types."""
        return self._starts[np.searchsorted(self._starts, drawn, side="right") - 1]

    def merged(self, counts) -> np.ndarray:
        """Which types share their unit with another type that occurs, shape (V,), bool."""
        occurring = np.bincount(self.first, np.asarray(counts) > 0, minlength=len(self.first))
        return occurring[self.first] > 1

    def choice_entropy(self, counts) -> float:
        """Nats a token that the random choice adds: the mean of ln count over the text's tokens."""
        return float(np.average(np.log(self.count), weights=counts))

    def probe(self, probe: Probe) -> Probe:
        """The probe with its sequences mapped, the same way each time."""
        lengths = np.cumsum([len(sequence) for sequence in probe.sequences])[:-1]
        drawn = np.split(self.draw(np.concatenate(probe.sequences)), lengths)
        return replace(probe, sequences=[sequence.tolist() for sequence in drawn])

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.unique(self.first)


def flattened(counts) -> Remapping:
    """As many ids as there were types, near-uniformly used.

    With t the mean count, a type of count c >= t gets round(c / t) ids; the types below t are merged, largest first,
    each into the bin that is emptiest so far, in as many bins as there are ids left.

    Parameters
    ----------
    counts : integer array, shape (V,)
        Occurrences of each type in the text.

    Raises
    ------
    ValueError
        Counts that are negative, of fewer than two types, or so few that no id would be left for the rare types.
    """
    counts = _checked(counts)
    mean = counts.sum() / len(counts)
    frequent = np.flatnonzero(counts >= mean)
    rare = np.flatnonzero(counts < mean)
    count = np.ones(len(counts), dtype=np.int64)
    count[frequent] = np.round(counts[frequent] / mean)
    bins = len(counts) - count[frequent].sum()
    if len(rare) and bins < 1:
        raise ValueError(f"the {len(frequent)} types above the mean count take all {len(counts)} ids, which leaves "
                         f"none for the {len(rare)} others: a larger vocabulary is needed.")
    first = np.zeros(len(counts), dtype=np.int64)
    first[frequent] = np.cumsum(count[frequent]) - count[frequent]
    emptiest = [(0, len(counts) - bins + k) for k in range(bins)]
    for kind in rare[np.argsort(-counts[rare], kind="stable")]:
        load, first[kind] = emptiest[0]
        heapq.heapreplace(emptiest, (load + int(counts[kind]), int(first[kind])))
    return Remapping(first, count)


def swapped(counts, group: int | None = None) -> Remapping:
    """The types, in order of frequency, in groups of `group` neighbours; each occurrence becomes any of its group.

    Parameters
    ----------
    counts : integer array, shape (V,)
    group : int, optional
        Default: e to the randomness that `flattened` adds, rounded, so that ln(group) is as much.
    """
    counts = _checked(counts)
    if group is None:
        group = round(np.exp(flattened(counts).choice_entropy(counts)))
    if not 1 <= group <= len(counts):
        raise ValueError(f"group must be from 1 to the {len(counts)} types, got {group}.")
    rank = np.empty(len(counts), dtype=np.int64)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    first = rank // group * group
    return Remapping(first, np.minimum(group, len(counts) - first))


NATURAL = "natural"
REMAPPINGS: dict[str, Callable[..., Remapping]] = {"flattened": flattened, "swapped": swapped}


def describe(ids, vocabulary: int, remapping: Remapping | None = None) -> dict[str, float]:
    """Statistics of a text before (None) or after a remapping, in nats.

    Parameters
    ----------
    ids : integer array, shape (N,)
        The text before it.
    vocabulary : int
        V.

    Returns
    -------
    dict
        unigram_entropy, and largest_share of one id; units that occur; merged_share: tokens whose type is merged;
        choice_entropy; bigram_entropy: H(next id | id), and bigram_accuracy of the best guess from the id before. As
        the choice is independent of all else, H(next id | id) = H(next unit | unit) + choice_entropy, and only unit
        pairs are counted: their plug-in estimate errs far less than that of id pairs would.
    """
    ids = np.asarray(ids)
    counts = np.bincount(ids, minlength=vocabulary)
    remapping = remapping or Remapping(np.arange(vocabulary), np.ones(vocabulary, dtype=np.int64))
    mass = np.bincount(remapping.first, counts, minlength=vocabulary) / counts.sum()
    size = np.ones(vocabulary, dtype=np.int64)
    size[remapping.first] = remapping.count
    choice = remapping.choice_entropy(counts)
    # a product of two vocabularies fits into memory here: V is at most a few thousand
    pairs = remapping.first[ids[:-1]] * vocabulary + remapping.first[ids[1:]]
    pairs = np.bincount(pairs, minlength=vocabulary**2).reshape(vocabulary, vocabulary)
    return {"unigram_entropy": _entropy(mass) + choice, "largest_share": float((mass / size).max()),
            "units": int((mass > 0).sum()), "merged_share": float(counts[remapping.merged(counts)].sum() / len(ids)),
            "choice_entropy": choice,
            "bigram_entropy": _entropy(pairs.ravel() / pairs.sum()) - _entropy(pairs.sum(1) / pairs.sum()) + choice,
            "bigram_accuracy": float((pairs / size).max(axis=1).sum() / pairs.sum())}


def _entropy(p) -> float:
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


def _checked(counts) -> np.ndarray:
    counts = np.asarray(counts)
    if counts.ndim != 1 or len(counts) < 2 or not np.issubdtype(counts.dtype, np.integer):
        raise ValueError("counts must be one whole number for each of two or more types, got an array of "
                         f"{counts.dtype}, shape {counts.shape}.")
    if (counts < 0).any() or not counts.any():
        raise ValueError("counts must be 0 or above, and not all 0.")
    return counts.astype(np.int64)

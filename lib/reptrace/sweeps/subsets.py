"""Geometry by number of sequences and by their length, as a part of a sweep: one pass of a checkpoint for all of it.

Subsets of sequences are free once their states are there. So are shorter lengths: the model is causal, and the state
of token n of a sequence is that of the last token of its first n.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from reptrace.measures import spectra
from reptrace.support.fingerprints import order_key
from reptrace.sweeps.jobs import Job, Opened, Part
from reptrace.sweeps.located import place
from reptrace.sweeps.measurement import facts_of
from reptrace.texts.probes import Probe

METHOD = 2
TIMES_WIDTH = (0.5, 1, 2, 4, 8, 16, 32)  # numbers of sequences, in widths of the model
DRAWS = 16  # disjoint subsets of one size at most


@dataclass(frozen=True, eq=False)
class SubsetsPart(Part):
    """RankMe and alpha of the final layer: a row a subset, and one a length.

    Columns: length (tokens), times_width (nan: all sequences), used (sequences), draw, then the geometry. Subsets of
    one size are disjoint, those of different sizes are not; the order that they are cut from is drawn by the model's
    name, so that a run's checkpoints are measured on the same ones and two runs on others.

    Parameters
    ----------
    probe : Probe; of sequences as long as the longest length, all of them
    lengths : in tokens
    ranks, batch_size : see `measurement.Settings`
    """

    probe: Probe = field(repr=False)
    lengths: tuple[int, ...]
    ranks: tuple[int, int]
    batch_size: int | str = "auto"

    def __post_init__(self):
        longest, shortest = max(self.lengths), min(map(len, self.probe.sequences))
        if longest > shortest:
            raise ValueError(f"states at {longest} tokens take sequences of so many at least, got one of {shortest}.")

    def identity(self, job: Job) -> dict:
        return {"probe": self.probe.fingerprint, "subsets_method": METHOD, "lengths": list(self.lengths),
                "ranks": list(self.ranks), "batch_size": self.batch_size, "times_width": list(TIMES_WIDTH),
                "draws": DRAWS, "device": job.opening.device, "dtype": job.opening.dtype}

    def facts(self, job: Job) -> dict:
        return {**place(job.checkpoint), "weights": job.at.weights, **facts_of(self.probe)}

    def rows(self, opened: Opened, progress: bool) -> list[dict]:
        from reptrace.models.hidden_states import FINAL, extract

        model = opened.model
        found = extract(model, self.probe.sequences, (FINAL,), self.batch_size, progress, at_lengths(self.lengths))
        device = next(model.parameters()).device
        rows = []
        for length in self.lengths:
            states = found.reduced[str(length)][FINAL].to(device if device.type == "cuda" else "cpu")
            rows.append({"length": length, "times_width": float("nan"), "used": len(states), "draw": 0,
                         **self._geometry(states)})
        states = states[order_of(opened.job.checkpoint.model, len(states))]
        for times, draw, rows_of in subsets(*states.shape):
            rows.append({"length": self.lengths[-1], "times_width": times, "used": len(rows_of), "draw": draw,
                         **self._geometry(states[rows_of.start:rows_of.stop])})
        return [{"layer": FINAL, **row} for row in rows]

    def _geometry(self, states) -> dict:
        if bool((states == states[0]).all()):  # a few short sequences of small models may end alike: no spectrum
            return {"width": states.shape[1]}
        found = spectra.geometry(states, self.ranks, shorten=True)
        fit = found.alpha
        return {"width": states.shape[1], "rankme": found.rankme, "rankme_stderr": found.rankme_stderr,
                "alpha": fit.alpha if fit else float("nan"), "alpha_stderr": found.alpha_stderr,
                "alpha_last_rank": fit.ranks[1] if fit else 0, "half_variance": found.half_variance,
                "largest_influence": found.largest_influence}


def at_lengths(lengths: Sequence[int]) -> dict:
    """Reductions of `hidden_states.extract`, by name: the state of the last token of the first so many."""
    from reptrace.models.chosen_tokens import at

    return {str(length): partial(at, length - 1) for length in lengths}


def order_of(name: str, count: int) -> np.ndarray:
    """A permutation that is the same for a name."""
    return np.random.default_rng(list(order_key("subsets", name))).permutation(count)


def subsets(count: int, width: int) -> Iterator[tuple[float, int, range]]:
    """(times the width, number of the draw, rows) of all disjoint subsets of each size that there are rows for."""
    for times in TIMES_WIDTH:
        size = round(times * width)
        for draw in range(min(DRAWS, count // size)):
            yield times, draw, range(draw * size, (draw + 1) * size)

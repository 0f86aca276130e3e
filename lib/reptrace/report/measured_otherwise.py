"""Whether a run shows the same phases, at the same places, when it is measured otherwise: at another layer, on others.

Three answers, as of `phases.claims`: "yes", "no" and "undecided". That a phase is not seen is no "no": noise may hide
it. It is one where the curve surely moves the other way between the places at which it should.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from reptrace.measures.phases import MOVES, Phases, at_one_place, critical_value, phases_of, times_later
from reptrace.report.said import NO, UNDECIDED, YES, together

TURNS = {"collapse_end": ("collapse", "expansion"), "turn": ("expansion", "compression")}  # with the moves around each


def all_phases(table: pd.DataFrame, known: Phases) -> str:
    """Whether a trajectory falls, rises and falls again, each beyond its uncertainty.

    known : phases of the run as it is usually measured, at the same checkpoints. "no": between two of their turns this
        trajectory surely moves the other way.
    """
    found = phases_of(table)
    if all(sure(found, move) for move in MOVES):
        return YES
    return NO if any(not sure(found, move) and _against(table, known, move) for move in MOVES) else UNDECIDED


def same_place(table: pd.DataFrame, known: Phases, which: str) -> str:
    """Whether a trajectory has one of the two turns of `known` (see `TURNS`) where that has it: `at_one_place`.

    Where `known` has none, nothing can be said. Where the trajectory has none, "no" if it surely moves the other way.
    """
    turn, usual = getattr(phases_of(table), which), getattr(known, which)
    if usual and not turn:
        return NO if any(_against(table, known, move) for move in TURNS[which]) else UNDECIDED
    return at_one_place(turn, usual)


def both_places(table: pd.DataFrame, known: Phases) -> str:
    """The same of both turns together."""
    return together(same_place(table, known, which) for which in TURNS)


def moved(table: pd.DataFrame, known: Phases, which: str) -> float:
    """A trajectory's turn and the same one of `known`: see `times_later`."""
    return times_later(getattr(phases_of(table), which), getattr(known, which))


def by_layer(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Rows of each layer, from the embeddings (0) to the last block and then "final", in order of checkpoints."""
    names = sorted(table.layer.dropna().unique(), key=lambda layer: (layer == "final", len(layer), layer))
    return {name: table[table.layer == name].reset_index(drop=True) for name in names}


def parts_of_depth(layers: Iterable[str]) -> Mapping[str, list[str]]:
    """Layers by what they are, the same for models of any depth; a part without layers is left out."""
    blocks = [layer for layer in layers if layer not in ("0", "final")]
    parts = {"embeddings": ["0"], "blocks before the last": blocks[:-1], "last block": blocks[-1:],
             "final norm": ["final"]}
    return {name: its for name, its in parts.items() if its}


def stderr_ratios(table: pd.DataFrame, quantity: str) -> pd.Series:
    """Standard deviation of a quantity over disjoint subsets, over the standard error stated of one: by their size.

    table : of `other_probes.by_subsets`, one run; squares are averaged over checkpoints. nan of fewer than two subsets.
    """
    drawn = table.dropna(subset=["times_width", quantity])
    each = drawn.groupby(["times_width", "tokens"])
    of_subsets = each[quantity].var(ddof=1).groupby("times_width").mean()
    stated = each[f"{quantity}_stderr"].agg(lambda errors: np.mean(np.square(errors))).groupby("times_width").mean()
    return np.sqrt(of_subsets / stated)


def sure(found: Phases, move: str) -> bool:
    """Whether a move is seen, with an interval on the right side of 1."""
    change = getattr(found, move)
    if change is None:
        return False
    return change.interval[0] > 1 if move == "expansion" else change.interval[1] < 1


def _against(table: pd.DataFrame, known: Phases, move: str) -> bool:
    """Whether between the ends of a move of `known` the values surely change the other way."""
    ends = _ends(known).get(move)
    if ends is None:
        return False
    at = [np.abs(table.tokens - min(tokens, table.tokens.max())).argmin() for tokens in ends]
    (before, after), errors = table.rankme.iloc[at], table.rankme_stderr.iloc[at]
    rises = (after - before) / np.hypot(*errors)
    return bool((-rises if move == "expansion" else rises) > critical_value(len(table)))


def _ends(known: Phases) -> dict[str, tuple[float, float]]:
    """Tokens at which each move that is seen begins and ends; the last lasts to the end of the run."""
    low, high = known.collapse_end, known.turn
    found = {}
    if low:
        found["collapse"] = (0.0, low.tokens)
    if low and high:
        found["expansion"] = (low.tokens, high.tokens)
    if high:
        found["compression"] = (high.tokens, float("inf"))
    return found

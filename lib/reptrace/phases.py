"""From a trajectory to its phases: warmup (collapse), entropy-seeking (expansion), compression-seeking.

A trajectory is cut into moves, up or down in turn. A turn is taken only where the value afterwards moves away from it
by more than noise alone would: the largest studentized fall of a trajectory that never falls (constant or rising; the
constant one is the hardest case) stays below `critical_value` in 95 of 100 trajectories of that length, and likewise
for rises. So missing phases are not invented, and the number of moves is not chosen by the reader. Moves that are real
but small against both their neighbours, as training makes them, do not cut a phase in two.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import numpy as np

LEVEL = 0.95
PHASES = ("warmup", "entropy-seeking", "compression-seeking")
# A move smaller than this share of the moves before and after it (logarithms of ratios) belongs to them.
WIGGLE = 0.2


@dataclass(frozen=True)
class Turn:
    """An extreme between two moves. `interval` (tokens) reaches to the nearest checkpoints, on either side, that differ
    from the extreme by more than noise: between them the true turn may lie anywhere. An end is that of the trajectory
    where no such checkpoint follows (`open` says which sides: "", "left", "right" or "both")."""

    tokens: float
    value: float
    stderr: float
    index: int
    interval: tuple[float, float]
    open: str


@dataclass(frozen=True)
class Change:
    """From one turn to the next: value at the end over value at the start, with an interval that holds the true ratio
    in 95 of 100 trajectories or more, although both ends were picked for being extreme."""

    ratio: float
    interval: tuple[float, float]

    def verdict(self, threshold: float) -> str:
        """Whether the ratio lies beyond a threshold (below one under 1, above one over 1): "yes", "no", "undecided"."""
        low, high = self.interval if threshold <= 1 else (1 / self.interval[1], 1 / self.interval[0])
        bound = threshold if threshold <= 1 else 1 / threshold
        return "yes" if high < bound else "no" if low > bound else "undecided"


@dataclass(frozen=True)
class Phases:
    """Turns and moves of a trajectory of RankMe (or of anything that first falls, then rises, then falls).

    Attributes
    ----------
    collapse_end : Turn or None
        Minimum between collapse and expansion; None where the value does not fall and then rise by more than noise.
    turn : Turn or None
        Maximum between expansion and compression; None where no fall follows.
    collapse, expansion, compression : Change or None
        Highest value before the minimum to the minimum; minimum to maximum (or last); maximum to the lowest value after
        it. None: not seen.
    spans : list of (phase, first index, last index)
        For shading and line styles; consecutive spans share their turn. A value that rises again after compression by
        more than noise starts a span called "later".
    """

    collapse_end: Turn | None
    turn: Turn | None
    collapse: Change | None
    expansion: Change | None
    compression: Change | None
    spans: list[tuple[str, int, int]]

    def row(self) -> dict:
        """Turns and ratios as one flat row of a table; nan where a phase was not seen."""
        none = float("nan")
        row = {}
        for name in ("collapse_end", "turn"):
            turn = getattr(self, name)
            low, high = turn.interval if turn else (none, none)
            row |= {f"{name}_tokens": turn.tokens if turn else none, f"{name}_low": low, f"{name}_high": high,
                    f"{name}_value": turn.value if turn else none, f"{name}_open": turn.open if turn else ""}
        for name in ("collapse", "expansion", "compression"):
            change = getattr(self, name)
            low, high = change.interval if change else (none, none)
            row |= {f"{name}_ratio": change.ratio if change else none, f"{name}_ratio_low": low,
                    f"{name}_ratio_high": high}
        return row


def claims(phases: Phases) -> dict[str, str]:
    """The paper's three claims about one run, each decided by an interval: "yes", "no", "undecided" or "not seen"."""
    thresholds = {"collapse": 0.5, "expansion": 2.0, "compression": 1.0}
    changes = {name: getattr(phases, name) for name in thresholds}
    return {name: changes[name].verdict(bound) if changes[name] else "not seen" for name, bound in thresholds.items()}


def turn_exponent(parameters, turns, low, high, draws: int = 10_000, seed: int = 0) -> tuple[float, float, float]:
    """Exponent b of turn ~ parameters^b over several models, and a range for it: (b, low, high).

    b = 0: the turn comes at a fixed number of tokens; b = 1: at a fixed number of tokens per parameter. ln turn is
    regressed on ln parameters. For the range, 95 % of `draws`, each model's turn is that of a random run of its size,
    drawn log-uniformly from its interval [low, high] (tokens, above 0). Nan with fewer than two sizes.
    """
    table = np.array([parameters, turns, low, high], dtype=float)
    parameters = table[0]
    if len(np.unique(parameters)) < 2:
        return float("nan"), float("nan"), float("nan")
    if not (table > 0).all():
        raise ValueError("parameters, turns and the ends of their intervals must be positive.")
    x, y, low, high = np.log(table)
    rng = np.random.default_rng(seed)
    alike = [np.flatnonzero(parameters == size) for size in parameters]
    chosen = np.array([rng.choice(runs, draws) for runs in alike])
    drawn = rng.uniform(low[chosen], high[chosen])
    slopes = np.polyfit(x, drawn, 1)[0]
    return float(np.polyfit(x, y, 1)[0]), *(float(q) for q in np.quantile(slopes, [0.025, 0.975]))


def find_phases(tokens, values, stderr, level: float = LEVEL) -> Phases:
    """Detect the phases of one trajectory.

    Parameters
    ----------
    tokens : array, shape (n,), increasing
        Training tokens seen (or steps).
    values, stderr : array, shape (n,), positive
        The quantity (RankMe) and its standard error at each checkpoint. Gaps (nan) are left out; with fewer than three
        values, no phase is seen.
    level : float, default 0.95
        Share of trajectories without a fall in which none is found, and of those without a rise, each; also the level
        of the intervals.

    Notes
    -----
    Checkpoints are treated as independent given the curve. They share the probe's sequences, so that differences
    between them are in truth better known than assumed: the test errs towards finding nothing. Differences between
    training seeds are not covered; run several.
    """
    tokens, values, stderr = (np.asarray(column, dtype=float) for column in (tokens, values, stderr))
    if not tokens.ndim == values.ndim == stderr.ndim == 1 or not len(tokens) == len(values) == len(stderr):
        raise ValueError("tokens, values and stderr must be lists of one length, got shapes "
                         f"{tokens.shape}, {values.shape}, {stderr.shape}.")
    present = np.flatnonzero(np.isfinite(values))
    if len(present) < 3:
        return Phases(None, None, None, None, None, [])
    t, y, se = tokens[present], values[present], stderr[present]
    if not (np.diff(t) > 0).all() or (y <= 0).any() or not (se > 0).all():
        raise ValueError("tokens must increase, values and standard errors must be positive.")
    threshold = critical_value(len(t), level)
    indices, directions = _merge_wiggles(y, *_extremes(y, se, threshold))

    def turn(position: int) -> Turn:
        return _turn(t, y, se, indices, position, threshold, present)

    def change(start: int, end: int) -> Change:
        return _change(y, se, indices[start], indices[end], threshold)

    # indices: start of the first move, turns between moves, end of the last move
    down_first = bool(directions) and directions[0] < 0
    up = 1 if down_first else 0  # position of the upward move, if there is one
    has_up = len(directions) > up and directions[up] > 0
    has_down = has_up and len(directions) > up + 1
    if has_down:  # compression goes on to the lowest value after the turn, whatever happens on the way
        lowest = up + 2 + int(np.argmin(y[indices[up + 2 :]]))
        indices, directions = indices[: up + 2] + indices[lowest:], directions[: up + 2] + directions[lowest:]
    names = [*(["warmup"] if down_first else []), *PHASES[1:], "later"]
    last_names = ["later"] * len(directions)
    spans = [(name, int(present[0 if k == 0 else indices[k]]),
              int(present[len(y) - 1 if k == len(directions) - 1 else indices[k + 1]]))
             for k, name in enumerate((names + last_names)[: len(directions)])]
    return Phases(
        collapse_end=turn(up) if down_first and has_up else None,
        turn=turn(up + 1) if has_down else None,
        collapse=change(0, 1) if down_first else None,
        expansion=change(up, up + 1) if has_up else None,
        compression=change(up + 1, up + 2) if has_down else None,
        spans=spans)


def elsewhere(phases: Phases, tokens, others) -> Phases:
    """The same phases for a table with other checkpoints of the run: spans by the nearest of them.

    `tokens` are those of the trajectory in which the phases were found, `others` those of the other table, increasing.
    """
    tokens, others = np.asarray(tokens, float), np.asarray(others, float)
    nearest = [int(np.abs(others - at).argmin()) for at in tokens]
    spans = [(name, nearest[first], nearest[last]) for name, first, last in phases.spans]
    return replace(phases, spans=[span for span in spans if span[1] < span[2]])


@cache
def critical_value(n: int, level: float = LEVEL, draws: int = 20_000) -> float:
    """Quantile of the largest (y_i - y_j) / sqrt(se_i^2 + se_j^2), i < j, over n points of pure noise of equal error.

    By simulation with a fixed seed. Testing for a fall, the constant trajectory is the least favourable among those
    that never fall, so the level holds for all of them; likewise for a rise.
    """
    noise = np.random.default_rng(0).standard_normal((draws, n))
    falls = (np.maximum.accumulate(noise, axis=1) - noise).max(axis=1) / np.sqrt(2)
    return float(np.quantile(falls, level))


def _extremes(y, se, threshold: float) -> tuple[list[int], list[int]]:
    """Positions of the extremes (start of the first move, turns, end of the last move) and the moves' directions."""
    extremes, directions = [], []
    low = high = candidate = 0
    for k in range(1, len(y)):
        if not directions:
            low, high = (k if y[k] < y[low] else low), (k if y[k] > y[high] else high)
            if _apart(y, se, high, k, threshold) and y[k] < y[high]:
                extremes, directions, candidate = [high], [-1], k
            elif _apart(y, se, low, k, threshold) and y[k] > y[low]:
                extremes, directions, candidate = [low], [1], k
        elif directions[-1] * (y[k] - y[candidate]) > 0:
            candidate = k
        elif _apart(y, se, candidate, k, threshold):
            extremes.append(candidate)
            directions.append(-directions[-1])
            candidate = k
    return [*extremes, candidate], directions


def _merge_wiggles(y, indices: list[int], directions: list[int]) -> tuple[list[int], list[int]]:
    """Join moves smaller than WIGGLE of both neighbours to these, the smallest first; a first move, of the second.

    The last move stays: it has no later neighbour to be judged by, and may be the compression that has just begun.
    """
    indices = list(indices)
    while len(indices) > 2:
        sizes = np.abs(np.diff(np.log(y[indices])))
        inner = [(sizes[k], k) for k in range(1, len(sizes) - 1) if sizes[k] < WIGGLE * min(sizes[k - 1], sizes[k + 1])]
        if inner:
            k = min(inner)[1]
            del indices[k : k + 2]
        elif sizes[0] < WIGGLE * sizes[1]:
            del indices[0]
        else:
            break
    return indices, [int(np.sign(y[j] - y[i])) for i, j in pairwise(indices)] if directions else []


def _apart(y, se, i: int, j: int, threshold: float) -> bool:
    return abs(y[i] - y[j]) > threshold * np.hypot(se[i], se[j])


def _turn(t, y, se, indices: list[int], position: int, threshold: float, present) -> Turn:
    at = indices[position]
    left = next((k for k in range(at - 1, -1, -1) if _apart(y, se, at, k, threshold)), None)
    right = next((k for k in range(at + 1, len(y)) if _apart(y, se, at, k, threshold)), None)
    open_sides = {(False, False): "", (True, False): "left", (False, True): "right", (True, True): "both"}
    return Turn(float(t[at]), float(y[at]), float(se[at]), int(present[at]),
                (float(t[left or 0]), float(t[-1 if right is None else right])),
                open_sides[(left is None, right is None)])


def _change(y, se, start: int, end: int, threshold: float) -> Change:
    log_ratio = np.log(y[end] / y[start])
    # Extremes are picked for being extreme, so the interval is as wide as the threshold that they had to pass.
    half_width = threshold * np.hypot(se[start] / y[start], se[end] / y[end])
    return Change(float(np.exp(log_ratio)),
                  (float(np.exp(log_ratio - half_width)), float(np.exp(log_ratio + half_width))))

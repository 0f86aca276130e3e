"""From a trajectory to its phases: warmup (collapse), entropy-seeking (expansion), compression-seeking.

A trajectory is cut into moves, up or down in turn. A turn is taken only where the value afterwards moves away from it
by more than noise alone would: the largest fall, in units of its standard error, of a trajectory that never falls
(constant or rising; the constant one is the hardest case) stays below `critical_value` in 95 of 100 trajectories of
that length, and likewise for rises. So missing phases are not invented, and the number of moves is not chosen by the
reader.

Noise decides which moves are real; size decides which of them are phases. Training makes moves of its own, and the
better a trajectory is measured, the more of them are real. The phases are the fall, the rise and the fall that are
together the largest, where the rise starts at the lowest value before its end and ends at the highest after its start.
All other real reversals are wiggles, and are reported as such. So is a last fall no larger than a wiggle before it that
lasted at least as long; one that was over sooner, a loss spike, does not count against it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from itertools import combinations, pairwise

import numpy as np
import pandas as pd

LEVEL = 0.95
PHASES = ("warmup", "entropy-seeking", "compression-seeking")
MOVES = ("collapse", "expansion", "compression")  # what RankMe does in each, and its attribute of `Phases`
UPWARD = ("entropy-seeking", "later")
# In logarithms of ratios: a rise smaller than this share of the falls around it, added up, is a wiggle of one long
# fall; a first fall smaller than this share of the rise after it, a wiggle before that. Not so a lasting factor of two.
WIGGLE, DOUBLE = 0.25, np.log(2)
# A trajectory in which no two values are surely apart by this factor has wiggles only.
FLAT = 1.25


@dataclass(frozen=True)
class Turn:
    """An extreme between two moves. `interval` (tokens) holds all checkpoints of the two that are as extreme within
    noise, those beyond a wiggle too, and reaches to the nearest on either side that is not: between them the true turn
    may lie anywhere. An end is that of the trajectory where no such checkpoint follows (`open` says which sides: "",
    "left", "right" or "both")."""

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
class Wiggle:
    """A reversal that is larger than noise and no phase: indices and tokens of its first and its last checkpoint, and
    the value at the last over that at the first. A fall within the expansion is one, however large, where the value
    comes back later, and a last fall is one if it is no larger than one before it that lasted as long or longer; so is
    a reversal within another wiggle."""

    first: int
    last: int
    tokens: tuple[float, float]
    ratio: float


@dataclass(frozen=True)
class Phases:
    """Turns and moves of a trajectory of RankMe (or of anything that first falls, then rises, then falls).

    Attributes
    ----------
    collapse_end : Turn or None
        Minimum between collapse and expansion; None where one of the two is not seen.
    turn : Turn or None
        Maximum between expansion and compression; None where one of the two is not seen.
    collapse, expansion, compression : Change or None
        Highest value before the minimum to the minimum; minimum to the highest value after it; maximum to the lowest
        value after it, or, where the curve was back at the maximum within noise after that, to the lowest value from
        then on. None: not seen.
    spans : list of (phase, first index, last index)
        For shading and line styles; consecutive spans share their turn. A value that rises again after compression by
        more than noise starts a span called "later".
    wiggles : list of Wiggle
        Reversals within the spans, in order of their first checkpoint.
    growth : Change or None
        First value to the highest after the minimum: what the expansion adds to where the run began. None without an
        expansion.
    highest : Turn or None
        Maximum after the minimum, whether a fall follows (then it is `turn`) or not yet. None without an expansion.
    """

    collapse_end: Turn | None
    turn: Turn | None
    collapse: Change | None
    expansion: Change | None
    compression: Change | None
    spans: list[tuple[str, int, int]]
    wiggles: list[Wiggle] = field(default_factory=list)
    growth: Change | None = None
    highest: Turn | None = None

    @property
    def largest_wiggle(self) -> Wiggle | None:
        """The one whose ratio is farthest from one, by its logarithm; None without any."""
        return max(self.wiggles, key=lambda wiggle: abs(np.log(wiggle.ratio)), default=None)

    def row(self) -> dict:
        """Turns, ratios and wiggles (how many, the largest one's ratio) as one flat row of a table; nan: not seen."""
        none = float("nan")
        row = {}
        for name in ("collapse_end", "turn"):
            turn = getattr(self, name)
            low, high = turn.interval if turn else (none, none)
            row |= {f"{name}_tokens": turn.tokens if turn else none, f"{name}_low": low, f"{name}_high": high,
                    f"{name}_value": turn.value if turn else none, f"{name}_open": turn.open if turn else ""}
        for name in MOVES:
            change = getattr(self, name)
            low, high = change.interval if change else (none, none)
            row |= {f"{name}_ratio": change.ratio if change else none, f"{name}_ratio_low": low,
                    f"{name}_ratio_high": high}
        return row | {"wiggles": len(self.wiggles),
                      "largest_wiggle_ratio": self.largest_wiggle.ratio if self.wiggles else none}


def claims(phases: Phases) -> dict[str, str]:
    """The paper's three claims about one run, each decided by an interval: "yes", "no", "undecided" or "not seen"."""
    thresholds = {"collapse": 0.5, "expansion": 2.0, "compression": 1.0}
    changes = {name: getattr(phases, name) for name in thresholds}
    return {name: changes[name].verdict(bound) if changes[name] else "not seen" for name, bound in thresholds.items()}


def find_phases(tokens, values, stderr, level: float = LEVEL) -> Phases:
    """Detect the phases of one trajectory.

    Parameters
    ----------
    tokens : array, shape (n,), increasing
        Training tokens seen (or steps).
    values, stderr : array, shape (n,), positive and finite
        The quantity (RankMe) and its standard error at each checkpoint. Gaps (nan among the values) are left out; with
        fewer than three values, no phase is seen.
    level : float, default 0.95
        Share of trajectories without a fall in which none is found, and of those without a rise, each; also the level
        of the intervals.

    Notes
    -----
    With logarithms of values. The rise goes from a minimum, the lowest value before its maximum, to this maximum, the
    highest value after its minimum; of all such rises that one is taken which, together with the largest fall to it and
    the largest fall from it, is the largest; what is no phase does not count. A rise is none, a wiggle of one long
    fall, if it is smaller than a quarter of the two falls added up and does not double the value. A first fall is none
    if it is smaller than a quarter of the rise and does not halve the value. The last fall has no later neighbour to be
    judged by, so the run's own reversals of at least its duration judge it: it is a phase only if it is larger than
    every wiggle before the turn that lasted at least as many checkpoints as it has lasted. A wiggle lasts from its
    extreme to the first checkpoint that has regained it, the last fall from the turn to the last checkpoint. It must
    last, too: where it stays above the minimum and a later value is as high as the maximum within noise, it is undone:
    a wiggle, after which a last fall is counted anew, from the last such value, and judged by this wiggle too. Where no
    two values are surely apart by a factor of `FLAT`, all moves are wiggles.

    Checkpoints are treated as independent given the curve. They share the probe's sequences, so that differences
    between them are in truth better known than assumed: noise passes for a move less often than the level says, and
    small moves are missed that a comparison of the same sequences would find. Only noise is tested, not the curve: a
    run that dips at its end by more than noise, and never did before for so long, has a last fall, however small.
    A spike to a new minimum or maximum of the run moves the turns there. Differences between training seeds are not
    covered; run several.
    """
    tokens, values, stderr = (np.asarray(column, dtype=float) for column in (tokens, values, stderr))
    if not tokens.ndim == values.ndim == stderr.ndim == 1 or not len(tokens) == len(values) == len(stderr):
        raise ValueError("tokens, values and stderr must be lists of one length, got shapes "
                         f"{tokens.shape}, {values.shape}, {stderr.shape}.")
    present = np.flatnonzero(~np.isnan(values))
    _check_level(level)
    t, y, se = tokens[present], values[present], stderr[present]
    for expected, column, right in (
            ("tokens must increase and be finite", t, np.r_[-np.inf, t[:-1]] < t),
            ("values must be positive and finite, or nan for a gap", y, y > 0),
            ("stderr must be positive and finite wherever there is a value", se, se > 0)):
        for k in np.flatnonzero(~(right & np.isfinite(column))):
            raise ValueError(f"{expected}, got {column[k]:g} at index {present[k]}.")
    if len(present) < 3:
        return Phases(None, None, None, None, None, [])
    curve = _Curve(t, y, se, critical_value(len(t), level), present)
    extremes = curve.extremes()
    if len(extremes) < 2:
        return Phases(None, None, None, None, None, [])
    start, low, high, end = _three_moves(curve, extremes)
    moves = [move for move in zip(PHASES, (start, low, high), (low, high, end), strict=True) if move[1] < move[2]]
    if high < end < extremes[-1]:
        moves.append(("later", end, extremes[-1]))
    return Phases(
        collapse_end=curve.turn(low, start, high) if start < low < high else None,
        turn=curve.turn(high, low, end) if low < high < end else None,
        collapse=curve.change(start, low) if start < low else None,
        expansion=curve.change(low, high) if low < high else None,
        compression=curve.change(high, end) if high < end else None,
        spans=_spans(moves, present),
        wiggles=_wiggles(curve, extremes, moves),
        growth=curve.change(0, high) if low < high else None,
        highest=curve.turn(high, low, end) if low < high else None)


def phases_of(table: pd.DataFrame) -> Phases:
    """Those of RankMe; columns tokens, rankme, rankme_stderr, a row a checkpoint in order."""
    return find_phases(table.tokens, table.rankme, table.rankme_stderr)


def phases_of_alpha(table: pd.DataFrame) -> Phases:
    """Those of 1 / alpha, whose minimum is alpha's peak; columns tokens, alpha, alpha_stderr."""
    return find_phases(table.tokens, 1 / table.alpha, table.alpha_stderr / table.alpha**2)


def at_one_place(one: Turn | None, other: Turn | None) -> str:
    """Whether two turns are at one place, "yes" or "no": their intervals overlap. "undecided" where one is not seen.

    At the same checkpoints they do if the turns lie within one checkpoint, as an interval reaches to the neighbours.
    """
    if not (one and other):
        return "undecided"
    (a, b), (c, d) = one.interval, other.interval
    return "yes" if max(a, c) <= min(b, d) else "no"


def times_later(one: Turn | None, other: Turn | None) -> float:
    """Tokens at one turn over those at the other; nan where one of them is not seen, or the other is at 0 tokens."""
    return one.tokens / other.tokens if one and other and other.tokens else float("nan")


def elsewhere(phases: Phases, tokens, others) -> Phases:
    """The same phases for a table with other checkpoints of the run: spans by the nearest of them.

    `tokens` are those of the trajectory in which the phases were found, `others` those of the other table, increasing.
    Wiggles likewise; their tokens and ratios stay those of the trajectory. What shrinks to one checkpoint is left out;
    a table without checkpoints has no spans.
    """
    tokens, others = np.asarray(tokens, float), np.asarray(others, float)
    if not len(tokens) or not len(others):
        return replace(phases, spans=[], wiggles=[])
    nearest = [int(np.abs(others - at).argmin()) for at in tokens]
    spans = [(name, nearest[first], nearest[last]) for name, first, last in phases.spans]
    wiggles = [replace(wiggle, first=nearest[wiggle.first], last=nearest[wiggle.last]) for wiggle in phases.wiggles]
    return replace(phases, spans=[span for span in spans if span[1] < span[2]],
                   wiggles=[wiggle for wiggle in wiggles if wiggle.first < wiggle.last])


@cache
def critical_value(n: int, level: float = LEVEL, draws: int = 20_000) -> float:
    """Quantile of the largest (y_i - y_j) / sqrt(se_i^2 + se_j^2), i < j, over n points of pure noise of equal error.

    By simulation with a fixed seed. Testing for a fall, the constant trajectory is the least favourable among those
    that never fall, so the level holds for all of them; likewise for a rise.
    """
    _check_level(level)
    noise = np.random.default_rng(0).standard_normal((draws, n))
    falls = (np.maximum.accumulate(noise, axis=1) - noise).max(axis=1) / np.sqrt(2)
    return float(np.quantile(falls, level))


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level is a share between 0 and 1, like 0.95, got {level!r}.")


@dataclass(frozen=True, eq=False)
class _Curve:
    """A trajectory without its gaps: tokens, values and their errors, the critical value, indices in the table."""

    t: np.ndarray
    y: np.ndarray
    se: np.ndarray
    threshold: float
    present: np.ndarray

    @property
    def x(self) -> np.ndarray:
        return np.log(self.y)

    def apart(self, i: int, j: int) -> bool:
        return abs(self.y[i] - self.y[j]) > self.threshold * np.hypot(self.se[i], self.se[j])

    def extremes(self) -> list[int]:
        """Start of the first move, turns and end of the last one, lows and highs in turn; empty without a move."""
        y, found, direction = self.y, [], 0
        low = high = candidate = 0
        for k in range(1, len(y)):
            if not direction:
                low, high = (k if y[k] < y[low] else low), (k if y[k] > y[high] else high)
                if self.apart(high, k) and y[k] < y[high]:
                    found, direction, candidate = [high], -1, k
                elif self.apart(low, k) and y[k] > y[low]:
                    found, direction, candidate = [low], 1, k
            elif direction * (y[k] - y[candidate]) > 0:
                candidate = k
            elif self.apart(candidate, k):
                found.append(candidate)
                direction, candidate = -direction, k
        return [*found, candidate] if direction else []

    def change(self, start: int, end: int) -> Change:
        log_ratio = np.log(self.y[end] / self.y[start])
        # Extremes are picked for being extreme, so the interval is as wide as the threshold that they had to pass.
        half_width = self.threshold * np.hypot(self.se[start] / self.y[start], self.se[end] / self.y[end])
        return Change(float(np.exp(log_ratio)),
                      (float(np.exp(log_ratio - half_width)), float(np.exp(log_ratio + half_width))))

    def turn(self, at: int, first: int, last: int) -> Turn:
        """The extreme `at` with its interval, between the start of the move to it and the end of the move from it."""
        alike = [k for k in range(first, last + 1) if not self.apart(at, k)]
        left = next((k for k in range(alike[0] - 1, -1, -1) if self.apart(at, k)), None)
        right = next((k for k in range(alike[-1] + 1, len(self.y)) if self.apart(at, k)), None)
        open_sides = {(False, False): "", (True, False): "left", (False, True): "right", (True, True): "both"}
        return Turn(float(self.t[at]), float(self.y[at]), float(self.se[at]), int(self.present[at]),
                    (float(self.t[left or 0]), float(self.t[-1 if right is None else right])),
                    open_sides[(left is None, right is None)])


def _three_moves(curve: _Curve, extremes: list[int]) -> tuple[int, int, int, int]:
    """Start of the first fall, of the rise, of the last fall, and its end; two are the same where a move is missing.

    By the rules in the notes of `find_phases`. Where there is no rise, the largest fall is the first.
    """
    x = curve.x
    lowest, highest = (pick(extremes, key=lambda k: x[k]) for pick in (min, max))
    if curve.change(highest, lowest).verdict(1 / FLAT) != "yes":
        return (extremes[0],) * 4
    found = [moves for low in extremes if (moves := _moves_around(curve, extremes, low))]
    if found:
        return max(found, key=lambda four: x[four[0]] + 2 * (x[four[2]] - x[four[1]]) - x[four[3]])
    start, low = max(combinations(extremes, 2), key=lambda pair: x[pair[0]] - x[pair[1]])
    return start, low, low, low


def _moves_around(curve: _Curve, extremes: list[int], low: int) -> tuple[int, int, int, int] | None:
    """The three moves whose rise starts at this extreme; None where it is no minimum, or where the rise is small."""
    x, last = curve.x, extremes[-1]

    def pick(choice, begin: int, end: int) -> int:
        return choice((k for k in extremes if begin <= k <= end), key=lambda k: x[k])

    start, high = pick(max, 0, low), pick(max, low, last)
    # What comes after the rise counts as it is, real or not: else what is found would hang on how well that is known.
    fall, rise, back = x[start] - x[low], x[high] - x[low], x[high] - x[high:].min()
    if low != pick(min, 0, high) or rise < min(WIGGLE * (fall + back), DOUBLE):
        return None
    if fall < min(WIGGLE * rise, DOUBLE):
        start = low
    return start, low, high, _last_fall(curve, extremes, low if start < low else extremes[0], low, high)


def _last_fall(curve: _Curve, extremes: list[int], foot: int, low: int, high: int) -> int:
    """End of the fall from `high`, or `high` where it is no phase, judged by the reversals down to `foot` and up from
    there. A fall that is undone is one of these; the last fall is then what follows it."""
    x, top = curve.x, high
    end = min((k for k in extremes if k >= high), key=lambda k: x[k])
    alike = max(k for k in range(high, len(x)) if not curve.apart(high, k))
    if end < alike and x[end] > x[low]:
        top, end = alike, min((k for k in extremes if k == high or k > alike), key=lambda k: x[k])
    lasting = len(x) - 1 - top
    before = max(_setback(-x, [k for k in extremes if k <= foot], lasting),
                 _setback(x, [*(k for k in extremes if foot <= k < top), top], lasting))
    return end if x[high] - x[end] > before else high


def _setback(x: np.ndarray, part: list[int], lasting: int) -> float:
    """Largest fall between these extremes of a rising curve that lasted so many checkpoints or more: from the extreme
    before it to the first checkpoint that is as high again, or to the last of these extremes."""
    largest = 0.0
    for first, after in pairwise(part):
        regained = next((k for k in range(after, part[-1]) if x[k] >= x[first]), part[-1])
        if regained - first >= lasting:
            largest = max(largest, x[first] - min(x[k] for k in part if first <= k <= regained))
    return largest


def _spans(moves: list[tuple[str, int, int]], present) -> list[tuple[str, int, int]]:
    """Moves as spans of the table: the first from its first value, the last to its last value."""
    cuts = [0, *(first for _, first, _ in moves[1:]), len(present) - 1]
    return [(name, int(present[first]), int(present[last]))
            for (name, _, _), first, last in zip(moves, cuts, cuts[1:], strict=False)]


def _wiggles(curve: _Curve, extremes: list[int], moves: list[tuple[str, int, int]]) -> list[Wiggle]:
    """Reversals within each phase, the first taken from the first extreme, the last to the last; without phases, all.

    By persistence: a move between two larger ones is a wiggle and is taken out, which joins these, and so on; of the
    moves that are left, those are wiggles that go against their phase.
    """
    x, found = curve.x, []
    cuts = [extremes[0], *(first for _, first, _ in moves[1:]), extremes[-1]]
    names = [name for name, _, _ in moves] or [None]
    for name, first, last in zip(names, cuts[:-1], cuts[1:], strict=True):
        part = [k for k in extremes if first <= k <= last]
        while True:
            sizes = np.abs(np.diff(x[part]))
            k = next((k for k in range(1, len(sizes) - 1) if sizes[k] <= min(sizes[k - 1], sizes[k + 1])), None)
            if k is None:
                break
            found.append((part[k], part[k + 1]))
            del part[k : k + 2]
        upward = name in UPWARD
        found += [(i, j) for i, j in pairwise(part) if name is None or (x[j] > x[i]) != upward]
    return [Wiggle(int(curve.present[i]), int(curve.present[j]), (float(curve.t[i]), float(curve.t[j])),
                   float(curve.y[j] / curve.y[i])) for i, j in sorted(found)]

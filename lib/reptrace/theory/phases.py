"""Phases of trajectories that carry no noise, and the share of the seeds that show them.

Measured trajectories, which are noisy and have standard errors, are `measures.phases`' business.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest


@dataclass(frozen=True)
class Phases:
    """Phases of trajectories of RankMe, each field an array over them (a single number for one trajectory).

    Attributes
    ----------
    collapse_end, turn : int
        Index of the minimum that ends the collapse, and of the maximum after it; -1 where RankMe never grows.
    fall_end : int
        Index of the lowest value after the turn; -1 as above.
    any_turn : int
        Index of the value that `any_fall` falls from; -1 where there is none.
    collapse : float
        1 - minimum / highest value before it. Where RankMe never grows, of the lowest value.
    expansion : float
        Maximum / minimum - 1.
    fall : float
        1 - lowest value after the maximum / maximum.
    remaining : float
        1 - last value / maximum: what is left of the fall at the end.
    any_fall : float
        The largest relative fall below the highest value since the minimum, once the expansion is seen, outgrown later
        or not; so at least `fall`.
    shows_collapse, shows_expansion, shows_fall, lasts, shows_any_fall : bool
        Whether each is larger than the size asked for; all False where the trajectory holds a nan.
    """

    collapse_end: np.ndarray
    turn: np.ndarray
    fall_end: np.ndarray
    any_turn: np.ndarray
    collapse: np.ndarray
    expansion: np.ndarray
    fall: np.ndarray
    remaining: np.ndarray
    any_fall: np.ndarray
    shows_collapse: np.ndarray
    shows_expansion: np.ndarray
    shows_fall: np.ndarray
    lasts: np.ndarray
    shows_any_fall: np.ndarray

    @property
    def all_three(self) -> np.ndarray:
        return self.shows_collapse & self.shows_expansion & self.shows_fall

    @property
    def lasting(self) -> np.ndarray:
        """All three phases, and at the end RankMe is still lower than at the turn."""
        return self.shows_collapse & self.shows_expansion & self.lasts

    @property
    def passing(self) -> np.ndarray:
        """All three phases, but what fell has grown again when the trajectory ends."""
        return self.shows_collapse & self.shows_expansion & self.shows_any_fall & ~self.lasts

    def spans(self, seed: int, last: int) -> list[tuple[str, int, int]]:
        """(phase, first index, last index) of one trajectory of those along a single axis, for line styles.

        `last` is the trajectory's last index. Phases that it does not show have no span. What comes after the lowest
        value of the fall, where RankMe grows again, is "later".
        """
        low, high, end = int(self.collapse_end[seed]), int(self.turn[seed]), int(self.fall_end[seed])
        if low < 0:
            return [("warmup", 0, last)] if self.shows_collapse[seed] else []
        falls = self.shows_fall[seed]
        spans = [("warmup", 0, low)] if self.shows_collapse[seed] else []
        spans += [("entropy-seeking", low, high if falls else last)]
        spans += [("compression-seeking", high, end)] if falls else []
        return spans + ([("later", end, last)] if falls and end < last else [])


def phases(steps, rankme, size: float | tuple[float, float, float] = 0.02) -> Phases:
    """Collapse, expansion and later fall of trajectories that carry no noise.

    The collapse ends at the first minimum that lies more than `size`, relatively, below the highest value so far and
    from which RankMe then grows by more than `size`; so a rise before the collapse does not count. Where no fall is
    followed by growth, the minimum is the first one (the start, most often) from which RankMe grows by more than
    `size`, and there is no collapse. The turn is the highest value from the minimum on, and the fall goes down to the
    lowest value after it: a dip that is outgrown later is no fall (but counts in `any_fall`).

    Parameters
    ----------
    steps : array, shape (T,), increasing
    rankme : array, shape (..., T)
    size : float, default 0.02, or three of them, for collapse, expansion and fall
        Relative size beyond which each counts as shown.
    """
    steps, r = np.asarray(steps), np.asarray(rankme, dtype=float)
    if steps.ndim != 1 or r.shape[-1:] != steps.shape or len(steps) < 2 or not (np.diff(steps) > 0).all():
        raise ValueError("steps must increase, and the last axis of rankme must have their length, at least 2; got "
                         f"shapes {steps.shape} and {r.shape}.")
    down, up, again = np.broadcast_to(size, 3)
    if not all(0 < each < 1 for each in (down, up, again)):
        raise ValueError(f"size is a share between 0 and 1, got {size}.")
    whole = np.isfinite(r).all(-1)
    r = np.where(whole[..., None], r, 1.0)
    index = np.arange(len(steps))
    fell_at = (r < (1 - down) * np.maximum.accumulate(r, -1)).argmax(-1)  # 0: never
    grows, low_at = _first_minimum(r, fell_at, up)
    grows_from_start, first_low = _first_minimum(r, np.zeros_like(fell_at), up)
    low_at = np.where(grows, low_at, first_low)
    grows = grows | grows_from_start
    since = np.where(index >= low_at[..., None], r, -np.inf)
    turn_at = since.argmax(-1)
    low, high = (np.take_along_axis(r, at[..., None], -1)[..., 0] for at in (low_at, turn_at))
    collapse = 1 - low / np.where(index <= low_at[..., None], r, -np.inf).max(-1)
    expansion = np.where(grows, high / low - 1, 0.0)
    after = np.where(index >= turn_at[..., None], r, np.inf)
    fall = np.where(grows, 1 - after.min(-1) / high, 0.0)
    highest = np.maximum.accumulate(since, -1)
    below = np.where(highest > (1 + up) * low[..., None], 1 - r / highest, 0.0)
    any_fall, deepest = below.max(-1), below.argmax(-1)
    any_turn = np.where(index <= deepest[..., None], since, -np.inf).argmax(-1)
    ends = [np.where(whole & grows, at, -1)[()] for at in (low_at, turn_at, after.argmin(-1))]
    ends.append(np.where(whole & grows & (any_fall > 0), any_turn, -1)[()])
    remaining = np.where(grows, 1 - r[..., -1] / high, 0.0)
    changes = (collapse, expansion, fall, remaining, any_fall)
    least = (down, up, again, again, again)
    sizes = [np.where(whole, change, np.nan)[()] for change in changes]
    shown = [(whole & (change > enough))[()] for change, enough in zip(changes, least, strict=True)]
    return Phases(*ends, *sizes, *shown)


def turns_late(turn, loss) -> np.ndarray:
    """Whether a turn comes when half of all the loss that a trajectory ever loses is lost; bool, shape (...).

    What RankMe does before that is the start's doing: a dip and a rise while the logits are still near 0, then the
    collapse, look like three phases to a detector that sees RankMe alone. `turn` is an index, or -1 for none, of shape
    (...), as `Phases.turn`; `loss` has shape (..., T).
    """
    turn, loss = np.asarray(turn), np.asarray(loss, dtype=float)
    at_turn = np.take_along_axis(loss, turn[..., None], -1)[..., 0]
    return (turn >= 0) & (at_turn <= (loss[..., 0] + loss.min(-1)) / 2)


def prevalence(shown, level: float = 0.95) -> tuple[float, float, float]:
    """Share of True among seeds, and its Wilson interval: (share, low, high)."""
    shown = np.asarray(shown, dtype=bool).ravel()
    found = binomtest(int(shown.sum()), len(shown)).proportion_ci(level, method="wilson")
    return float(shown.mean()), float(found.low), float(found.high)


def _first_minimum(r, begin, size: float) -> tuple[np.ndarray, np.ndarray]:
    """Whether r grows by more than `size` above its lowest value since `begin`, and where the lowest before that is."""
    index = np.arange(r.shape[-1])
    later = np.where(index >= begin[..., None], r, np.inf)
    grown = (index > begin[..., None]) & (later > (1 + size) * np.minimum.accumulate(later, -1))
    until = np.where(grown.any(-1), grown.argmax(-1), r.shape[-1])
    return grown.any(-1), np.where(index < until[..., None], later, np.inf).argmin(-1)

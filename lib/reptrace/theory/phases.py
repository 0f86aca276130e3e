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
    collapse : float
        1 - minimum / highest value before it. Where RankMe never grows, of the lowest value.
    expansion : float
        Maximum / minimum - 1.
    fall : float
        1 - lowest value after the maximum / maximum.
    shows_collapse, shows_expansion, shows_fall : bool
        Whether each is larger than the size asked for; all False where the trajectory holds a nan.
    """

    collapse_end: np.ndarray
    turn: np.ndarray
    collapse: np.ndarray
    expansion: np.ndarray
    fall: np.ndarray
    shows_collapse: np.ndarray
    shows_expansion: np.ndarray
    shows_fall: np.ndarray

    @property
    def all_three(self) -> np.ndarray:
        return self.shows_collapse & self.shows_expansion & self.shows_fall

    def spans(self, seed: int, last: int) -> list[tuple[str, int, int]]:
        """(phase, first index, last index) of one trajectory of those along a single axis, for line styles.

        `last` is the trajectory's last index. Phases that it does not show have no span.
        """
        low, high = int(self.collapse_end[seed]), int(self.turn[seed])
        if low < 0:
            return [("warmup", 0, last)] if self.shows_collapse[seed] else []
        high = high if self.shows_fall[seed] else last
        spans = [("warmup", 0, low), ("entropy-seeking", low, high), ("compression-seeking", high, last)]
        return spans[0 if self.shows_collapse[seed] else 1 : 3 if self.shows_fall[seed] else 2]


def phases(steps, rankme, size: float = 0.02) -> Phases:
    """Collapse, expansion and later fall of trajectories that carry no noise.

    The collapse ends at the first minimum that lies more than `size`, relatively, below the highest value so far and
    from which RankMe then grows by more than `size`; so a rise before the collapse does not count. Where no fall is
    followed by growth, the minimum is the first one (the start, most often) from which RankMe grows by more than
    `size`, and there is no collapse. The turn is the highest value from the minimum on, and the fall goes down to the
    lowest value after it: a dip that is outgrown later is no fall.

    Parameters
    ----------
    steps : array, shape (T,), increasing
    rankme : array, shape (..., T)
    size : float, default 0.02
        Relative size beyond which a collapse, an expansion or a fall counts as shown.
    """
    steps, r = np.asarray(steps), np.asarray(rankme, dtype=float)
    if steps.ndim != 1 or r.shape[-1:] != steps.shape or len(steps) < 2 or not (np.diff(steps) > 0).all():
        raise ValueError("steps must increase, and the last axis of rankme must have their length, at least 2; got "
                         f"shapes {steps.shape} and {r.shape}.")
    if not 0 < size < 1:
        raise ValueError(f"size is a share between 0 and 1, got {size}.")
    whole = np.isfinite(r).all(-1)
    r = np.where(whole[..., None], r, 1.0)
    index = np.arange(len(steps))
    fell_at = (r < (1 - size) * np.maximum.accumulate(r, -1)).argmax(-1)  # 0: never
    grows, low_at = _first_minimum(r, fell_at, size)
    grows_from_start, first_low = _first_minimum(r, np.zeros_like(fell_at), size)
    low_at = np.where(grows, low_at, first_low)
    grows = grows | grows_from_start
    turn_at = np.where(index >= low_at[..., None], r, -np.inf).argmax(-1)
    low, high = (np.take_along_axis(r, at[..., None], -1)[..., 0] for at in (low_at, turn_at))
    collapse = 1 - low / np.where(index <= low_at[..., None], r, -np.inf).max(-1)
    expansion = np.where(grows, high / low - 1, 0.0)
    fall = np.where(grows, 1 - np.where(index >= turn_at[..., None], r, np.inf).min(-1) / high, 0.0)
    ends = [np.where(whole & grows, at, -1)[()] for at in (low_at, turn_at)]
    sizes = [np.where(whole, change, np.nan)[()] for change in (collapse, expansion, fall)]
    return Phases(*ends, *sizes, *((whole & (change > size))[()] for change in (collapse, expansion, fall)))


def turns_late(found: Phases, loss) -> np.ndarray:
    """Whether the turn comes when half of all the loss that a trajectory ever loses is lost; bool, as `found`.

    What RankMe does before that is the start's doing: a dip and a rise while the logits are still near 0, then the
    collapse, look like three phases to a detector that sees RankMe alone. `loss` has shape (..., T).
    """
    loss = np.asarray(loss, dtype=float)
    at_turn = np.take_along_axis(loss, np.asarray(found.turn)[..., None], -1)[..., 0]
    return (np.asarray(found.turn) >= 0) & (at_turn <= (loss[..., 0] + loss.min(-1)) / 2)


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

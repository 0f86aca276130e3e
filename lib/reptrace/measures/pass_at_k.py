"""pass@k: how likely one of k answers to a problem is right; of many problems, with intervals and where curves cross.

Of N samples of which c are right (Chen et al. 2021, arXiv 2107.03374), without bias for k <= N:

    pass@k = 1 - C(N - c, k) / C(N, k) = 1 - prod_{i = N-c+1}^{N} (1 - k / i)

and where the probability p of a right answer is known, 1 - (1 - p)^k. Drawing k of the N samples with replacement, or
putting c / N for p, is biased downwards: one right sample of N gives 0.63 at k = N, where 1 is due.

A curve is an array of pass@k with an axis over problems and one over k; with seeds (models trained apart, asked the
same problems) these come first. Intervals are of 95 %.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t as student

TAIL = 0.025
DRAWS = 2000  # of a bootstrap: the ends of its interval are then known to a tenth of its width


class Mean(NamedTuple):
    """A mean over problems, and the ends of its interval."""

    mean: float
    low: float
    high: float


class Crossing(NamedTuple):
    """From which k on another curve is behind, though ahead before; None where the curves do not cross so.

    `low`, `high` : ends of its interval; 0 where the other may be behind for every k, inf where it may not be behind at
    the largest. `share` : of the resamples, those in which the curves cross.
    """

    k: float | None
    low: float
    high: float
    share: float

    @property
    def sure(self) -> bool:
        """Whether the whole interval is of crossings."""
        return self.low > 0 and math.isfinite(self.high)


def unbiased(samples: int, right: ArrayLike, k: ArrayLike) -> np.ndarray:
    """pass@k from samples, shape (..., K).

    Parameters
    ----------
    samples : int, N, of each problem
    right : whole numbers, shape (...), c of each problem
    k : whole numbers, shape (K,), 1 to N
    """
    right, k = _whole(right, "right", 0, samples), np.atleast_1d(_whole(k, "k", 1, samples))
    with np.errstate(divide="ignore"):  # i <= k: there is always a right one among k
        factors = np.log1p(-np.minimum(k / np.arange(samples, 0, -1)[:, None], 1))
    products = np.concatenate([np.zeros((1, len(k))), np.cumsum(factors, 0)])
    return -np.expm1(products[right])


def exact(log_probability: ArrayLike, k: ArrayLike) -> np.ndarray:
    """pass@k from the log-probability of a right answer, shape (...), in nats: shape (..., K).

    Where one string is right that is its own, end included; where others are right as well, this is a lower bound.
    """
    log_probability, k = np.asarray(log_probability, float)[..., None], np.atleast_1d(_whole(k, "k", 1))
    if not (log_probability < 1e-6).all():  # rounding of a sum; nan is none
        raise ValueError(f"log-probabilities are at most 0, got {np.max(log_probability)}.")
    with np.errstate(divide="ignore"):  # a sure answer
        return -np.expm1(k * np.log1p(-np.exp(np.minimum(log_probability, 0))))


def mean(passes: ArrayLike, least: float = 0.0, most: float = 1.0) -> Mean:
    """Mean over problems, and over seeds if there are any, for one k.

    Student's interval. Simulated, 60 to 250 problems of graded difficulty: it covers in 94 to 95 of 100, as often as a
    percentile bootstrap, which also needs draws and a seed; where few problems are ever solved both are too narrow (80
    of 100, if it is one of 60). With seeds, problems and seeds are crossed: variance s_seeds^2 / S + s_problems^2 / P -
    s_rest^2 / (S P), degrees of freedom after Satterthwaite. Values that are all alike say nothing of their scatter:
    then the interval is how far the mean may lie from them with no other value seen, 1 - 0.025^(1/P) of the way to each
    bound.

    Parameters
    ----------
    passes : shape (P,), or (S, P); two problems at least
    least, most : bounds of a value; the interval keeps within them
    """
    values = np.atleast_2d(np.asarray(passes, float))
    seeds, problems = values.shape
    if problems < 2 or not np.isfinite(values).all() or values.min() < least or values.max() > most:
        raise ValueError(f"a mean needs two problems or more, all known and from {least:g} to {most:g}; got shape "
                         f"{np.shape(passes)}, {values.min(initial=np.inf):g} to {values.max(initial=-np.inf):g}.")
    middle = float(values.mean())
    if np.ptp(values) < 1e-12:  # rounding of differences
        far = 1 - TAIL ** (1 / problems)
        return Mean(middle, middle - far * (middle - least), middle + far * (most - middle))
    half = _half_width(values, seeds, problems)
    return Mean(middle, float(max(least, middle - half)), float(min(most, middle + half)))


def _half_width(values: np.ndarray, seeds: int, problems: int) -> float:
    """Of the mean's interval; values that differ, shape (seeds, problems)."""
    by_problem = values.mean(0)
    of_problems = by_problem.var(ddof=1) / problems
    if seeds == 1:
        return student.isf(TAIL, problems - 1) * of_problems**0.5
    by_seed, free = values.mean(1), (seeds - 1) * (problems - 1)
    of_seeds = by_seed.var(ddof=1) / seeds
    rest = np.square(values - by_problem - by_seed[:, None] + values.mean()).sum() / free / values.size
    variance = max(of_seeds + of_problems - rest, of_seeds, of_problems)
    parts = of_seeds**2 / (seeds - 1) + of_problems**2 / (problems - 1) + rest**2 / free
    return student.isf(TAIL, variance**2 / parts) * variance**0.5


def difference(one: ArrayLike, other: ArrayLike) -> Mean:
    """How far another model is ahead of one, by the same problems (and seeds), for one k; see `mean`."""
    return mean(_paired(one, other), -1, 1)


def crossing(one: ArrayLike, other: ArrayLike, k: ArrayLike, draws: int = DRAWS, seed: int = 0) -> Crossing:
    """Where another model falls behind one: the k from which on its mean is the lower, though higher before.

    Between two k the difference is taken to be straight in ln k. The interval is a percentile bootstrap over problems,
    the same ones of both, and over seeds if there are any, which few seeds make too narrow (of S, by sqrt(1 - 1/S)).

    Parameters
    ----------
    one, other : shape (P, K), or (S, P, K)
    k : rising, shape (K,)
    """
    k = np.asarray(k, float)
    ahead = _paired(one, other)
    ahead = ahead[None] if ahead.ndim == 2 else ahead
    if ahead.ndim != 3 or ahead.shape[2] != len(k) or len(k) < 2 or k[0] < 1 or (np.diff(k) <= 0).any():
        raise ValueError(f"curves have problems and two or more k, rising from 1; got shape {np.shape(one)} and {k}.")
    if ahead.shape[1] < 2 or not np.isfinite(ahead).all():
        raise ValueError(f"a crossing needs two problems or more, all known; got shape {np.shape(one)}.")
    seeds, problems, _ = ahead.shape
    rng = np.random.default_rng(seed)
    times = [rng.multinomial(each, np.full(each, 1 / each), draws) / each for each in (seeds, problems)]
    found = _falls_behind(np.einsum("ds,sdk->dk", times[0], times[1] @ ahead), k)
    [here] = _falls_behind(ahead.mean((0, 1))[None], k)
    crosses = (found > 0) & np.isfinite(found)
    low, high = (float(np.quantile(found, part, method=way)) for part, way in ((TAIL, "lower"), (1 - TAIL, "higher")))
    return Crossing(float(here) if 0 < here < np.inf else None, low, high, float(crosses.mean()))


def _falls_behind(ahead: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Of mean differences by k, shape (draws, K): from which k on they are below 0 after they were above; 0 where they
    never were above, inf where they are not below in the end: at the last k that tells them apart, as two curves that
    both come to 1 meet there."""
    above = ahead > 0
    last = len(k) - 1 - above[:, ::-1].argmax(1)  # that is above
    following = np.minimum(last + 1, len(k) - 1)
    rows = np.arange(len(ahead))
    before, after = ahead[rows, last], ahead[rows, following]
    with np.errstate(invalid="ignore", divide="ignore"):  # where there is no crossing
        part = before / (before - after)
        found = np.exp(np.log(k[last]) + part * (np.log(k[following]) - np.log(k[last])))
    never = ~above.any(1)
    apart = len(k) - 1 - (ahead != 0)[:, ::-1].argmax(1)
    below = ahead[rows, apart] < 0
    return np.where(below, np.where(never, 0.0, found), np.inf)


def _paired(one: ArrayLike, other: ArrayLike) -> np.ndarray:
    one, other = np.asarray(one, float), np.asarray(other, float)
    if one.shape != other.shape:
        raise ValueError(f"the two are not of the same problems: shapes {one.shape} and {other.shape}.")
    return other - one


def _whole(values: ArrayLike, name: str, least: int, most: int | None = None) -> np.ndarray:
    """Whole numbers within bounds; ValueError with their name where they are none."""
    found = np.asarray(values)
    if found.dtype.kind not in "iu" or (found < least).any() or (most is not None and (found > most).any()):
        raise ValueError(f"{name} must be whole numbers from {least}{'' if most is None else f' to {most}'}, got "
                         f"{found.dtype} {found.min(initial=0)} to {found.max(initial=0)}.")
    return found

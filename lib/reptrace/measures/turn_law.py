"""The law of the turn: how the place T of RankMe's turn to compression goes with the number N of parameters.

    ln T = a + b ln N + scatter

with an intercept a for every suite, since suites differ in text, batch and rate, and one exponent b. b = 0: the turn
comes at a fixed number of tokens, whatever the size; b = 1: at a fixed number of tokens a parameter.

Of a turn an interval is known (`phases.Turn`): between two checkpoints it may lie anywhere, so it counts as
interval-censored, by the probability that a normal scatter puts it there. A turn that has not come by the end of a run
lies somewhere after its last rise: censored on the right, not left out. N is counted, and has no error. The seeds of a
size share its N and what else is particular to the size, so that a size counts once, with the mean of its seeds' ln T.
The scatter between sizes is estimated with the rest, one for all suites.

The interval of b is that of the profile likelihood: of all b whose best fit is not worse than the best of all by more
than n ln(1 + t^2 / f), in -2 ln L; n sizes, and t Student's quantile with f degrees of freedom: as many as there are
sizes whose turn is seen, less one for each coefficient.
Where turns are known exactly and none is censored, this is Student's interval of least squares itself; where they are
known to intervals wider than the scatter, every b whose line passes through all of them is inside, and it is the wider
for it. It is approximate: of turns planted as those of the report are it held the exponent in 92 to 98 of 100 data sets
(`tests/measures/test_turn_law.py` plants them), least often where intervals are some times as wide as the scatter. In
this parametrization, z = (ln T - a - b ln N) / sigma with 1 / sigma, a / sigma and b / sigma free, the
likelihood is concave (Olsen 1978), so there is one best fit, and the interval is one.

Why not a package's model: scipy.odr and odrpack take errors in both variables, and N has none; mixed models
(statsmodels) and meta-regression know no censored values, and their intervals rest on many groups; survival regression
(lifelines) knows them, with intervals for many values. scipy's normal distribution and minimizer do the work here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import brentq, minimize
from scipy.special import log_ndtr
from scipy.stats import t as student

from reptrace.measures.phases import Phases

LEVEL = 0.95
FIXED, PER_PARAMETER = "a fixed number of tokens", "a fixed number of tokens a parameter"
NEITHER, OPEN = "neither", "cannot be told"
SMALLEST = 0.01  # scatter of ln T, below which none is told from none
FARTHEST = 64.0  # from the best exponent: an interval that reaches so far is taken for endless
NONE = float("nan")


@dataclass(frozen=True)
class Law:
    """A fitted law; all nan, with no intercept, where there are too few sizes.

    Attributes
    ----------
    exponent, low, high : float
        b with its 95 % interval; infinite where the turns bound it on one side alone.
    scatter : float
        Standard deviation of ln T about the law, between sizes.
    sizes : int
        That were fitted: of suites with two or more.
    intercepts : dict of suite -> (a at `exponent`, a at `low`, a at `high`)
        ln T at N = 1, the best with each exponent.
    """

    exponent: float
    low: float
    high: float
    scatter: float
    sizes: int
    intercepts: Mapping[str, tuple[float, float, float]]

    @property
    def reading(self) -> str:
        """Which of the two laws the interval holds: FIXED, PER_PARAMETER, NEITHER, or OPEN for both."""
        held = [name for value, name in ((0, FIXED), (1, PER_PARAMETER)) if self.holds(value)]
        return OPEN if len(held) == 2 else held[0] if held else NEITHER

    def holds(self, exponent: float) -> bool:
        """Whether an exponent can't be excluded: it lies in the interval, or there is none."""
        return not (exponent < self.low or exponent > self.high)


def place(phases: Phases) -> tuple[float, float] | None:
    """Between which tokens the turn of a run lies; 0 and infinity where a side is open. None: nothing is known.

    A run without a turn, or whose turn the run's end leaves open, has its turn after the last checkpoint before the
    highest that is surely lower, or never. A run without an expansion says nothing.
    """
    if phases.highest is None:
        return None
    (low, high), unbounded = phases.highest.interval, phases.highest.open
    return (0.0 if unbounded in ("left", "both") else low,
            np.inf if phases.turn is None or unbounded in ("right", "both") else high)


def by_size(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs to sizes: geometric means over the seeds of a size of where their turns lie at least and at most.

    Parameters
    ----------
    runs : columns suite, parameters, low, high (of `place`)

    Returns
    -------
    a row a suite and size, with the columns suite, parameters, low, high, seeds; the mean of the seeds' turns lies
    between `low` and `high` wherever each of them lies in its own interval
    """
    with np.errstate(divide="ignore"):
        logs = runs.assign(low=np.log(runs.low), high=np.log(runs.high))
    sizes = logs.groupby(["suite", "parameters"], sort=False, as_index=False).agg(
        low=("low", "mean"), high=("high", "mean"), seeds=("low", "size"))
    return sizes.assign(low=np.exp(sizes.low), high=np.exp(sizes.high))


def fit(sizes: pd.DataFrame) -> Law:
    """The law with one exponent and an intercept a suite. Pooled: give all rows the same suite.

    Parameters
    ----------
    sizes : columns suite, parameters, low, high; a row a size, see `by_size`
        low is 0 or high infinite where the turn is censored. A size where it is both says nothing and is left out, as
        is a suite of one size, which says nothing of the exponent.

    Raises
    ------
    ValueError
        Parameters that are not positive, or low not below high.
    """
    if not (sizes.parameters > 0).all() or not (sizes.low < sizes.high).all():
        raise ValueError("parameters must be positive, and low below high.")
    sizes = sizes[(sizes.low > 0) | np.isfinite(sizes.high)]
    sizes = sizes[sizes.groupby("suite").parameters.transform("nunique") > 1]
    with np.errstate(divide="ignore"):
        x, low, high = (np.log(sizes[name].to_numpy(float)) for name in ("parameters", "low", "high"))
    suites = pd.get_dummies(sizes.suite, dtype=float)  # a column a suite
    free = np.isfinite(high - low).sum() - suites.shape[1] - 1  # a censored turn adds no degree of freedom
    if free < 1:
        return Law(NONE, NONE, NONE, NONE, len(sizes), {})
    design = suites.to_numpy()
    centres = (x @ design) / design.sum(0)
    x = x - design @ centres  # so that exponent and intercepts are told apart
    best, coefficients, scatter = _best(low, high, np.column_stack([design, x]))
    exponent = float(coefficients[-1])
    allowed = len(sizes) * np.log1p(student.ppf((1 + LEVEL) / 2, free) ** 2 / free)

    def with_exponent(b):
        return _best(low - b * x, high - b * x, design)

    ends = [_end(lambda b: 2 * (best - with_exponent(b)[0]) - allowed, exponent, side) for side in (-1, 1)]
    intercepts = [with_exponent(b)[1] - b * centres if np.isfinite(b) else np.full(len(centres), NONE)
                  for b in (exponent, *ends)]
    return Law(exponent, *ends, scatter, len(sizes),
               {name: tuple(map(float, each)) for name, *each in zip(suites, *intercepts, strict=True)})


def _end(excess, inside: float, side: int) -> float:
    """Where a function that is negative inside crosses zero on this side; infinite if it doesn't for long."""
    step = 0.125
    while step <= FARTHEST:
        if excess(inside + side * step) > 0:
            return float(brentq(excess, inside + side * (step / 2 if step > 0.125 else 0), inside + side * step,
                                xtol=1e-4))
        step *= 2
    return side * np.inf


def _best(low: np.ndarray, high: np.ndarray, design: np.ndarray) -> tuple[float, np.ndarray, float]:
    """Largest ln L of normal values that are known to intervals, the coefficients of their mean, and their scatter."""
    known = np.clip((low, high), np.where(np.isfinite(low), low, high), np.where(np.isfinite(high), high, low))
    middle = known.mean(0)  # of a censored one, its end
    start = np.linalg.lstsq(design, middle, rcond=None)[0]
    unit = np.std(middle - design @ start) + SMALLEST
    ends = [(bound - design @ start) / unit for bound in (low, high)]
    finite = [np.where(np.isfinite(end), end, 0) for end in ends]

    def worse(parameters):  # -ln L and its gradient
        a, b = (parameters[0] * end - design @ parameters[1:] for end in ends)
        mass = log_mass(a, b)
        at_a, at_b = (np.exp(-(z**2 + np.log(2 * np.pi)) / 2 - mass) for z in (a, b))  # density over mass; 0 where open
        return -mass.sum(), np.r_[at_a @ finite[0] - at_b @ finite[1], (at_b - at_a) @ design]

    found = minimize(worse, np.r_[1, np.zeros(len(start))], jac=True, method="L-BFGS-B",
                     bounds=[(1e-6, unit / SMALLEST)] + [(None, None)] * len(start), options={"maxiter": 1000})
    return -float(found.fun), start + unit * found.x[1:] / found.x[0], float(unit / found.x[0])


def log_mass(a, b):
    """ln of the standard normal's probability between a and b, a < b, with its digits far out in either tail."""
    flip = a > 0
    a, b = np.where(flip, -b, a), np.where(flip, -a, b)
    upper, lower = log_ndtr(b), log_ndtr(a)
    return upper + np.log1p(-np.exp(lower - upper))

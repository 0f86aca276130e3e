"""Correlation of a task's accuracy with RankMe or alpha over a run's checkpoints (Table 9), and what is left of it.

Two curves that both follow training time correlate, whatever they have to do with each other; and neighbouring
checkpoints are not independent, so the p-value of a textbook is too small. Hence three kinds:

    plain     corr(x, y), as published
    changes   corr(dx, dy) of the differences between neighbours in order of tokens: do they move together? Each should
              span the same stretch of ln tokens, so checkpoints are best evenly spaced there. Measurement noise, which
              counts twice in every difference, pulls it towards 0.
    partial   corr(x, y | ln t) = (r_xy - r_xt r_yt) / sqrt((1 - r_xt^2) (1 - r_yt^2)): the correlation of what is left
              of x and y after linear regression on ln tokens. A bend that both curves share stays in.

Pearson's r, or Spearman's: the same of ranks (for changes, of the differences' ranks).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from itertools import product

import numpy as np
import pandas as pd

from reptrace.support import arguments

KINDS, METHODS = ("plain", "changes", "partial"), ("pearson", "spearman")
DRAWS = 2000


class Undefined(ValueError):
    """A correlation that does not exist: too few checkpoints, or one of the two is constant."""


@dataclass(frozen=True)
class Correlation:
    """One correlation.

    Attributes
    ----------
    kind, method : str
    value : float
    p_value : float
        Two-sided, of a correlation of 0, by Student's t, as if the n points were independent: for comparison with
        published ones.
    low, high : float
        95 % interval: by moving-block bootstrap over checkpoints for one run, over runs for several. nan where there
        are too few.
    n : int
        Points: checkpoints, differences, or runs.
    block : int
        Length of the bootstrap's blocks, in points; 0 over runs.
    """

    kind: str
    method: str
    value: float
    p_value: float
    low: float
    high: float
    n: int
    block: int


def correlate(tokens, x, y, kind: str = "plain", method: str = "pearson", block: int | None = None,
              draws: int = DRAWS, seed: int = 0) -> Correlation:
    """Correlation of x and y over the checkpoints of one run.

    Parameters
    ----------
    tokens : array, shape (N,)
        Training tokens, in any order, each once. Checkpoints at 0 tokens, which have no logarithm, and those where x or
        y is nan are left out, for every kind.
    x, y : array, shape (N,)
    kind, method : see above
    block : int, optional
        Consecutive points that are drawn together (Kuensch 1989), default the cube root of their number, at least 2.
        It must be longer than chance departures last; a trend lasts as long as the run, so for the plain correlation of
        two trends no length is enough, and its interval too narrow.
    draws, seed : int, default 2000 and 0

    Raises
    ------
    Undefined
        Fewer than four checkpoints left; a constant x or y.
    ValueError
        Arrays of different lengths; a checkpoint twice; an unknown kind or method; a block that is not between 1 and
        the number of points.
    """
    if kind not in KINDS or method not in METHODS:
        raise ValueError(f"kind must be one of {KINDS} and method one of {METHODS}, got {kind!r} and {method!r}.")
    columns = _points(tokens, x, y, kind)
    n, given = columns.shape[1], int(kind == "partial")
    value = float(_correlation(columns[:, None], kind, method)[0])
    if not np.isfinite(value):
        raise Undefined("x or y is constant (or, for a partial correlation, follows ln tokens exactly): it correlates "
                        "with nothing.")
    block = max(2, round(n ** (1 / 3))) if block is None else block
    if not 1 <= block <= n:
        raise ValueError(f"a block must be of 1 to {n} points, got {block}.")
    found = _correlation(columns[:, _blocks(n, block, draws, seed)], kind, method)
    low, high = np.nanquantile(found, [0.025, 0.975]) if np.isfinite(found).any() else (np.nan, np.nan)
    return Correlation(kind, method, value, p_value(value, n, given), float(low), float(high), n, block)


def over_runs(found: Sequence[Correlation]) -> Correlation:
    """The mean correlation of several runs that differ by their seed alone, with an interval that covers new seeds.

    Fisher's z = artanh r of each, their mean, and Student's t with a degree of freedom fewer than runs. n counts runs.
    """
    if len({(one.kind, one.method) for one in found}) != 1:
        raise ValueError("correlations of one kind and one method can be combined, and at least one is needed.")
    from scipy.stats import t

    z = np.arctanh(np.clip([one.value for one in found], -1 + 1e-12, 1 - 1e-12))
    n, mean = len(z), z.mean()
    half = p = np.nan
    if n > 1:
        error = max(z.std(ddof=1), 1e-300) / np.sqrt(n)
        half, p = t.ppf(0.975, n - 1) * error, 2 * t.sf(abs(mean) / error, n - 1)
    return Correlation(found[0].kind, found[0].method, float(np.tanh(mean)), float(p), float(np.tanh(mean - half)),
                       float(np.tanh(mean + half)), n, 0)


def table(runs: Sequence[pd.DataFrame], accuracy: str = "accuracy", measures: Sequence[str] = ("rankme", "alpha"),
          methods: Sequence[str] = METHODS, block: int | None = None, draws: int = DRAWS, seed: int = 0
          ) -> pd.DataFrame:
    """Every kind of correlation of an accuracy with every measure, for each run and, for several, over them.

    Parameters
    ----------
    runs : tables, or one, with columns tokens, `accuracy` and `measures`, a row a checkpoint; their seeds alone differ
    accuracy, measures : names of columns

    Returns
    -------
    pandas.DataFrame
        Columns run (0, 1, ..., or "all"), measure, and the fields of `Correlation`. A correlation that is undefined for
        a run is left out, of the one over runs too.
    """
    runs = [runs] if isinstance(runs, pd.DataFrame) else list(runs)
    measures, methods = arguments.names(measures, "names of columns"), arguments.names(methods, "methods")
    rows = []
    for measure, kind, method in product(measures, KINDS, methods):
        found: dict[object, Correlation] = {}
        for number, run in enumerate(runs):
            with suppress(Undefined):
                found[number] = correlate(run["tokens"], run[accuracy], run[measure], kind, method, block, draws, seed)
        if len(found) > 1:
            found["all"] = over_runs(list(found.values()))
        rows += [{"run": name, "measure": measure, **asdict(one)} for name, one in found.items()]
    return pd.DataFrame(rows, columns=["run", "measure", *(field.name for field in fields(Correlation))])


def p_value(r: float, n: int, given: int = 0) -> float:
    """Two-sided p-value of a correlation r of n independent points, `given` so many variables held fixed.

    t = r sqrt(f / (1 - r^2)) with f = n - 2 - given degrees of freedom; nan where f < 1.
    """
    from scipy.stats import t

    freedom = n - 2 - given
    if freedom < 1:
        return float("nan")
    with np.errstate(divide="ignore"):
        return float(2 * t.sf(abs(r) * np.sqrt(freedom / np.float64(1 - r * r)), freedom))


def _points(tokens, x, y, kind: str) -> np.ndarray:
    """Rows ln tokens, x, y (or, for changes, the differences of all three), shape (3, n), by rising tokens."""
    columns = [np.asarray(column, dtype=float) for column in (tokens, x, y)]
    if len({column.shape for column in columns}) != 1 or columns[0].ndim != 1:
        raise ValueError(f"tokens, x and y must be lists of one length, got {[column.shape for column in columns]}.")
    points = np.array(columns)
    points = points[:, np.isfinite(points).all(0) & (points[0] > 0)]
    points = points[:, np.argsort(points[0])]
    if (np.diff(points[0]) == 0).any():
        raise ValueError("a number of tokens stands twice: pass one run at a time.")
    if points.shape[1] < 4:
        raise Undefined(f"a correlation over checkpoints needs four of them or more, got {points.shape[1]}.")
    points[0] = np.log(points[0])
    return np.diff(points) if kind == "changes" else points


def _blocks(n: int, block: int, draws: int, seed: int) -> np.ndarray:
    """Indices of resampled series, shape (draws, n): overlapping blocks of neighbours side by side, cut to n."""
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, n - block + 1, (draws, -(-n // block)))
    return (starts[..., None] + np.arange(block)).reshape(draws, -1)[:, :n]


def _correlation(columns: np.ndarray, kind: str, method: str) -> np.ndarray:
    """Correlation of many resampled series at once: (3, draws, n) -> (draws,); nan where one is constant."""
    if method == "spearman":
        from scipy.stats import rankdata

        columns = rankdata(columns, axis=-1)
    t, x, y = columns
    r_xy = _pearson(x, y)
    if kind != "partial":
        return r_xy
    r_xt, r_yt = _pearson(x, t), _pearson(y, t)
    left = (1 - r_xt**2) * (1 - r_yt**2)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(left > 1e-20, (r_xy - r_xt * r_yt) / np.sqrt(left), np.nan)


def _pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's r along the last axis; nan where x or y is constant but for rounding."""
    dx, dy = (column - column.mean(-1, keepdims=True) for column in (x, y))
    varied = [(d * d).sum(-1) > 1e-24 * (column * column).sum(-1) for d, column in ((dx, x), (dy, y))]
    with np.errstate(divide="ignore", invalid="ignore"):
        r = (dx * dy).sum(-1) / np.sqrt((dx * dx).sum(-1) * (dy * dy).sum(-1))
    return np.where(varied[0] & varied[1], np.clip(r, -1, 1), np.nan)

"""What several runs say together: a mean, with an interval as wide as their scatter makes it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import t as student

NONE = float("nan")


def mean_over(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of one value a run, and its 95 % interval over runs (Student): (mean, low, high).

    All three are nan of fewer than two values, or where one is not finite.
    """
    values = np.asarray(values, float)
    if len(values) < 2 or not np.isfinite(values).all():
        return NONE, NONE, NONE
    mean, half = values.mean(), half_width(values)
    return float(mean), float(mean - half), float(mean + half)


def ratio_over(ratios: Sequence[float]) -> tuple[float, float, float]:
    """The same of ratios, by their logarithms: (geometric mean, low, high); nan where a ratio is not positive."""
    ratios = np.asarray(ratios, float)
    return tuple(float(np.exp(each)) for each in mean_over(np.log(np.where(ratios > 0, ratios, NONE))))


def by_runs(table: pd.DataFrame, x: str, y: str, run: str = "seed") -> pd.DataFrame:
    """A quantity of several runs side by side: index x, a column a run, and beside them their `mean`, `low`, `high`.

    The interval is `mean_over`'s; of one run `mean` is its value.
    """
    runs = table.pivot(index=x, columns=run, values=y).sort_index()
    over = pd.DataFrame([mean_over(row) for row in runs.to_numpy()], runs.index, ["mean", "low", "high"])
    return runs.join(over.assign(mean=runs.mean(axis=1)))


def half_width(values: Sequence[float]) -> float:
    """Half of the 95 % interval of a mean over runs, of two values or more."""
    return student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))

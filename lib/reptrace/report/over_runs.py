"""What several runs say together: a mean, with an interval as wide as their scatter makes it."""

from __future__ import annotations

import numpy as np
from scipy.stats import t as student


def mean_over(values) -> tuple[float, float, float]:
    """Mean of one value a run, and its 95 % interval over runs (Student): (mean, low, high); nan of fewer than two."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return (float("nan"),) * 3
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def ratio_over(ratios) -> tuple[float, float, float]:
    """The same of ratios, by their logarithms: (geometric mean, low, high)."""
    return tuple(float(np.exp(each)) for each in mean_over(np.log(np.asarray(ratios, float))))

"""Means over runs. Trusted: scipy's interval of Student's t."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t

from reptrace.report.over_runs import by_runs

ROWS = pd.DataFrame({"seed": [0, 1, 2, 0, 1, 2], "step": [20, 20, 20, 10, 10, 10], "rankme": [3.0, 4, 8, 1, 1, 4]})


def test_runs_stand_side_by_side_in_order_with_their_mean_and_its_interval():
    found = by_runs(ROWS, "step", "rankme")
    assert list(found.index) == [10, 20] and list(found[2]) == [4, 8]
    values = np.array([3.0, 4, 8])
    low, high = t.interval(0.95, 2, values.mean(), values.std(ddof=1) / 3**0.5)
    assert list(found.loc[20, ["mean", "low", "high"]]) == pytest.approx([5, low, high])


def test_one_run_is_its_own_mean_without_an_interval():
    found = by_runs(ROWS[ROWS.seed == 0], "step", "rankme")
    assert list(found["mean"]) == [1, 3] and found[["low", "high"]].isna().all(axis=None)

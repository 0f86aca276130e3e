"""Which differences from the archive count.

Trusted: tables written out by hand.
"""

from dataclasses import replace

import pandas as pd
import pytest

from reptrace.report.verifying import _compared, alike
from reptrace.training.runs import Run

ONE = alike(Run(16, 1, 10, 0, 512, 32, 8, 0.01, 2, "cosine", 0.0, "a text"))
TWO, WIDE = replace(ONE, seed=1), replace(ONE, width=32)


def numbers(loss, accuracy):
    """Losses at steps 1, 2, ... and one accuracy with a standard error of 0.03."""
    rows = [{"what": "training loss", "place": step, "value": value} for step, value in enumerate(loss, 1)]
    return pd.DataFrame([*rows, {"what": "cloze", "place": "step9", "value": accuracy, "stderr": 0.03}])


OLD = {ONE: numbers([4.0, 2.0], 0.5), TWO: numbers([4.0, 2.5], 0.4), WIDE: numbers([1.0, 1.0], 0.5)}


def compared(new, apart=()):
    rows = _compared({run: f"d = {run.width}" for run in OLD}, OLD, new, list(apart))
    return {row["what"]: row for row in rows}


def test_where_all_is_alike_only_rounding_may_differ():
    assert all(row["within"] for row in compared({ONE: numbers([4.0, 2.0 + 1e-6], 0.5)}).values())
    found = compared({ONE: numbers([4.0, 2.0 + 1e-5], 0.5 + 1e-5)})
    assert not found["training loss"]["within"] and not found["cloze"]["within"]
    assert found["training loss"]["difference"] == pytest.approx(5e-6, rel=1e-4)  # 1e-5 of 2
    assert found["training loss"]["compared"] == 2 and found["training loss"]["run"] == "d = 16"


def test_elsewhere_a_run_may_be_as_far_off_as_another_seed_and_a_task_by_its_standard_errors():
    found = compared({ONE: numbers([4.0, 2.4], 0.66)}, ["processor"])
    assert found["training loss"]["tolerance"] == pytest.approx(0.2)  # 2.0 and 2.5: a fifth of the larger
    assert found["cloze"]["tolerance"] == pytest.approx(4 * 0.03 * 2**0.5)
    assert all(row["within"] and "other processor" in row["why"] for row in found.values())
    off = compared({ONE: numbers([4.0, 2.6], 0.68)}, ["processor"])
    assert not any(row["within"] for row in off.values())


def test_gaps_are_not_compared():
    found = compared({ONE: numbers([4.0, float("nan")], 0.5)})
    assert found["training loss"]["compared"] == 1 and found["training loss"]["within"]

"""The study of other readings: what it joins, and its tracked table.

Trusted: planted tables; the archive's records of the same checkpoints, measured in passes of their own.
"""

import sys

import numpy as np
import pandas as pd
import pytest

from reptrace.measures.registry import REGISTRY
from reptrace.report.archive import Answers
from reptrace.report.other_readings import READINGS, TASKS
from reptrace.report.profiles import ROOT, final

sys.path.insert(0, str(ROOT / "studies"))
import readings


def planted():
    """One run of three checkpoints as a sweep, a training log and the tasks give them."""
    columns = {column: [1.0, 2.0, 3.0] for name in readings.MEASURES for column in REGISTRY[name].returned}
    traced = pd.DataFrame({
        **{name: ["x"] * 3 for name in (*readings.PLACE, *readings.ABOUT, *readings.MADE)}, **columns,
        "revision": ["step0", "step1", "step5"], "step": [0, 1, 5], "weights": ["a", "b", "c"], "status": "measured",
        "sentence_entropy_parts": [[1.0, 1.2], [1.1, 1.3], [1.3, 1.4]], "sentence_erank_sequences": 2})
    log = pd.DataFrame({"step": [1, 3, 8], "loss": [7.0, 6.0, 5.0]})
    tasks = pd.DataFrame([{"model": "x", "revision": revision, "weights": weights, "task": task, "value": value}
                          for task in TASKS for revision, weights, value in
                          (("step5", "c", 0.5), ("step0", "a", 0.25), ("step1", "b", 0.3))])
    return traced, log, tasks


def test_a_checkpoint_gets_the_loss_before_it_and_the_tasks_of_its_weights():
    traced, log, tasks = planted()
    found = readings.table([traced], [log], tasks)
    assert found.loss.tolist() == pytest.approx([np.nan, 7, 6], nan_ok=True)
    assert found.copy_near.tolist() == [0.25, 0.3, 0.5]
    assert found.diff_erank.tolist() == [0, -1, -2] and "sentence_entropy_parts" not in found
    with pytest.raises(ValueError, match="1 checkpoints were not asked 'continuation' with these weights"):
        readings.table([traced.assign(weights=["a", "b", "other"])], [log], tasks)
    with pytest.raises(ValueError, match="at step 1 was not measured: why"):
        readings.table([traced.assign(status=["measured", "failed", "measured"], reason="why")], [log], tasks)


def test_the_tracked_table_is_of_the_archive_s_checkpoints():
    table, archive = pd.read_csv(readings.OUT), Answers(ROOT / "data/archive")
    trace, tasks, place = final(archive.read("trace")), archive.read("tasks_1000"), ["model", "revision", "weights"]
    both = table.merge(trace, on=place, suffixes=("", "_there"), validate="one_to_one")
    assert len(both) == len(table) == len(trace)
    # Passes that look at all tokens round otherwise than those of the last token alone: float32, through a logarithm.
    np.testing.assert_allclose(both.rankme, both.rankme_there, rtol=1e-4)
    asked = tasks[tasks.task == "continuation"]
    assert table.merge(asked, on=place).eval("abs(continuation - value)").max() < 1e-6
    assert table[list(READINGS)].drop(columns="cka_previous").notna().all(axis=None)
    ends = table.groupby("model").agg({"cka_last": "last", "cka_first": "first"})
    np.testing.assert_allclose(ends, 1, rtol=1e-6)  # with itself

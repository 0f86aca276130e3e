"""The report's own times: what a later, partial call must not overwrite.

Trusted: tables written out by hand.
"""

import os
import time

import pandas as pd

from reptrace.report import times
from reptrace.report.executing import Spent


def known(*rows):
    return pd.DataFrame([{**dict.fromkeys(times.COLUMNS, ""), "stage": stage, "notebook": notebook,
                          "wall_seconds": seconds, "processor_seconds": seconds} for stage, notebook, seconds in rows])


def of(table):
    return [tuple(row) for row in table[["stage", "notebook"]].itertuples(index=False)]


def test_what_was_done_before_or_in_part_keeps_its_earlier_time():
    spent = times.Times()
    with spent.stage("training"):
        pass  # nothing to do
    with spent.stage("book") as stage:
        time.sleep(0.2)
        stage.whole = True
    spent.notebook("a", Spent(3.0, 4.0), whole=True)
    spent.notebook("b", Spent(1.0, 1.0), whole=False)
    earlier = known(("training", "", 500.0), ("notebooks", "", 100.0), ("notebooks", "a", 9.0),
                    ("notebooks", "b", 8.0), ("notebooks", "no longer there", 7.0), ("book", "", 20.0))
    table = spent.table(earlier, ["b", "a"])
    assert of(table) == [("training", ""), ("notebooks", ""), ("notebooks", "b"), ("notebooks", "a"), ("book", "")]
    assert table.wall_seconds[:4].tolist() == [500.0, 100.0, 8.0, 3.0] and 0.2 <= table.wall_seconds[4] < 15
    assert "training" in spent.shown() and spent.shown().count("not done before") == 2


def test_the_whole_report_s_time_counts_each_stage_once_and_is_unknown_while_a_stage_is():
    stages = [(stage, "", 10.0) for stage in times.STAGES]
    assert times.total(known(*stages, ("notebooks", "a", 9.0))).tolist() == [60.0, 60.0]
    assert times.total(known(*stages[1:])).isna().all()


def test_tables_are_read_as_they_were_written_and_say_what_made_them(tmp_path):
    assert times.read(tmp_path / "none.csv").empty
    spent = times.Times()
    spent.notebook("a", Spent(3.0, 4.0), whole=True)
    table = spent.table(times.read(tmp_path / "none.csv"), ["a"])
    times.write(table, tmp_path / "t.csv")
    back = times.read(tmp_path / "t.csv")
    assert back.columns.tolist() == times.COLUMNS and back.notebook.tolist() == ["a"] and back.wall_seconds[0] == 3.0
    assert "cores" in back.machine[0] and back.code[0].startswith("0.") and "torch" in back.packages[0]
    pd.testing.assert_frame_equal(times.Times().table(back, ["a"]), back, check_dtype=False)


def test_a_stage_is_whole_only_if_all_its_files_are_new(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("")
    os.utime(old, (0, 0))
    with times.Times().stage("training") as stage:
        new.write_text("")
        os.utime(new)
        assert stage.made([new]) and not stage.made([new, old]) and not stage.made([new, tmp_path / "none"])
        assert not stage.made([])


def test_the_slowest_notebooks_come_first_and_unknown_ones_before_them():
    earlier = known(("training", "", 500.0), ("notebooks", "a", 1.0), ("notebooks", "b", 8.0))
    assert times.slowest_first(["a", "b", "new"], earlier) == ["new", "b", "a"]

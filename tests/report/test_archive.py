"""Tables kept by name, and archives of them.

Trusted: pandas for what a table holds, the file system, and the measured geometry itself.
"""

import numpy as np
import pandas as pd
import pytest

from reptrace.measures.spectra import geometry
from reptrace.report import archive
from reptrace.report.archive import Answers, geometry_of, geometry_row, pack


def noise(rows):
    rng = np.random.default_rng(0)
    return pd.DataFrame({"model": [f"m{k % 3}" for k in range(rows)], "value": rng.standard_normal(rows),
                         "items": [list(rng.standard_normal(20)) for _ in range(rows)]})


def test_an_archive_holds_the_same_tables_in_small_files_and_no_others(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "LARGEST", 20_000)
    answers, table = Answers(tmp_path / "answers"), noise(600)
    answers.write("tasks_60", table)
    answers.write("tasks_6", table[:3])
    Answers(tmp_path / "archive").write("no_longer_asked_for", table[:3])
    pack(answers, tmp_path / "archive")
    files = {path.name: path.stat().st_size for path in (tmp_path / "archive").glob("*")}
    assert max(files.values()) <= 20_000 and len(files) > 4 and "tasks_6.parquet" in files  # 100 kB of random digits
    kept = Answers(tmp_path / "archive")
    assert kept.names == ["tasks_6", "tasks_60"]
    back = kept.read("tasks_60").assign(items=lambda t: t["items"].map(list))
    pd.testing.assert_frame_equal(back, table, check_exact=True)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "archive").glob("*")}
    pack(answers, tmp_path / "archive")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "archive").glob("*")} == before
    answers.write("tasks_60", table[:3])
    pack(answers, tmp_path / "archive")
    assert {path.name for path in (tmp_path / "archive").glob("*")} == {"tasks_6.parquet", "tasks_60.parquet"}


def test_a_table_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no table 'trace'.*make report"):
        Answers(tmp_path).read("trace")


@pytest.mark.parametrize("ranks", [(2, 6), None])
def test_a_geometry_comes_back_from_a_table_to_the_last_digit(tmp_path, ranks):
    found = geometry(np.random.default_rng(0).standard_normal((50, 8)), ranks)
    answers = Answers(tmp_path)
    answers.write("g", pd.DataFrame([geometry_row(found)]))
    back = geometry_of(answers.read("g").iloc[0])
    assert (back.eigenvalues == found.eigenvalues).all() and back.alpha == found.alpha
    assert (back.rankme, back.rankme_interval, back.samples) == (found.rankme, found.rankme_interval, found.samples)

"""The study of the toy model's phases: its plan, and its tracked table's columns and shares."""

import importlib.util
import sys
from dataclasses import replace

import pandas as pd
import pytest

from reptrace.report.profiles import ROOT
from reptrace.theory.losses import LOSSES


@pytest.fixture(scope="module")
def study():
    path = ROOT / "studies/toy_prevalence.py"
    spec = importlib.util.spec_from_file_location("toy_prevalence", path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "toy_prevalence", module)  # dataclasses look their module up
        spec.loader.exec_module(module)
        yield module


def test_no_setting_is_studied_twice_in_one_group_and_the_paper_is_among_them(study):
    plan = study.settings()
    assert len(set(plan)) == len(plan)
    paper = [s for s in plan if s.group == "control" and s.counts == (2, 2, 2, 2) and s.width == 3]
    assert {s.loss for s in paper} == set(LOSSES)


def test_a_row_of_the_study_has_the_tables_columns_and_shares_that_belong_together(study, monkeypatch):
    monkeypatch.setattr(study, "SEEDS", 8)
    (setting,) = [s for s in study.settings() if s.cause == "squared error" and s.width == 2]
    row = study.row(replace(setting, steps=400))
    table = pd.read_csv(study.OUT)
    assert list(row) == [column for column in table.columns if column not in {"code", "packages", "python", "machine"}]
    assert 0 <= row["large_fall"] <= row["late"] <= row["all_three"] <= min(row["collapse"], row["expansion"], 1)
    assert (table.late <= table.all_three + 1e-3).all() and (table.late_low <= table.late).all()
    assert len(table) == len(study.settings())

"""The study of estimators: a small part of it again, and what its tracked tables must say for what is promised of them.

Trusted: the binomial distribution; planted truths. The promises: of `Geometry.rankme_interval` and `alpha_interval`, of
`Geometry.settled`, of `estimators.extrapolated` and of the turns of `find_phases`.
"""

import importlib.util
import sys

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from reptrace.measures.spectra import FEWEST
from reptrace.report.profiles import ROOT

RESULTS = ROOT / "data/results"


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("estimators_study", ROOT / "studies/estimators.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "estimators_study", module)  # dataclasses look their module up
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def coverage():
    return pd.read_csv(RESULTS / "estimator_coverage.csv")


def alike(small: pd.DataFrame, tracked: pd.DataFrame, keys: list[str]) -> list[str]:
    """Rows whose coverage in a few draws is none that a tracked share would give in 999 of 1,000 tries."""
    both = small.astype({"ratio": float}).merge(tracked, on=keys, suffixes=("", "_tracked"))
    assert len(both) == len(small)
    apart = []
    for row in both[both.given > 0].to_dict("records"):
        # The tracked share is one of a sample, too: a share of both together that neither contradicts.
        hits = [round(row[f"covered{end}"] * row[f"given{end}"]) for end in ("", "_tracked")]
        table = [[hits[0], row["given"] - hits[0]], [hits[1], row["given_tracked"] - hits[1]]]
        if scipy.stats.fisher_exact(table).pvalue < 0.001:
            apart.append(f"{row['interval']}, {row['quantity']}: {table}")
    return apart


KEYS = ["spectrum", "rows", "width", "ratio", "interval", "quantity", "target"]


@pytest.mark.parametrize(("spectrum", "rows"), [("alpha 1", "normal"), ("alpha 2", "t of 5")])
def test_coverage_and_bias_come_out_again_in_a_small_part(study, coverage, monkeypatch, spectrum, rows):
    monkeypatch.setattr(study, "generator", lambda *which: np.random.default_rng(7))  # other draws than the study's
    found = pd.DataFrame(study.simulated(study.Planted(spectrum, rows), 2, 40))
    small = found[found.table == "coverage"].dropna(axis=1, how="all")
    assert alike(small, coverage, KEYS) == []
    keys = ["spectrum", "rows", "width", "ratio", "estimator", "quantity"]
    both = found[found.table == "bias"].dropna(axis=1, how="all").astype({"ratio": float}).merge(
        pd.read_csv(RESULTS / "estimator_bias.csv"), on=keys, suffixes=("", "_tracked"))
    noise = np.hypot(both.scatter / np.sqrt(both.draws), both.scatter_tracked / np.sqrt(both.draws_tracked))
    assert len(both) == 10 and ((both.bias - both.bias_tracked).abs() < 4 * noise).all()


def test_coverage_of_turns_comes_out_again(study, coverage, monkeypatch):
    monkeypatch.setattr(study, "generator", lambda *which: np.random.default_rng(7))
    assert alike(pd.DataFrame(study.turns("sharp", "same", 4, 12)), coverage, KEYS) == []


def surely_below(table: pd.DataFrame, share: float) -> list[dict]:
    """Cases that cover less than a share, beyond what counting draws could do in one of 1,000 tries."""
    table = table[table.given > 0]
    hits = (table.covered * table.given).round()
    return table[scipy.stats.binom.cdf(hits, table.given, share) < 0.001][[*KEYS, "covered"]].to_dict("records")


def test_intervals_hold_what_they_are_said_to_hold(coverage):
    planted = coverage[coverage.kind == "planted"]
    same = coverage[(coverage.target == "average at this N") & (coverage.given > 0)]
    better = coverage[coverage.interval == "extrapolated in 1/N"]
    turns = planted[planted.interval == "detector of phases"]
    settled = planted[planted.interval == "plain, if settled"]
    assert set(same.kind) == {"planted", "planted, wide", "trained"} and surely_below(same, 0.9) == []
    assert (same[same.quantity == "RankMe"].samples >= FEWEST).all()
    assert set(better[better.given > 0].kind) == set(same.kind) and surely_below(better, 0.9) == []
    least = np.where(better.quantity == "RankMe", 2 * better.width, 8 * np.minimum(31, better.width))
    enough = (better.samples >= 2 * better.width) & (better.samples >= least)
    assert (better.given > 0).equals(enough)  # none is given of fewer
    assert (turns.given.sum() > 1000) and surely_below(turns, 0.95) == []
    assert (settled.given.sum() > 1000) and surely_below(settled, 0.9) == []


def test_the_plain_interval_does_not_hold_the_value_of_infinitely_many(coverage):
    """Why it isn't said to."""
    table = coverage[(coverage.interval == "plain") & (coverage.target == "infinitely many")
                     & (coverage.quantity == "RankMe") & (coverage.spectrum == "alpha 0.5")]
    assert (table.covered < 0.5).all()


def test_a_power_law_is_judged_one_and_what_is_broken_is_not():
    judged = pd.read_csv(RESULTS / "estimator_judged.csv")
    hits, ours = (judged.rejected * judged.draws).round(), judged.true_power_law
    assert (hits[ours] <= scipy.stats.binom.ppf(0.999, judged.draws[ours], 0.05)).all()
    assert (judged[~ours & (judged.ratio == 10) & (judged.rows == "normal")].rejected > 0.9).all()


def test_every_cell_of_the_plan_is_another_and_the_tables_have_them_all(study, coverage):
    plan = [(*identity["which"], identity["part"]) for identity, _ in study.plan()]
    assert len(set(plan)) == len(plan)
    cells = coverage[coverage.interval == "plain"].groupby(["spectrum", "rows", "width", "ratio"]).ngroups
    assert cells == sum(part[-1] in ("planted", "wide", "trained") for part in plan)

"""Where all runs turn, gathered, and what follows for the claims on the law.

Trusted: the numbers of parameters without embeddings that Pythia's authors state, the tracked tables' own columns, and
laws whose intervals are stated outright.
"""

import numpy as np
import pandas as pd
import pytest
import yaml

from reptrace.measures.phases import find_phases
from reptrace.measures.turn_law import Law
from reptrace.report import turns
from reptrace.report.profiles import ROOT, Profile
from reptrace.report.verdicts import NOT, OPEN, REPRODUCED

# Pythia's README, "non-embedding parameters"
WITHOUT_EMBEDDINGS = {"pythia-1b": 805_736_448, "pythia-1.4b": 1_208_602_624, "pythia-2.8b": 2_517_652_480,
                      "pythia-6.9b": 6_444_163_072, "pythia-12b": 11_327_027_200}


def test_every_group_of_the_reference_suite_has_a_name():
    assert set(turns.KINDS) == set(yaml.safe_load((ROOT / "studies/reference.yaml").read_text())["groups"])


def test_published_turns_stand_in_their_intervals_with_the_stated_counts_and_batches():
    found = turns.of_published(1.3).set_index("run")
    assert {name: found.without_embeddings[name] for name in WITHOUT_EMBEDDINGS} == WITHOUT_EMBEDDINGS
    assert set(found.suite) == {"Pythia (published)", "OLMo 2 (published)"} and found.published.all()
    np.testing.assert_allclose([found.turn / found.low, found.high / found.turn], 1.3)
    assert found.step_tokens["pythia-1b"] * 2 == found.step_tokens["OLMo-2-7B"] == 4_194_304


def test_every_run_of_the_reference_tables_has_its_row_of_each_kind_of_weights():
    tables = turns.reference()
    runs = turns.of_reference(tables)
    assert len(runs) == len(tables.drop_duplicates(["suite", "width", "seed", "weights"]))
    last = tables.groupby(["suite", "parameters", "seed", "weights"]).last()
    assert sorted(runs.end) == sorted(last.tokens) and set(runs.suite) <= set(turns.KINDS.values())
    assert set(runs.step_tokens) == set(tables.tokens[tables.step == 1])
    seen = runs[runs.turn.notna()]
    assert ((seen.low < seen.turn) & (seen.turn < seen.high)).all()
    unseen = runs[runs.turn.isna() & runs.low.notna()]
    assert np.isinf(unseen.high).all() and (unseen.low < unseen.end).all()


def test_a_profile_s_runs_are_one_suite_and_one_that_says_nothing_is_kept_and_passed_over():
    profile = Profile.of(yaml.safe_load((ROOT / "notebooks/params/tiny.yaml").read_text()) | {"corpus": "README.md"})
    curve = np.array([9, 6, 3, 6, 12, 10, 9, 8])
    phases = {run: find_phases([0, 1, 2, 4, 8, 16, 32, 64], curve if k else np.sort(curve)[::-1], np.full(8, 0.01))
              for k, run in enumerate(profile.runs)}
    runs = turns.of_profile(profile, phases)
    assert list(runs.low.isna()) == [True] + [False] * (len(runs) - 1) and runs.suite.nunique() == 1
    assert list(runs.parameters - runs.without_embeddings) == [2 * run.vocabulary * run.width for run in profile.runs]
    assert turns.law_of(runs).sizes == runs.parameters.nunique()


def planted(exponent, steps=1.0):
    """Six runs of two suites on exact laws, of batches 100 and 1e4."""
    rows = [(suite, parameters, factor * parameters**exponent, batch) for suite, factor, batch, sizes in (
        ("a", 10, 100, (1e5, 3e5, 1e6)), ("b", 10 * steps * 100 * 100**exponent, 1e4, (1e7, 3e7, 1e8)))
        for parameters in sizes]
    runs = pd.DataFrame(rows, columns=["suite", "parameters", "turn", "step_tokens"])
    scatter = np.exp([0.05, -0.1, 0.05, -0.05, 0.1, -0.05])  # of no slope
    return runs.assign(low=runs.turn * scatter / 1.05, high=runs.turn * scatter * 1.05,
                       without_embeddings=runs.parameters / 2)


def test_laws_are_within_suites_or_over_all_of_them_in_tokens_or_in_steps():
    runs = planted(0.5)
    assert turns.law_of(runs).exponent == pytest.approx(0.5, abs=0.02)  # the intervals' width
    assert turns.law_of(runs, pooled=True).exponent > 0.9
    assert turns.between(runs).sizes == 2  # of which nothing can be said
    in_steps = turns.law_of(runs, unit=runs.step_tokens)
    assert in_steps.exponent == pytest.approx(turns.law_of(runs).exponent, abs=1e-3), "one batch a suite"
    cases = turns.without_each([runs, runs.assign(low=runs.low / 2, high=runs.high * 2)])
    assert len(cases) == 6 and {len(case) for case in cases} == {4}
    assert cases[0][0].sizes == 5 and cases[0][0].high - cases[0][0].low < cases[0][2].high - cases[0][2].low


def law(low, high):
    return Law((low + high) / 2, low, high, 0.1, 5, {})


@pytest.mark.parametrize(("cases", "fixed", "per_parameter"), [
    ([[law(-0.2, 0.3)], [law(-0.1, 0.4)]], (REPRODUCED, 2), (NOT, 0)),
    ([[law(0.2, 0.6)], [law(0.3, 0.4)]], (NOT, 0), (NOT, 0)),
    ([[law(0.2, 0.6)], [law(-0.1, 0.4)]], (OPEN, 1), (NOT, 0)),
    ([[law(-0.2, 1.3)], [law(-0.1, 0.4)]], (OPEN, 2), (OPEN, 1)),
    ([[law(0.7, 1.3), law(0.5, 0.9)]], (NOT, 0), (OPEN, 0)),
    ([[law(np.nan, np.nan)]], (OPEN, 1), (OPEN, 1)), ([], (OPEN, 0), (OPEN, 0))])
def test_a_verdict_is_that_of_every_law(cases, fixed, per_parameter):
    assert (turns.verdict_on(0, cases), turns.verdict_on(1, cases)) == (fixed, per_parameter)

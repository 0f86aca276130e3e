"""Late falls over seeds, on planted runs and on the tracked table of the study of causes.

Trusted: scipy's own t-tests and their intervals, and ratios we planted.
"""

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from reptrace.report.late_falls import LATE, fates, summary
from reptrace.report.over_runs import mean_over, ratio_over
from reptrace.report.profiles import ROOT
from reptrace.report.verdicts import NOT, OPEN, REPRODUCED


def planted(**ratios):
    """Runs of conditions, a ratio a seed, each known to 0.1 %; a ratio of 1 is that of a run at its highest."""
    return pd.DataFrame([
        {"condition": name, "seed": seed, "late_ratio": ratio, "late_low": ratio - 0.001, "late_high": ratio + 0.001,
         "tokens": 100, "peak_tokens": 100 if ratio == 1 else 60,
         "predicted_compression": "yes" if name == "default" else "no"}
        for name, values in ratios.items() for seed, ratio in enumerate(values)])


@pytest.fixture(params=["now", "shorter", "longer"])
def tracked(request):
    runs = pd.read_csv(ROOT / f"data/results/causes{'' if request.param == 'now' else '_older'}.csv")
    if request.param != "now":
        runs = runs[runs.study == request.param]
    small = [name for name in runs.condition.unique() if name.startswith("V =")]
    return runs, {name: small[0] if name in small else "default" for name in runs.condition.unique()}


def test_means_over_runs_and_their_intervals_are_scipys():
    values = [0.3, -0.1, 0.2, 0.7]
    low, high = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean_over(values) == pytest.approx((np.mean(values), low, high), rel=1e-12)  # one formula in float64
    assert ratio_over(np.exp(values)) == pytest.approx(tuple(np.exp(mean_over(values))), rel=1e-12)
    assert np.isnan(mean_over([1.0])).all() and np.isnan(mean_over([1.0, 2.0, np.nan])).all()
    assert np.isnan(ratio_over([0.0, 1.0, 2.0])).all(), "no logarithm, and no interval that holds nothing but itself"


def test_a_run_at_its_highest_at_the_end_has_not_been_seen_to_keep_its_rank():
    runs = planted(default=[0.95, 0.9995, 1])
    assert fates(runs).tolist() == ["fell", "no fall", "highest at the end"]


def test_the_smaller_fall_of_raw_and_averaged_weights_counts():
    runs = planted(default=[0.9, 0.95, 0.9, 0.96])
    averaged = planted(default=[0.97, 0.8, 1, 0.9998])[[*LATE]].add_prefix("averaged_")
    both = runs.join(averaged)
    assert fates(both).tolist() == ["fell", "fell", "highest at the end", "no fall"]
    found = summary(both, {"default": "default"}).loc["default"]
    assert found.change == pytest.approx(scipy.stats.gmean([0.97, 0.95, 1, 0.9998]) - 1, rel=1e-12)  # one formula
    pd.testing.assert_frame_equal(summary(both.drop(columns=averaged.columns), {"default": "default"}),
                                  summary(runs, {"default": "default"}))


@pytest.mark.parametrize(("reference", "changed", "verdicts"), [
    ([0.95, 0.96, 0.94], [0.9999, 0.9995, 0.9998], (REPRODUCED, REPRODUCED)),
    ([0.95, 0.96, 0.94], [0.9999, 1, 1], (REPRODUCED, OPEN)),  # two are at their highest: a fall may be yet to come
    ([0.95, 0.96, 0.94], [0.95, 0.96, 0.94], (REPRODUCED, NOT)),
    ([0.95, 0.96, 0.94], [0.95, 1, 1], (REPRODUCED, OPEN)),
    ([0.993, 0.985, 0.975], [0.995, 0.995, 0.99], (OPEN, OPEN)),  # all fell, within the scatter
    ([0.993, 0.985, 0.975], [0.9999, 0.9995, 0.9998], (OPEN, OPEN)),  # no fall beyond the scatter that could be missed
    ([0.9999, 0.9998, 0.9999], [1, 1, 1], (NOT, OPEN)),
    ([0.95, 0.95], [1, 1], (OPEN, OPEN))])  # too few
def test_a_verdict_is_never_stronger_than_the_scatter_between_seeds(reference, changed, verdicts):
    found = summary(planted(default=reference, changed=changed), {"default": "default", "changed": "default"})
    assert tuple(found.verdict) == verdicts


def test_the_summary_of_the_tracked_runs_is_that_of_paired_t_tests(tracked):
    runs, references = tracked
    found = summary(runs, references)
    assert list(found.index) == list(runs.condition.unique())
    of = ("", "averaged_") if "averaged_late_ratio" in runs else ("",)
    runs = runs.assign(late=[max(row[f"{name}late_ratio"] for name in of) for _, row in runs.iterrows()],
                       fell=[all(row[f"{name}late_high"] < 1 for name in of) for _, row in runs.iterrows()])
    logs = {name: np.log(group.sort_values("seed").late.to_numpy()) for name, group in runs.groupby("condition")}
    for name, row in found.iterrows():
        group = runs[runs.condition == name]
        assert row.fell + row.kept + row.highest == row.seeds == len(group)
        assert row.fell == sum(group.fell)
        if np.ptp(logs[name]):
            low, high = scipy.stats.ttest_1samp(logs[name], 0).confidence_interval(0.95)
            assert (row.low, row.high) == pytest.approx((np.expm1(low), np.expm1(high)), rel=1e-9)
        elif len(group) > 1:
            assert np.isnan(row.change) and row.verdict == OPEN, "no scatter, nothing said"
        if np.ptp(logs[name] - logs[references[name]]):
            low, high = scipy.stats.ttest_rel(logs[name], logs[references[name]]).confidence_interval(0.95)
            assert (row.apart_low, row.apart_high) == pytest.approx((np.expm1(low), np.expm1(high)), rel=1e-9)
        if row.low <= 0 <= row.high and row.fell:
            assert row.verdict == OPEN, "all that it rests on lies within the scatter"

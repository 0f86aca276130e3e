"""Correlations over checkpoints.

Trusted: scipy.stats' pearsonr and spearmanr, values and p-values; residuals of a least-squares regression written
here; p-values published in Table 9 (data/published/paper_tables.csv); and simulated runs whose truth is known: two
curves that follow time and nothing else, and two that share every move.
"""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from reptrace.tasks.correlations import KINDS, METHODS, Correlation, Undefined, correlate, over_runs, p_value, table

TOKENS = np.geomspace(1e5, 1e9, 40)


def both_follow_time(rng, noise=0.1):
    """x rises and y falls along ln tokens, each with noise of its own: independent but for time."""
    time = np.linspace(-1, 1, len(TOKENS))
    return time + noise * rng.standard_normal(len(time)), -time + noise * rng.standard_normal(len(time))


def residuals(y, t):
    design = np.column_stack([np.ones_like(t), t])
    return y - design @ np.linalg.lstsq(design, y, rcond=None)[0]


# Against outside implementations


@pytest.mark.parametrize("method", METHODS)
def test_plain_correlations_and_their_p_values_are_scipys(method, rng):
    x, y = both_follow_time(rng, 1.0)
    expected = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}[method](x, y)
    found = correlate(TOKENS, x, y, method=method)
    np.testing.assert_allclose([found.value, found.p_value], [expected.statistic, expected.pvalue], rtol=1e-12)
    assert found.n == len(TOKENS)


@pytest.mark.parametrize("method", METHODS)
def test_partial_correlations_are_those_of_regression_residuals(method, rng):
    x, y = both_follow_time(rng)
    columns = [np.log(TOKENS), x, y] if method == "pearson" else [stats.rankdata(c) for c in (TOKENS, x, y)]
    t, *rest = columns
    expected = stats.pearsonr(*(residuals(column, t) for column in rest)).statistic
    found = correlate(TOKENS, x, y, "partial", method)
    assert found.value == pytest.approx(expected, rel=1e-10)
    assert found.p_value == pytest.approx(p_value(expected, len(TOKENS), given=1), rel=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_changes_are_differences_of_neighbours_in_order_of_tokens(method, rng):
    x, y = both_follow_time(rng)
    expected = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}[method](np.diff(x), np.diff(y))
    order = rng.permutation(len(TOKENS))
    found = correlate(TOKENS[order], x[order], y[order], "changes", method)
    assert found.value == pytest.approx(expected.statistic, rel=1e-12)
    assert found.n == len(TOKENS) - 1


@pytest.mark.parametrize(("r", "published", "n"), [
    (0.810, 1.50e-5, 20), (-0.759, 1.04e-4, 20), (0.668, 1.29e-3, 20), (-0.713, 4.18e-4, 20), (0.694, 6.88e-4, 20),
    (-0.635, 2.63e-3, 20), (0.837, 4.20e-6, 20), (-0.885, 2.19e-7, 20), (0.836, 4.42e-6, 20), (-0.839, 3.79e-6, 20),
    (0.540, 4.92e-7, 76), (-0.616, 3.20e-9, 76)])
def test_the_published_p_values_are_those_of_independent_checkpoints(r, published, n):
    # r is published to three digits: half of the last one moves p by up to 6 % here
    assert p_value(r, n) == pytest.approx(published, rel=0.07)


def test_p_values_at_the_ends():
    assert p_value(1.0, 10) == 0 and p_value(0.0, 10) == 1
    assert np.isnan(p_value(0.5, 3, given=1)) and not np.isnan(p_value(0.5, 4, given=1))


# Simulated runs


def test_two_curves_that_only_follow_time_correlate_but_their_changes_and_what_is_left_of_them_do_not():
    found = {kind: [] for kind in KINDS}
    for seed in range(200):
        x, y = both_follow_time(np.random.default_rng(seed))
        for kind in KINDS:
            found[kind].append(correlate(TOKENS, x, y, kind, draws=1).value)
    assert max(found["plain"]) < -0.9
    # the mean of 200 correlations of 40 independent points: standard deviation 1 / sqrt(39 * 200) = 0.011; the
    # differences of noise hang together, which doubles that at most
    assert abs(np.mean(found["partial"])) < 0.04
    assert np.mean(found["changes"]) == pytest.approx(0, abs=0.08)
    assert np.std(found["partial"]) == pytest.approx(1 / np.sqrt(37), rel=0.2)


def test_two_curves_that_share_their_moves_correlate_in_every_kind(rng):
    shared = rng.standard_normal(len(TOKENS)).cumsum()
    x, y = (shared + 0.1 * rng.standard_normal(len(TOKENS)) for _ in range(2))
    for kind in KINDS:
        found = correlate(TOKENS, x, y, kind)
        assert found.value > 0.9 and found.low > 0.8 and found.low < found.value < found.high


# Intervals


def test_blocks_of_one_point_give_the_ordinary_bootstrap(rng):
    x, y = both_follow_time(rng, 1.0)
    found = correlate(TOKENS, x, y, block=1, draws=5000)
    expected = stats.bootstrap((x, y), lambda a, b, axis: stats.pearsonr(a, b, axis=axis).statistic, paired=True,
                               vectorized=True, n_resamples=5000, method="percentile", rng=1)
    # two bootstraps of 5000 draws: their 2.5 % quantiles differ by about 0.006
    np.testing.assert_allclose([found.low, found.high], list(expected.confidence_interval), atol=0.03)


def test_intervals_cover_the_truth_where_neighbours_hang_together_and_single_points_would_not():
    def covered(seed, block):
        rng = np.random.default_rng(seed)
        x, y = (_autoregressive(rng, 100, 0.7) for _ in range(2))
        found = correlate(np.arange(1, 101), x, y, block=block, draws=200, seed=seed)
        return found.low < 0 < found.high

    shares = {block: np.mean([covered(seed, block) for seed in range(200)]) for block in (1, 10)}
    assert shares[10] > 0.83  # of 0.95 asked for: percentile intervals of 10 blocks are known to be too narrow
    assert shares[1] < shares[10] - 0.08


def _autoregressive(rng, n, coefficient):
    values = rng.standard_normal(n + 50)
    for k in range(1, n + 50):
        values[k] += coefficient * values[k - 1]
    return values[50:]


def test_intervals_repeat_by_their_seed_and_state_their_block(rng):
    x, y = both_follow_time(rng, 1.0)
    first, again, other = (correlate(TOKENS, x, y, seed=seed) for seed in (0, 0, 1))
    assert first == again and (first.low, first.high) != (other.low, other.high)
    assert first.block == 3 and correlate(TOKENS, x, y, block=7).block == 7  # the cube root of 40


def test_an_interval_over_runs_is_students_of_fishers_z():
    values = [0.5, 0.7, 0.9]
    found = over_runs([Correlation("plain", "pearson", value, 0, 0, 0, 10, 2) for value in values])
    z = np.arctanh(values)
    expected = stats.ttest_1samp(z, 0)
    interval = expected.confidence_interval()
    np.testing.assert_allclose([found.value, found.p_value, found.low, found.high],
                               [np.tanh(z.mean()), expected.pvalue, np.tanh(interval.low), np.tanh(interval.high)])
    assert (found.n, found.block) == (3, 0)


def test_one_run_alone_says_nothing_of_other_seeds():
    alone = over_runs([Correlation("plain", "pearson", 0.5, 0, 0, 0, 10, 2)])
    assert alone.value == pytest.approx(0.5) and np.isnan([alone.p_value, alone.low, alone.high]).all()


# Tables and awkward inputs


def test_a_table_has_every_kind_for_each_run_and_over_them(rng):
    runs = []
    for _ in range(3):
        x, y = both_follow_time(rng)
        runs.append(pd.DataFrame({"tokens": TOKENS, "acc": x, "rankme": y, "alpha": -y}))
    found = table(runs, "acc", draws=50)
    assert len(found) == 2 * len(KINDS) * len(METHODS) * 4 and set(found.run) == {0, 1, 2, "all"}
    plain = found[(found.kind == "plain") & (found.method == "pearson") & (found.run == 0)].set_index("measure").value
    assert plain["rankme"] == pytest.approx(-plain["alpha"])
    assert set(table(runs[:1], "acc", draws=50).run) == {0}


def test_a_table_leaves_out_what_is_undefined(rng):
    x, y = both_follow_time(rng)
    first_differs = np.r_[1.0, np.zeros(39)]  # at 0 tokens, which no correlation takes
    short = pd.DataFrame({"tokens": TOKENS[:3], "accuracy": x[:3], "rankme": y[:3]})
    constant = pd.DataFrame({"tokens": [0.0, *TOKENS[1:]], "accuracy": first_differs, "rankme": y})
    whole = pd.DataFrame({"tokens": TOKENS, "accuracy": x, "rankme": y})
    found = table([short, whole, constant], measures=["rankme"], draws=50)
    assert set(found.run) == {1} and len(found) == len(KINDS) * len(METHODS)
    assert set(table([short, whole, constant, whole], measures=["rankme"], draws=50).run) == {1, 3, "all"}
    none = table([constant], measures=["rankme"], draws=50)
    assert none.empty and list(none.columns) == list(found.columns)


def test_a_single_measure_or_method_counts_as_a_list_of_one():
    rng = np.random.default_rng(0)
    run = pd.DataFrame({"tokens": np.arange(1, 9), "acc": rng.random(8), "rankme": rng.random(8)})
    pd.testing.assert_frame_equal(table(run, "acc", "rankme", "pearson", draws=20),
                                  table([run], "acc", ["rankme"], ["pearson"], draws=20))


def test_gaps_and_the_start_are_left_out(rng):
    x, y = both_follow_time(rng, 1.0)
    expected = correlate(TOKENS[1:], x[1:], y[1:])
    gap = x.copy()
    gap[0] = np.nan
    assert correlate(TOKENS, gap, y) == expected
    assert correlate([0.0, *TOKENS[1:]], x, y) == expected


def test_arguments_are_left_as_they_are(rng):
    x, y = both_follow_time(rng)
    copies = TOKENS.copy(), x.copy(), y.copy()
    correlate(TOKENS, x, y, "partial", "spearman")
    for given, copy in zip((TOKENS, x, y), copies, strict=True):
        np.testing.assert_array_equal(given, copy)


@pytest.mark.parametrize(("change", "message"), [
    ({"kind": "total"}, "kind must be one of"), ({"method": "kendall"}, "method one of"),
    ({"block": 0}, "a block must be of 1 to 40"), ({"block": 41}, "a block must be of 1 to 40"),
    ({"x": [0.1, 0.2]}, "lists of one length"), ({"tokens": [1e6, 1e6, *TOKENS[2:]]}, "stands twice")])
def test_bad_input_is_refused(change, message, rng):
    x, y = both_follow_time(rng)
    with pytest.raises(ValueError, match=message):
        correlate(**{"tokens": TOKENS, "x": x, "y": y, **change})


@pytest.mark.parametrize(("change", "message"), [
    ({"x": np.full(40, 0.1)}, "constant"), ({"x": np.log(TOKENS), "kind": "partial"}, "follows ln tokens exactly"),
    ({"tokens": [*[0.0] * 37, 1, 2, 3]}, "needs four of them or more, got 3")])
def test_a_correlation_that_does_not_exist_says_why(change, message, rng):
    x, y = both_follow_time(rng)
    with pytest.raises(Undefined, match=message):
        correlate(**{"tokens": TOKENS, "x": x, "y": y, **change})


def test_correlations_of_different_kinds_are_not_combined(rng):
    x, y = both_follow_time(rng)
    with pytest.raises(ValueError, match="one kind and one method"):
        over_runs([correlate(TOKENS, x, y), correlate(TOKENS, x, y, "changes")])
    with pytest.raises(ValueError, match="at least one"):
        over_runs([])

"""Phases of a trajectory.

Trusted: trajectories we planted, with noise of a known size around turns at known places, and binomial bounds on how
often a method that keeps its word may fail over hundreds of them; scipy's normal and studentized-range quantiles, and
a simulation with all pairs written out, for the critical value. `at_least` and `at_most` are the bounds that a true
rate of 95 % (5 %) misses once in a thousand tests.
"""

from functools import cache
from itertools import combinations

import numpy as np
import pytest
import scipy.stats

from reptrace.phases import PHASES, Change, claims, critical_value, elsewhere, find_phases, turn_exponent

SEEDS = 500
SHARES = {"three phases": [19, 7, 25, 20], "down and up": [19, 7, 25], "up and down": [7, 25, 20], "down": [25, 7],
          "up": [7, 25], "flat": [20, 20]}


def at_least(count, share=0.95):
    return scipy.stats.binom.ppf(0.001, count, share)


def at_most(count, share=0.05):
    return scipy.stats.binom.ppf(0.999, count, share)


def planted(shape, points, rounded=True):
    """Tokens on a log scale and the true curve: moves between the extremes of SHARES, equally long; turns' positions.

    Rounded turns (half a cosine a move) are the hard case: many checkpoints lie near the extreme.
    """
    extremes = np.log(SHARES[shape])
    place = np.linspace(0, len(extremes) - 1, points)
    move = np.minimum(place.astype(int), len(extremes) - 2)
    within = place - move
    within = (1 - np.cos(np.pi * within)) / 2 if rounded else within
    curve = np.exp(extremes[move] + within * (extremes[move + 1] - extremes[move]))
    turns = [int(np.abs(place - k).argmin()) for k in range(1, len(extremes) - 1)]
    return 2.0 ** np.linspace(10, 30, points), curve, turns


@cache
def noisy(shape, points, noise, rounded=True):
    """The phases found in many noisy copies of a planted trajectory, with its tokens, curve and turns."""
    tokens, curve, turns = planted(shape, points, rounded)
    rng = np.random.default_rng(0)
    found = [find_phases(tokens, curve + noise * curve * rng.standard_normal(points), noise * curve)
             for _ in range(SEEDS)]
    return found, tokens, curve, turns


# Planted phases


@pytest.mark.parametrize("rounded", [True, False])
@pytest.mark.parametrize("points", [10, 40])
def test_without_noise_every_phase_is_found_exactly_where_it_was_planted(points, rounded):
    tokens, curve, (low, high) = planted("three phases", points, rounded)
    found = find_phases(tokens, curve, 1e-9 * curve)
    assert (found.collapse_end.index, found.turn.index) == (low, high)
    assert (found.collapse_end.tokens, found.turn.tokens) == (tokens[low], tokens[high])
    assert (found.collapse_end.value, found.turn.value) == (curve[low], curve[high])
    assert found.spans == [("warmup", 0, low), ("entropy-seeking", low, high),
                           ("compression-seeking", high, points - 1)]
    assert found.collapse.ratio == pytest.approx(curve[low] / curve[0], rel=1e-12)
    assert found.expansion.ratio == pytest.approx(curve[high] / curve[low], rel=1e-12)
    assert found.compression.ratio == pytest.approx(curve[-1] / curve[high], rel=1e-12)
    # With no noise to speak of, the neighbours already differ from the extreme: nothing wider is claimed
    for turn, at in ((found.collapse_end, low), (found.turn, high)):
        assert turn.interval == (tokens[at - 1], tokens[at + 1]) and turn.open == ""


@pytest.mark.parametrize("rounded", [True, False])
@pytest.mark.parametrize(("points", "noise"), [(20, 0.01), (40, 0.02), (80, 0.03)])
def test_planted_turns_lie_in_their_intervals_as_often_as_promised(points, noise, rounded):
    found, tokens, _, (low, high) = noisy("three phases", points, noise, rounded)
    for name, at in (("collapse_end", low), ("turn", high)):
        turns = [turn for phases in found if (turn := getattr(phases, name))]
        assert len(turns) > 0.3 * SEEDS  # seen often enough to judge
        covered = sum(turn.interval[0] <= tokens[at] <= turn.interval[1] for turn in turns)
        assert covered >= at_least(len(turns))
        # An interval over the whole trajectory would cover too, and say nothing
        ratios = [turn.interval[1] / turn.interval[0] for turn in turns]
        assert np.median(np.log(ratios)) < 0.9 * np.log(tokens[-1] / tokens[0])


@pytest.mark.parametrize("points", [20, 60])
def test_phases_that_stand_well_out_of_the_noise_are_always_found(points):
    found = noisy("three phases", points, 0.01)[0]  # the smallest change, a fifth, is 14 standard errors
    names = [[name for name, _, _ in phases.spans] for phases in found]
    expected = ["warmup", "entropy-seeking", "compression-seeking"]
    assert sum(name == expected for name in names) >= at_least(SEEDS)


@pytest.mark.parametrize(("points", "noise"), [(20, 0.01), (80, 0.03)])
@pytest.mark.parametrize("name", ["collapse", "expansion", "compression"])
def test_planted_changes_lie_in_their_intervals_as_often_as_promised(name, points, noise):
    found, _, curve, (low, high) = noisy("three phases", points, noise)
    true = {"collapse": curve[low] / curve[0], "expansion": curve[high] / curve[low],
            "compression": curve[-1] / curve[high]}[name]
    changes = [change for phases in found if (change := getattr(phases, name))]
    # Both ends of a change are picked as extremes of noisy values, which overstates it: the interval must allow for it
    assert sum(change.interval[0] <= true <= change.interval[1] for change in changes) >= at_least(len(changes))


def test_a_rise_after_the_compression_is_a_span_of_its_own():
    values = np.array([19, 7, 25, 18, 24.0])
    found = find_phases(np.arange(1, 6), values, 0.01 * values)
    assert [span[0] for span in found.spans] == ["warmup", "entropy-seeking", "compression-seeking", "later"]
    assert found.spans[-1] == ("later", 3, 4)
    assert found.compression.ratio == pytest.approx(18 / 25)  # to the lowest value, not to the last


# Fewer phases


MISSING = [("flat", "collapse_end"), ("flat", "turn"), ("up", "collapse_end"), ("up", "turn"), ("down", "collapse_end"),
           ("down", "turn"), ("down and up", "turn"), ("up and down", "collapse_end")]


@pytest.mark.parametrize("points", [8, 25, 80])
@pytest.mark.parametrize(("shape", "turn"), MISSING)
def test_a_turn_that_is_not_there_is_seldom_invented(shape, turn, points):
    for noise in (0.01, 0.15):  # where the moves tower over the noise, and where it half hides them
        found = noisy(shape, points, noise)[0]
        assert sum(getattr(phases, turn) is not None for phases in found) <= at_most(SEEDS)


@pytest.mark.parametrize("points", [8, 25, 80])
@pytest.mark.parametrize(("shape", "change"), [
    ("flat", "collapse"), ("flat", "expansion"), ("flat", "compression"), ("up", "collapse"), ("down", "expansion"),
    ("down and up", "compression"),
])
def test_a_change_that_is_not_there_is_seldom_invented(shape, change, points):
    found = noisy(shape, points, 0.15)[0]
    assert sum(getattr(phases, change) is not None for phases in found) <= at_most(SEEDS)


@pytest.mark.parametrize(("shape", "spans", "seen"), [
    ("down", ["warmup"], {"collapse"}), ("up", ["entropy-seeking"], {"expansion"}), ("flat", [], set()),
    ("down and up", ["warmup", "entropy-seeking"], {"collapse", "collapse_end", "expansion"}),
    ("up and down", ["entropy-seeking", "compression-seeking"], {"expansion", "turn", "compression"}),
])
def test_with_fewer_phases_the_missing_ones_are_none(shape, spans, seen):
    tokens, curve, _ = planted(shape, 30)
    found = find_phases(tokens, curve, 0.001 * curve)
    assert [name for name, _, _ in found.spans] == spans
    parts = ("collapse_end", "turn", "collapse", "expansion", "compression")
    assert {part for part in parts if getattr(found, part) is not None} == seen


# Identities


def test_scale_of_the_values_and_of_the_tokens_does_not_matter(rng):
    tokens, curve, _ = planted("three phases", 40)
    values = curve * (1 + 0.02 * rng.standard_normal(40))
    found = find_phases(tokens, values, 0.02 * values)
    scaled = find_phases(1e3 * tokens, 1e-6 * values, 1e-6 * 0.02 * values)
    assert scaled.spans == found.spans
    np.testing.assert_allclose(scaled.turn.interval, 1e3 * np.array(found.turn.interval), rtol=1e-12)
    assert scaled.compression.ratio == pytest.approx(found.compression.ratio, rel=1e-12)


def test_gaps_are_left_out_and_indices_still_count_them(rng):
    tokens, curve, _ = planted("three phases", 40)
    values = curve * (1 + 0.01 * rng.standard_normal(40))
    gaps = np.array([0, 7, 13, 14, 26, 27, 39])
    kept = np.delete(np.arange(40), gaps)
    with_gaps, stderr = values.copy(), 0.01 * values
    with_gaps[gaps], stderr[gaps[:3]] = np.nan, np.nan
    found, expected = find_phases(tokens, with_gaps, stderr), find_phases(tokens[kept], values[kept], stderr[kept])
    assert found.turn.tokens == expected.turn.tokens and found.turn.interval == expected.turn.interval
    assert found.turn.index == kept[expected.turn.index] and tokens[found.turn.index] == found.turn.tokens
    assert found.spans == [(name, kept[first], kept[last]) for name, first, last in expected.spans]
    assert found.spans[0][1] == 1 and found.spans[-1][2] == 38
    assert found.compression == expected.compression


def test_arguments_are_left_as_they_are_and_lists_will_do():
    columns = [[1.0, 2.0, 3.0, 4.0], [19.0, 7.0, np.nan, 25.0], [0.1, 0.1, np.nan, 0.1]]
    arrays = [np.array(column) for column in columns]
    assert find_phases(*columns) == find_phases(*arrays)
    for array, column in zip(arrays, columns, strict=True):
        np.testing.assert_array_equal(array, column)


@pytest.mark.parametrize("values", [[7, 7, 7, 25, 25, 20], [19, 7, 25, 24.999, 19, 19], [19, 19, 7, 7, 7, 25],
                                    [20, 25, 24.999, 24.998, 20, 20]])
def test_an_interval_reaches_to_the_nearest_checkpoints_that_differ(values):
    values = np.array(values, dtype=float)
    found = find_phases(np.arange(1, 7), values, np.full(6, 0.01))
    for turn in filter(None, (found.collapse_end, found.turn)):
        # From the definition: nearest checkpoints that differ by far more than noise of 0.01
        left = [k for k in range(turn.index) if abs(values[k] - turn.value) > 0.1]
        right = [k for k in range(turn.index + 1, 6) if abs(values[k] - turn.value) > 0.1]
        assert turn.interval == (1 + (left[-1] if left else 0), 1 + (right[0] if right else 5))
        assert turn.open == {(0, 0): "both", (0, 1): "left", (1, 0): "right", (1, 1): ""}[bool(left), bool(right)]


# Verdicts


@pytest.mark.parametrize(("interval", "threshold", "verdict"), [
    ((0.30, 0.45), 0.5, "yes"), ((0.45, 0.55), 0.5, "undecided"), ((0.55, 0.70), 0.5, "no"),
    ((2.1, 2.6), 2, "yes"), ((1.8, 2.2), 2, "undecided"), ((1.2, 1.9), 2, "no"),
    ((0.90, 0.97), 1, "yes"), ((0.95, 1.02), 1, "undecided"), ((1.01, 1.10), 1, "no"),
])
def test_a_verdict_is_given_where_the_whole_interval_lies_on_one_side(interval, threshold, verdict):
    assert Change(float(np.mean(interval)), interval).verdict(threshold) == verdict


# The critical value


@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_for_two_points_the_critical_value_is_the_normal_quantile(level):
    # 20,000 draws leave the quantile uncertain by sqrt(p (1 - p) / 20000) / density: four of those
    quantile = scipy.stats.norm.ppf(level)
    slack = 4 * np.sqrt(level * (1 - level) / 20_000) / scipy.stats.norm.pdf(quantile)
    assert critical_value(2, level) == pytest.approx(quantile, abs=slack)


@pytest.mark.parametrize("points", [3, 12])
def test_the_critical_value_equals_that_of_all_pairs_written_out(points):
    noise = np.random.default_rng(1).standard_normal((20_000, points))
    falls = np.max([(noise[:, i] - noise[:, j]) / np.sqrt(2) for i, j in combinations(range(points), 2)], axis=0)
    # Two simulations of 20,000, each good to about 0.015 at this level: three times their combined error
    assert critical_value(points) == pytest.approx(np.quantile(falls, 0.95), abs=0.06)


@pytest.mark.parametrize("points", [3, 10, 50])
def test_the_critical_value_lies_below_the_one_for_pairs_in_either_order(points):
    either_order = scipy.stats.studentized_range.ppf(0.95, points, np.inf) / np.sqrt(2)
    assert critical_value(points - 1) < critical_value(points) < either_order


def test_with_fewer_than_three_values_no_phase_is_seen():
    for columns in (([1, 2], [9, 2], [1, 1]), ([1, 2, 3], [9, np.nan, 2], [1, 1, 1]), ([], [], [])):
        phases = find_phases(*columns)
        assert phases.spans == [] and phases.turn is None and set(claims(phases).values()) == {"not seen"}


# Bad input


@pytest.mark.parametrize(("columns", "says"), [
    pytest.param(([1, 2, 3], [1, 2], [1, 1, 1]), "one length", id="lengths differ"),
    pytest.param(([[1, 2, 3]], [[1, 2, 3]], [[1, 1, 1]]), "one length", id="two dimensions"),
    pytest.param(([1, 3, 2], [1, 2, 3], [1, 1, 1]), "tokens must increase", id="tokens fall"),
    pytest.param(([1, 2, 2], [1, 2, 3], [1, 1, 1]), "tokens must increase", id="tokens repeat"),
    pytest.param(([1, np.nan, 3], [1, 2, 3], [1, 1, 1]), "tokens must increase", id="tokens nan"),
    pytest.param(([1, 2, 3], [1, 0, 3], [1, 1, 1]), "must be positive", id="zero value"),
    pytest.param(([1, 2, 3], [1, -2, 3], [1, 1, 1]), "must be positive", id="negative value"),
    pytest.param(([1, 2, 3], [1, 2, 3], [1, 0, 1]), "must be positive", id="zero error"),
    pytest.param(([1, 2, 3], [1, 2, 3], [1, np.nan, 1]), "must be positive", id="error nan"),
])
def test_columns_that_are_no_trajectory_are_refused(columns, says):
    with pytest.raises(ValueError, match=says):
        find_phases(*columns)


WIGGLES = {"a rise before the collapse": [19, 19.6, 19.5, 15, 8, 5, 8, 12, 16, 20, 24, 22],
           "a dip within the expansion": [19, 15, 8, 5, 8, 12, 11.5, 16, 20, 24, 23, 22],
           "a rise within the compression": [19, 15, 8, 5, 8, 12, 16, 20, 24, 22.9, 23.1, 22]}


@pytest.mark.parametrize("values", WIGGLES.values(), ids=WIGGLES)
def test_small_moves_that_are_real_do_not_rename_the_phases(values):
    found = find_phases(2.0 ** np.arange(12), values, np.full(12, 0.02))
    assert (found.collapse_end.value, found.turn.value) == (5, 24)
    assert found.compression.ratio == pytest.approx(22 / 24)  # to the lowest value after the turn
    assert [name for name, _, _ in found.spans] == ["warmup", "entropy-seeking", "compression-seeking"]


def test_a_rise_after_the_compression_is_later():
    found = find_phases(2.0 ** np.arange(9), [20, 5, 10, 24, 20, 16, 18, 20, 22], np.full(9, 0.05))
    assert [name for name, _, _ in found.spans][-1] == "later"
    assert found.compression.ratio == pytest.approx(16 / 24)


def test_turn_exponents_are_those_planted():
    sizes = np.array([1e5, 1e5, 3e5, 1e6])
    for exponent in (0.0, 0.5, 1.0):
        turns = 20 * sizes**exponent
        b, low, high = turn_exponent(sizes, turns, turns / 1.3, turns * 1.3)
        assert b == pytest.approx(exponent, abs=1e-9)  # an exact power law, float64 least squares
        assert low < exponent < high
    assert np.isnan(turn_exponent([1e5, 1e5], [1, 1], [1, 1], [2, 2])).all()
    with pytest.raises(ValueError, match="positive"):
        turn_exponent([1e5, 2e5], [1, 1], [0, 1], [2, 2])


def test_phases_are_carried_over_to_the_nearest_other_checkpoints():
    tokens = [0, 1, 2, 4, 8, 16, 32]
    found = find_phases(tokens, [10, 6, 3, 6, 12, 10, 8], np.full(7, 0.01))
    assert [span[0] for span in found.spans] == list(PHASES)
    moved = elsewhere(found, tokens, [0, 2, 7, 40])
    assert moved.spans == [("warmup", 0, 1), ("entropy-seeking", 1, 2), ("compression-seeking", 2, 3)]
    assert elsewhere(found, tokens, tokens).spans == found.spans and moved.turn == found.turn
    assert elsewhere(found, tokens, [0, 9, 40]).spans == [("entropy-seeking", 0, 1), ("compression-seeking", 1, 2)]

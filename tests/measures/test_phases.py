"""Phases of a trajectory.

Trusted: trajectories we planted, with noise of a known size around turns at known places, and binomial bounds on how
often a method that keeps its word may fail over hundreds of them; scipy's normal and studentized-range quantiles, and
a simulation with all pairs written out, for the critical value; a search over all starts, minima, maxima and ends for
the choice of the phases, and scipy's prominences of peaks for the wiggles. `at_least` and `at_most` are the bounds that
a true rate of 95 % (5 %) misses once in a thousand tests.
"""

from collections import Counter
from functools import cache
from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest
import scipy.signal
import scipy.stats

from reptrace.measures.phases import (
    PHASES,
    Change,
    Phases,
    Wiggle,
    at_one_place,
    claims,
    critical_value,
    elsewhere,
    find_phases,
)
from reptrace.report.profiles import ROOT

SEEDS = 500
SHARES = {"three phases": [19, 7, 25, 20], "three large phases": [20, 5, 24, 8], "deep collapse": [800, 20, 60, 30],
          "down and up": [19, 7, 25], "up and down": [7, 25, 20], "down": [25, 7], "up": [7, 25], "flat": [20, 20]}


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
    assert found.growth.ratio == pytest.approx(curve[high] / curve[0], rel=1e-12)
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


@pytest.mark.parametrize(("points", "second", "between", "noise"), [
    (25, 1.01, 0.97, 0.005), (15, 1.01, 0.8, 0.03), (40, 1, 0.97, 0.005), (25, 1.01, 0.8, 0.03), (25, 0.99, 0.9, 0.01)])
def test_a_turn_of_two_peaks_that_noise_cannot_tell_apart_lies_in_its_interval(points, second, between, noise):
    """The second peak by this factor above the first, with a dip between them that often is beyond noise itself."""
    values = np.array([19, 7, 25, 25 * between, 25 * second, 17])
    curve = np.exp(np.interp(np.linspace(0, 1, points), [0, 0.2, 0.5, 0.6, 0.7, 1], np.log(values)))
    third = points // 3
    peaks = np.flatnonzero(curve >= curve.max() * (1 - 1e-12))
    rng = np.random.default_rng(0)
    found = [find_phases(np.arange(points), curve * (1 + noise * rng.standard_normal(points)), noise * curve)
             for _ in range(300)]
    turns = [phases.turn for phases in found if phases.turn]
    assert len(turns) > 0.8 * len(found)
    assert sum(turn.interval[0] <= peaks[0] and peaks[-1] <= turn.interval[1] for turn in turns) >= at_least(len(turns))
    # An interval over the whole trajectory would cover too, and say nothing
    assert all(turn.interval[0] >= third - 1 and turn.interval[1] < points - 1 for turn in turns)


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


@pytest.mark.parametrize("shape", ["flat", "up", "down"])
@pytest.mark.parametrize("points", [8, 40])
def test_noise_that_checkpoints_share_invents_still_less(shape, points):
    """They are measured on the same sequences. The level is that of independent noise: then it is kept, not used up."""
    tokens, curve, _ = planted(shape, points)
    rng = np.random.default_rng(0)

    def invented(common):
        count = 0
        for _ in range(SEEDS):
            noise = np.sqrt(1 - common) * rng.standard_normal(points) + np.sqrt(common) * rng.standard_normal()
            found = find_phases(tokens, curve * (1 + 0.03 * noise), 0.03 * curve)
            count += not set(seen(found).split()) <= set(SEEN[shape].split()) or len(found.wiggles) > 0
        return count

    alone, shared = invented(0), invented(0.8)
    # A flat one is tried for falls and for rises, each at its own 5 %
    assert shared <= alone <= at_most(SEEDS, 0.1 if shape == "flat" else 0.05) and shared <= 0.002 * SEEDS


def test_growth_counts_from_the_first_value_where_the_collapse_counts_from_the_highest_before_it():
    values = np.array([10, 20, 4, 15, 14.9])
    found = find_phases(2.0 ** np.arange(5), values, 0.02 * values)
    assert (found.collapse.ratio, found.growth.ratio) == (pytest.approx(4 / 20), pytest.approx(15 / 10))
    assert found.expansion.verdict(2) == "yes" and found.growth.verdict(2) == "no"  # both readings of "it doubles"
    assert find_phases(2.0 ** np.arange(5), values[::-1].cumsum()[::-1], np.full(5, 0.1)).growth is None  # only falls


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


def test_turns_within_one_checkpoint_of_each_other_are_at_one_place_and_so_are_those_whose_intervals_meet(rng):
    """Two readings of one run, each with gaps and noise of its own, at the same checkpoints."""
    near = apart = 0
    for _ in range(60):
        turns = []
        for extremes in ([19, 7, 25, 20], [19, 5, 22, 12]):
            place = [0, *np.sort(rng.choice(np.arange(2, 10), 2, replace=False)), 11]
            curve = np.exp(np.interp(np.arange(12), place, np.log(extremes)))
            values = curve * (1 + 0.01 * rng.standard_normal(12))
            values[rng.random(12) < 0.1] = np.nan
            found = find_phases(np.arange(12), values, 0.01 * values)
            turns.append((found.collapse_end, found.turn))
        for one, other in zip(*turns, strict=True):
            assert at_one_place(one, other) == at_one_place(other, one)
            if one and other and abs(one.index - other.index) <= 1:
                near += 1
                assert at_one_place(one, other) == "yes"
            elif one and other and (one.interval[1] < other.interval[0] or other.interval[1] < one.interval[0]):
                apart += 1
                assert at_one_place(one, other) == "no"
    assert min(near, apart) > 10  # both were tried
    assert at_one_place(None, one) == at_one_place(one, None) == "undecided"


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


@pytest.mark.parametrize("level", [95, 0, 1, -0.05, float("nan")])
def test_a_level_that_is_no_share_is_refused(level):
    says = f"level is a share between 0 and 1, like 0.95, got {level}"
    for columns in (([1, 2, 3, 4], [9, 2, 5, 4], [1] * 4), ([], [], [])):
        with pytest.raises(ValueError, match=says):
            find_phases(*columns, level=level)
    with pytest.raises(ValueError, match=says):
        critical_value(4, level)


@pytest.mark.parametrize(("columns", "says"), [
    pytest.param(([1, 2, 3], [1, 2], [1, 1, 1]), "one length", id="lengths differ"),
    pytest.param(([[1, 2, 3]], [[1, 2, 3]], [[1, 1, 1]]), "one length", id="two dimensions"),
    pytest.param(([1, 3, 2], [1, 2, 3], [1, 1, 1]), "tokens must increase", id="tokens fall"),
    pytest.param(([1, 2, 2], [1, 2, 3], [1, 1, 1]), "tokens must increase", id="tokens repeat"),
    pytest.param(([1, np.nan, 3], [1, 2, 3], [1, 1, 1]), "tokens must increase", id="tokens nan"),
    pytest.param(([1, 2, np.inf], [1, 2, 3], [1, 1, 1]), "tokens .* got inf at index 2", id="tokens infinite"),
    pytest.param(([-np.inf, 2, 3], [1, 2, 3], [1, 1, 1]), "tokens .* got -inf at index 0", id="tokens minus infinite"),
    pytest.param(([1, 2, 3], [1, 0, 3], [1, 1, 1]), "values must be positive .* got 0 at index 1", id="zero value"),
    pytest.param(([1, 2, 3], [1, -2, 3], [1, 1, 1]), "values must be positive .* got -2", id="negative value"),
    pytest.param(([1, 2, 3], [np.nan, np.inf, 3], [1, 1, 1]), "values .* got inf at index 1", id="value infinite"),
    pytest.param(([1, 2, 3], [1, 2, -np.inf], [1, 1, 1]), "values .* got -inf", id="value minus infinite"),
    pytest.param(([1, 2, 3], [1, 2, 3], [1, 0, 1]), "stderr must be positive .* got 0", id="zero error"),
    pytest.param(([1, 2, 3], [1, 2, 3], [1, np.nan, 1]), "stderr .* got nan at index 1", id="error nan"),
    pytest.param(([1, 2, 3, 4], [1, np.nan, 2, 3], [1, 1, np.inf, 1]), "stderr .* got inf at index 2",
                 id="error infinite, behind a gap"),
    pytest.param(([1, 2], [1, np.inf], [1, 1]), "values .* got inf", id="too few for a phase"),
])
def test_columns_that_are_no_trajectory_are_refused(columns, says):
    with pytest.raises(ValueError, match=says):
        find_phases(*columns)


# Wiggles: reversals that are real and no phases


ERRORS = (0.05, 0.02, 0.01, 0.003, 0.001)
SEEN = {"three phases": "collapse expansion compression", "three large phases": "collapse expansion compression",
        "deep collapse": "collapse expansion compression", "down and up": "collapse expansion",
        "up and down": "expansion compression", "down": "collapse", "up": "expansion", "flat": ""}
# Width 32, batches of 8 x 64 tokens at a constant rate of 5e-3: tokens and RankMe.
REAL = {0: 20.13, 4096: 20.09, 5632: 20.08, 8192: 19.91, 11264: 19.05, 16384: 16.09, 23040: 11.13, 32768: 4.57,
        46080: 5.59, 65536: 4.94, 92672: 6.19, 131072: 8.78, 185344: 10.43, 262144: 12.95, 370688: 15.10, 524288: 17.37,
        741376: 18.70, 1048576: 18.59, 1482752: 16.81, 2097152: 14.74, 2965504: 12.96, 4194304: 13.18, 5931520: 11.41,
        8000000: 9.75}


def seen(phases):
    return " ".join(name for name in ("collapse", "expansion", "compression") if getattr(phases, name))


def with_wiggle(curve, at, size, width):
    """The curve times exp(size) at a checkpoint (a dip below 0, a bump above), falling off as a Gaussian around it."""
    away = np.arange(len(curve)) - at
    return curve * np.exp(size * (np.exp(-((away / width) ** 2) / 2) if width else away == 0))


@cache
def wiggled(shape, sizes, error):
    """(tokens, true curve, phases found) with a wiggle planted in turn at every place, of every size and two widths."""
    rng = np.random.default_rng(0)
    rows = []
    for points, rounded in ((16, False), (32, True)):
        tokens, plain, _ = planted(shape, points, rounded)
        for size, sign, width, at in product(sizes, (-1, 1), (0, 1.5), range(points)):
            curve = with_wiggle(plain, at, sign * size, width)
            values = curve * (1 + error * rng.standard_normal(points))
            rows.append((tokens, curve, find_phases(tokens, values, error * curve)))
    return rows


@pytest.mark.parametrize("error", [0.001, 0.003, 0.01, 0.02, 0.04, 0.05])
def test_a_real_run_s_wiggle_is_not_taken_for_the_turn_however_well_the_values_are_known(error):
    tokens, values = np.array(list(REAL)), np.array(list(REAL.values()))
    found = find_phases(tokens, values, error * values)
    assert (found.collapse_end.tokens, found.turn.tokens) == (32768, 741376)
    assert [name for name, _, _ in found.spans] == list(PHASES)
    assert set(claims(found).values()) == {"yes"}
    assert found.collapse.ratio == pytest.approx(4.57 / 20.13) and found.expansion.ratio == pytest.approx(18.70 / 4.57)
    assert found.compression.ratio == pytest.approx(9.75 / 18.70)
    # Within the expansion a fall of 12 %, within the compression a rise of 1.7 %. Beyond noise is what is larger than
    # about 3 sqrt(2) errors.
    expected = [4.94 / 5.59] * (error < 0.028) + [13.18 / 12.96] * (error < 0.004)
    assert [wiggle.ratio for wiggle in found.wiggles] == pytest.approx(expected)


@pytest.mark.parametrize("error", [0.001, 0.003, 0.01, 0.02, 0.04, 0.05])
def test_a_real_run_measured_anew_is_never_read_otherwise(error):
    tokens, values = np.array(list(REAL)), np.array(list(REAL.values()))
    rng = np.random.default_rng(0)
    again = [find_phases(tokens, values * (1 + error * rng.standard_normal(len(values))), error * values)
             for _ in range(100)]
    assert sum(phases.turn is not None for phases in again) >= at_least(100)
    covered = sum(phases.turn.interval[0] <= 741376 <= phases.turn.interval[1] for phases in again if phases.turn)
    assert covered >= at_least(100)
    assert not any("no" in claims(phases).values() for phases in again)  # by factors of two to four from each threshold


def test_a_run_in_progress_is_given_no_phase_before_it_is_there():
    tokens, values = np.array(list(REAL)), np.array(list(REAL.values()))
    for count in range(3, len(values) + 1):
        found = find_phases(tokens[:count], values[:count], 0.003 * values[:count])
        reached = tokens[count - 1]
        assert (found.collapse is not None) == (reached >= 23040)  # at 16,384 it is not surely below 1 / 1.25
        assert (found.expansion is not None) == (reached >= 131072)  # up to 92,672 it is small against the collapse
        # at 1,048,576 it is not surely below the peak, at 1,482,752 by less than the 12 % between 46,080 and 65,536
        assert (found.turn is not None) == (reached >= 2097152)
        assert found.collapse_end is None or found.collapse_end.tokens == 32768
        assert found.turn is None or found.turn.tokens == 741376


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(("shape", "sizes"), [
    # Up to half of the smallest phase, which is 0.22, 1.1 and 0.69, as logarithms; the rise stays a doubling
    ("three phases", (0.02, 0.05, 0.11)), ("three large phases", (0.1, 0.3, 0.5)), ("deep collapse", (0.05, 0.1, 0.3))])
def test_a_wiggle_of_any_size_at_any_place_leaves_three_phases_their_turn(shape, sizes, error):
    rows = wiggled(shape, sizes, error)
    # The smallest phase, 0.22, is below the critical value of two errors of 5 %: it may be missed, not misread
    clear = (shape, error) != ("three phases", 0.05)
    names = Counter(seen(phases) for _, _, phases in rows)
    assert names[SEEN[shape]] >= (at_least(len(rows)) if clear else 0.4 * len(rows))
    assert set(names) <= {"collapse expansion compression", "collapse expansion"}
    hit = {"collapse_end": [], "turn": []}
    for tokens, curve, phases in rows:
        # The true turns are those of the curve with its wiggle: before its end, its highest value after the collapse
        third = len(curve) // 3
        peak = third + curve[third:].argmax()
        for name, at in (("collapse_end", curve[:peak].argmin()), ("turn", peak)):
            if turn := getattr(phases, name):
                hit[name].append(turn.interval[0] <= tokens[at] <= turn.interval[1])
        assert "no" not in claims(phases).values()
    for inside in hit.values():
        assert sum(inside) >= at_least(len(inside))


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(("shape", "sizes"), [
    ("down", (0.05, 0.1, 0.2, 0.3)), ("up", (0.05, 0.1, 0.2, 0.3)), ("down and up", (0.05, 0.1, 0.2, 0.3)),
    ("up and down", (0.05, 0.1)), ("flat", (0.05, 0.1, 0.2))])
def test_a_wiggle_of_any_size_at_any_place_makes_no_phase_that_is_not_there(shape, sizes, error):
    rows = [phases for _, curve, phases in wiggled(shape, sizes, error) if rises_to_its_end(shape, curve)]
    assert len(rows) > 150
    invented = [phases for phases in rows if not set(seen(phases).split()) <= set(SEEN[shape].split())]
    assert len(invented) <= at_most(len(rows))
    if error < 0.01:  # all sizes are far beyond noise then, or all is noise-free: the rule decides
        assert not invented and all(seen(phases) == SEEN[shape] for phases in rows)


def moves(extremes, places, points):
    """Straight moves in logarithms between these extremes at these shares of the run, and the turns' checkpoints."""
    x = np.linspace(0, 1, points)
    return np.exp(np.interp(x, places, np.log(extremes))), [int(np.abs(x - place).argmin()) for place in places]


BAD = [(width, factor) for width in (1, 2, 3) for factor in (0.3, 0.5, 0.72, 0.85, 0.95)]


def with_bad_checkpoints(curve, cuts, error, ways):
    """(at, the curve with one to three checkpoints off by a factor) at every place within a move, where that makes no
    new minimum or maximum of the run. `ways`: to which sides in each move. A dip within noise of the turn is a part of
    it, and left out."""
    low, high = curve.min(), curve[cuts[1] :].max()
    for (width, factor), at, sign in product(BAD, range(1, len(curve)), (-1, 1)):
        move = next((k for k in range(len(cuts) - 1) if cuts[k] < at and at + width - 1 < cuts[k + 1]), None)
        if move is None or sign not in ways[move]:
            continue
        if move == 2 and sign < 0 and curve[at + width] > curve[cuts[2]] * (1 - 6 * error):
            continue
        changed = curve.copy()
        changed[at : at + width] *= factor**-sign
        if low < changed[at : at + width].min() and changed[at : at + width].max() < high:
            yield at, changed


@pytest.mark.parametrize("error", [0.001, 0.005, 0.02, 0.05])
@pytest.mark.parametrize("kept", [0.5, 0.7, 0.85])
@pytest.mark.parametrize("extremes", [(20, 5, 20), (18, 8, 18), (800, 20, 60)])
def test_one_to_three_bad_checkpoints_anywhere_change_no_verdict(extremes, kept, error):
    """Dips and spikes in the collapse and in the compression, dips in the expansion; without noise, and with it."""
    rng = np.random.default_rng(0)
    wrong = {0: [], 1: []}
    for points, places in product((16, 28), ((0, 1 / 3, 2 / 3, 1), (0, 0.2, 0.55, 1))):
        curve, cuts = moves([*extremes, kept * extremes[2]], places, points)
        clean = claims(find_phases(np.arange(points), curve, error * curve))
        if clean["compression"] != "yes":
            continue  # of 15 %, where the errors are 5 %
        for _, changed in with_bad_checkpoints(curve, cuts, error, ((-1, 1), (-1,), (-1, 1))):
            for noise in wrong:
                values = changed * (1 + noise * error * rng.standard_normal(points))
                said = claims(find_phases(np.arange(points), values, error * changed))
                wrong[noise].append(any(said[name] != clean[name] and "undecided" not in (said[name], clean[name])
                                        for name in clean))
    assert (kept, error) == (0.85, 0.05) or len(wrong[0]) > 200
    assert not any(wrong[0]) and sum(wrong[1]) <= at_most(len(wrong[1]))


@pytest.mark.parametrize("error", [0.001, 0.005, 0.02, 0.05])
@pytest.mark.parametrize("extremes", [(20, 5, 20), (18, 8, 18)])
def test_one_to_three_bad_checkpoints_within_two_phases_make_no_compression(extremes, error):
    rng = np.random.default_rng(0)
    for points, places in product((16, 28), ((0, 1 / 3, 1), (0, 0.2, 1), (0, 0.6, 1))):
        curve, cuts = moves(extremes, places, points)
        found = [find_phases(np.arange(points), changed * (1 + noise * error * rng.standard_normal(points)),
                             error * changed)
                 for noise in (0, 1) for _, changed in with_bad_checkpoints(curve, cuts, error, ((-1, 1), (-1, 1)))]
        assert len(found) > 100
        assert sum(phases.compression is not None for phases in found[: len(found) // 2]) == 0
        assert sum(phases.compression is not None for phases in found) <= at_most(len(found))


def test_a_last_fall_is_judged_by_reversals_of_at_least_its_duration():
    rise = [20, 5, 8, 12, 6, 6, 15, 20]  # from 12 to 6, over three checkpoints later
    for last, phases in ([19, 18], "collapse expansion"), ([19, 18, 17], "collapse expansion"), (
            [19, 18, 17, 16], "collapse expansion compression"), ([15, 9], "collapse expansion compression"):
        values = np.array([*rise, *last], dtype=float)
        assert seen(find_phases(np.arange(len(values)), values, 0.001 * values)) == phases
    fall = [40, 20, 30, 30, 15, 5, 12, 20]  # from 20 up to 30, over three checkpoints later
    for last, phases in ([19, 18, 17], "collapse expansion"), ([19, 18, 17, 16], "collapse expansion compression"):
        values = np.array([*fall, *last], dtype=float)
        assert seen(find_phases(np.arange(len(values)), values, 0.001 * values)) == phases
    # After the turn: a dip that is undone judges the fall after it, counted from where it was over
    for last, phases in ([12, 20, 19, 18], "collapse expansion"), ([12, 20, 19, 18, 17],
                                                                  "collapse expansion compression"):
        values = np.array([20, 5, 12, 20, *last], dtype=float)
        assert seen(find_phases(np.arange(len(values)), values, 0.001 * values)) == phases


def rises_to_its_end(shape, curve):
    """Not so where a wiggle leaves the end below an earlier value: then it does fall, and a last fall may be small."""
    return shape not in ("up", "down and up") or curve[len(curve) // 3 :].max() == curve[-1]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("shape", ["up", "down and up"])
def test_a_dip_at_the_end_is_no_compression_where_the_rise_had_a_larger_one_of_its_duration(shape, error):
    rng = np.random.default_rng(0)
    rows = []
    for points, last, size, before in product((24, 40), (1, 2, 3), (0.03, 0.1, 0.2), (0.7, 0.75)):
        tokens, curve, _ = planted(shape, points)
        at = int(before * points)
        curve[at : at + max(1, last - 1)] *= np.exp(-0.6)  # over one checkpoint later: it lasted no less than the last
        curve[-last:] = curve[-last - 1] * np.exp(-size * np.arange(1, last + 1) / last)  # down over the last points
        rise = np.log(curve[(points // 2 if shape == "down and up" else 0) : -last])
        assert (np.maximum.accumulate(rise) - rise).max() > 1.5 * size
        rows.append((size, find_phases(tokens, curve * (1 + error * rng.standard_normal(points)), error * curve)))
    assert sum(phases.compression is not None for _, phases in rows) <= at_most(len(rows))
    for size, phases in rows:
        if error < 0.005:  # both are real then, and the one at the end is a wiggle: the rise reaches over it
            assert phases.spans[-1][0] == "entropy-seeking"
            assert phases.wiggles[-1].ratio == pytest.approx(np.exp(-size), rel=5 * error)


def went_back(rising, lasting):
    """Largest fall of a rising curve that took so many points or more to be regained."""
    largest = 0.0
    for first, value in enumerate(rising):
        again = next((k for k in range(first + 1, len(rising)) if rising[k] >= value), len(rising) - 1)
        if again - first >= lasting:
            largest = max(largest, value - rising[first : again + 1].min())
    return largest


@pytest.mark.parametrize("factor", [1, 0.3, 0.1, 0.03])
def test_real_runs_fall_at_last_by_more_than_they_ever_went_back_for_as_long_however_small_their_errors(factor):
    curves = pd.read_csv(ROOT / "data" / "results" / "causes_curves.csv")
    falls = 0
    for _, run in curves[curves.weights == "raw"].groupby("repository"):
        found = find_phases(run.tokens, run.rankme, factor * run.rankme_stderr)
        if found.compression:
            logs, low, high = np.log(run.rankme.to_numpy()), found.collapse_end.index, found.turn.index
            lasted = len(logs) - 1 - high
            before = max(went_back(part, lasted) for part in (-logs[: low + 1], logs[low : high + 1]))
            assert -np.log(found.compression.ratio) > before
            falls += 1
    assert 6 <= falls < 27  # default and no weight decay fall in all seeds; most others don't


def verdicts(phases):
    return seen(phases), *claims(phases).values()


def exact_verdicts(curve, **rules):
    """Those of the curve itself, by the search through all pairs."""
    start, m, top, end = by_all_pairs(curve, **rules)
    pairs = {"collapse": (start, m, 0.5), "expansion": (m, top, 2), "compression": (top, end, 1)}
    said = {name: "not seen" if i is None or j is None else "yes" if (curve[j] / curve[i] < bound) == (bound <= 1)
            else "no" for name, (i, j, bound) in pairs.items()}
    return " ".join(name for name, verdict in said.items() if verdict != "not seen"), *said.values()


def with_wiggles(shape, rng):
    """A planted curve with up to four wiggles anywhere, ends and turns too, and one more in its last three points. Of a
    kind that is not decided by a hair: by the exact curve and bounds that are laxer or stricter the verdicts are the
    same."""
    while True:
        tokens, curve, _ = planted(shape, 40)
        for at in [*rng.choice(40, rng.integers(5), replace=False), rng.integers(37, 40)]:
            curve = with_wiggle(curve, at, rng.choice([-1, 1]) * rng.uniform(0.02, 0.3) / (1 + 2 * (shape == "flat")),
                                rng.choice([0, 1.5]))
        bounds = ({}, {"share": 0.2, "margin": 0.6, "slack": 1},
                  {"share": 0.3, "margin": 1.6, "slack": -1, "alike": 0.1, "least": 0.02})
        truth = {exact_verdicts(curve, **rules) for rules in bounds}
        if len(truth) == 1:
            return tokens, curve, truth.pop()


@pytest.mark.parametrize("shape", SEEN)
@pytest.mark.parametrize("noise", [0, 1])
def test_more_precision_does_not_turn_a_right_reading_into_a_wrong_one(noise, shape):
    """Errors from 5 % to 0.1 %, the values without noise or the same noise scaled: once read as the exact curve is,
    always so."""
    rng = np.random.default_rng(0)
    lapses, truths = 0, Counter()
    for _ in range(50):
        tokens, curve, truth = with_wiggles(shape, rng)
        drawn = noise * rng.standard_normal(40)
        read = [verdicts(find_phases(tokens, curve * (1 + error * drawn), error * curve))
                for error in np.geomspace(0.05, 0.001, 10)]
        right = [one == truth for one in read]
        assert right[-1], (truth, read)
        lapses += right != sorted(right)
        truths[truth[0]] += 1
    # Noise of 5 % can be right by chance, and seldom is: in one of 1,400 such curves when this was written
    assert lapses <= noise * at_most(50, 0.01)
    assert truths.most_common(1)[0][0] == SEEN[shape]


def setbacks(x, up):
    """(size, checkpoints until it was over) of every fall of this curve, or of every rise, by all pairs; one that is
    never over lasts to the last checkpoint."""
    x = x if up else -x
    for i in range(len(x) - 1):
        over = next((k for k in range(i + 1, len(x)) if x[k] >= x[i]), len(x) - 1)
        yield from ((x[i] - x[j], over - i) for j in range(i + 1, over + 1))


def by_all_pairs(values, share=0.25, flat=1.25, margin=1, alike=0, slack=0, least=0):
    """Start, minimum, maximum and end by search through all of them, for values without noise; None: not there."""
    x = np.log(values)
    n, best = len(x), (0,)
    if x.max() - x.min() <= np.log(flat):
        return None, None, None, None
    for m, top in combinations(range(n), 2):
        if x[m] > x[: top + 1].min() or x[top] < x[m:].max():
            continue
        fall, start = max((x[s] - x[m], -s) for s in range(m + 1))
        back, end = max((x[top] - x[e], -e) for e in range(top, n))
        rise = x[top] - x[m]
        if rise < share * (fall + back) and np.exp(rise) < 2:
            continue
        small = fall < share * rise and np.exp(fall) < 2
        again = max(k for k in range(top, n) if x[top] - x[k] <= alike)
        peak = again if -end < again and x[-end] > x[m] else top  # a fall before `again` is undone
        if peak > top:
            back, end = max(((x[top] - x[e], -e) for e in range(peak + 1, n)), default=(0, -top))
        cut = 0 if small or not fall else m  # before the turn, rises up to the cut and falls after it are wiggles
        before = [*setbacks(x[: cut + 1], up=False), *setbacks(x[cut : peak + 1], up=True)]
        if back <= margin * max((size for size, lasted in before if lasted >= n - 1 - peak + slack), default=0) + least:
            back = 0
        total = (0 if small else fall) + rise + back
        best = max(best, (total, None if small or not fall else -start, m, top, -end if back else None))
    if len(best) > 1:
        return best[1:]
    start, m = max(combinations(range(n), 2), key=lambda pair: x[pair[0]] - x[pair[1]])
    return start, m, None, None


@pytest.mark.parametrize("points", [3, 4, 5, 6, 9, 14])
def test_the_phases_are_those_of_a_search_through_all_minima_and_maxima(points):
    rng = np.random.default_rng(points)
    kinds = Counter()
    for _ in range(300):
        values = np.exp(rng.choice([0.1, 0.5, 1]) * rng.standard_normal(points))
        found = find_phases(np.arange(points), values, 1e-9 * values)
        start, m, top, end = by_all_pairs(values)
        pairs = {"collapse": (start, m), "expansion": (m, top), "compression": (top, end)}
        for name, (i, j) in pairs.items():
            change = getattr(found, name)
            assert (change is None) == (i is None or j is None)
            if change:
                assert change.ratio == pytest.approx(values[j] / values[i], rel=1e-12)  # floats of one expression
        kinds[seen(found)] += 1
    assert len(kinds) >= 5  # the random trajectories are not all of one kind


@pytest.mark.parametrize("points", [4, 8, 16, 40])
def test_wiggles_within_a_rise_are_as_large_as_its_peaks_are_prominent(points):
    rng = np.random.default_rng(points)
    for _ in range(50):
        logs = np.concatenate([[0], rng.uniform(0.1, 2.9, points), [3]])  # from the lowest to the highest
        values = np.exp(logs)
        found = find_phases(np.arange(points + 2), values, 1e-9 * values)
        peaks = scipy.signal.find_peaks(logs, prominence=0)[1]["prominences"]
        sizes = sorted(abs(np.log(wiggle.ratio)) for wiggle in found.wiggles)
        np.testing.assert_allclose(sizes, sorted(peaks), rtol=1e-9)  # logarithm of a ratio of exponentials
        assert seen(found) == "expansion"
        for wiggle in found.wiggles:
            assert wiggle.ratio == pytest.approx(values[wiggle.last] / values[wiggle.first], rel=1e-12)
            assert wiggle.tokens == (wiggle.first, wiggle.last)
        assert found.wiggles == sorted(found.wiggles, key=lambda wiggle: wiggle.first)


@pytest.mark.parametrize("error", [0.001, 0.01, 0.03])
def test_a_fall_that_is_undone_is_no_compression(error):
    values = np.array([20, 3.5, 17.9, 13.1, 22.4])
    found = find_phases(np.arange(1, 6), values, error * values)
    assert seen(found) == "collapse expansion" and found.turn is None and found.collapse_end.tokens == 2
    assert found.expansion.ratio == pytest.approx(22.4 / 3.5)
    assert found.wiggles == [Wiggle(2, 3, (3.0, 4.0), pytest.approx(13.1 / 17.9))] == [found.largest_wiggle]
    # Back within noise of its peak is undone too; then a fall from there is the compression
    values = np.array([20, 3.5, 17.9, 13.1, 17.9 * (1 - error), 15, 12])
    back = find_phases(np.arange(5), values[:5], error * values[:5])
    assert seen(back) == "collapse expansion" and back.expansion.ratio == pytest.approx(17.9 / 3.5)  # to the highest
    later = find_phases(np.arange(7), values, error * values)
    assert seen(later) == "collapse expansion compression" and later.compression.ratio == pytest.approx(12 / 17.9)
    assert later.turn.interval == (1, 5)  # over both peaks, which noise cannot tell apart
    # But no lower than it fell between the peaks: no larger than the run's own wiggle
    values[6] = 14
    assert seen(find_phases(np.arange(7), values, error * values)) == "collapse expansion"
    # Down to where the rise came from is no passing fall, whatever follows
    deep = np.array([20, 3.5, 17.9, 3, 17.9 * (1 - error)])
    found = find_phases(np.arange(5), deep, error * deep)
    assert [span[0] for span in found.spans] == [*PHASES, "later"]
    assert found.turn.interval == (1, 3)  # the last value is as high, but not of the two moves that meet here
    # What falls short of the turn by more than noise leaves the compression as it is
    values[4:] = 15
    assert [span[0] for span in find_phases(np.arange(5), values[:5], error * values[:5]).spans] == [*PHASES, "later"]


@pytest.mark.parametrize(("error", "phases"), [
    (0.08, "expansion"), (0.04, "expansion"), (0.02, "expansion compression")])
def test_a_fall_is_undone_where_a_later_value_is_as_high_within_noise_whether_the_rise_to_it_is_real_or_not(
        error, phases):
    values = np.array([7, 20, 28.9, 20.8, 25.8])
    assert seen(find_phases(np.arange(5), values, error * values)) == phases


def test_a_value_before_the_collapse_that_is_as_low_is_not_in_the_interval_of_its_end():
    found = find_phases(np.arange(5), [7.02, 20, 7, 25, 15], np.full(5, 0.02))
    assert found.collapse_end.interval == (1, 3) and found.collapse_end.open == ""


def test_a_later_value_below_the_end_of_the_collapse_does_not_undo_the_phases():
    found = find_phases(np.arange(7), [20, 8, 7, 15, 25, 10, 6], np.full(7, 0.05))
    assert [name for name, _, _ in found.spans] == list(PHASES)
    assert (found.collapse_end.value, found.turn.value) == (7, 25)
    assert found.compression.ratio == pytest.approx(6 / 25)


@pytest.mark.parametrize(("values", "phases", "wiggles"), [
    ([25, 14, 16, 12, 7], "collapse", [16 / 14]), ([25, 20, 22, 12, 13, 7], "collapse", [22 / 20, 13 / 12]),
    ([25, 26, 18, 7], "collapse", [26 / 25]), ([25, 15, 7, 7.7], "collapse", [7.7 / 7]),
    ([25, 15, 7, 7.7, 7.2], "collapse", [7.7 / 7]), ([7, 12, 10, 15, 25], "expansion", [10 / 12]),
    ([7, 6.3, 15, 25], "expansion", [6.3 / 7]), ([7, 8, 6.5, 25, 20], "expansion compression", [6.5 / 8]),
    ([20, 18, 20.5, 19], "", [18 / 20, 20.5 / 18, 19 / 20.5]),
    ([720, 100, 11, 26], "collapse expansion", []),  # doubled, and more: small only against so deep a collapse
    *[(values, "collapse expansion compression", []) for values in (
        [720, 100, 11, 26, 25], [720, 100, 11, 26, 20], [720, 100, 11, 26, 12], [400, 20, 45, 35], [800, 20, 50, 28],
        [1000, 25, 62, 35], [300, 10, 22, 18])],
    ([400, 20, 38, 30], "collapse", [38 / 20]),  # not doubled
    ([1, 10, 1.2, 9, 0.1], "expansion compression", [9 / 1.2]),  # the rise starts at the lowest value before its end
    ([7, 20, 7.1, 25], "expansion", [7.1 / 20]), ([7, 20, 6.9, 25], "collapse expansion", [20 / 7]),
    # A last fall against the wiggle before it: within the rise, within the first fall, before either
    ([20, 5, 15, 12, 24, 20], "collapse expansion", [12 / 15, 20 / 24]),
    ([20, 5, 15, 12, 24, 19], "collapse expansion compression", [12 / 15]),
    ([40, 20, 26, 5, 24, 19], "collapse expansion", [26 / 20, 19 / 24]),
    ([40, 20, 26, 5, 24, 18], "collapse expansion compression", [26 / 20]),
    ([7, 6, 25, 22], "expansion", [6 / 7, 22 / 25]), ([7, 6, 25, 21], "expansion compression", [6 / 7]),
    ([20, 5, 15, 12, 24, 20, 22], "collapse expansion", [12 / 15, 20 / 24]),
    # A wiggle after the turn does not judge it; a last fall that is no phase makes no other rise the larger one
    ([20, 5, 24, 18, 23, 21], "collapse expansion compression", [21 / 23]),
    ([2, 10, 1, 5, 4.5], "expansion compression", [4.5 / 5]),
    ([1, 0.45, 90], "collapse expansion", []),  # halved, and more
    ([20, 5, 9, 8, 8.5], "collapse expansion compression", []),
    ([20, 5, 24, 8, 16, 15], "collapse expansion compression", [15 / 16])])
def test_wiggles_are_told_apart_from_phases_by_their_size(values, phases, wiggles):
    found = find_phases(np.arange(len(values)), values, 1e-3 * np.array(values))
    assert seen(found) == phases
    assert [wiggle.ratio for wiggle in found.wiggles] == pytest.approx(wiggles)


@pytest.mark.parametrize("error", [0.001, 0.01, 0.03])
def test_whether_a_rise_is_a_phase_does_not_hang_on_whether_the_fall_after_it_is_beyond_noise(error):
    values = np.array([20, 5, 7.2, 6.6])  # from 7.2 to 6.6 is beyond noise up to errors of about 2 %
    rise, falls = np.log(7.2 / 5), np.log(20 / 5) + np.log(7.2 / 6.6)
    assert np.log(20 / 5) / 4 < rise < falls / 4
    assert seen(find_phases(np.arange(4), values, error * values)) == "collapse"


def test_wiggles_are_counted_in_a_table_and_carried_over_to_other_checkpoints():
    values = np.array([20, 4, np.nan, 12, 10, 9, 25, 22, 23, 18.0])
    tokens = 10.0 * np.arange(10)
    found = find_phases(tokens, values, np.full(10, 0.01))
    assert [(wiggle.first, wiggle.last, wiggle.tokens) for wiggle in found.wiggles] == [
        (3, 5, (30, 50)), (7, 8, (70, 80))]  # the gap at 20 counts
    assert found.row()["wiggles"] == 2 and found.row()["largest_wiggle_ratio"] == pytest.approx(9 / 12)
    moved = elsewhere(found, tokens, [0, 10, 30, 50, 60, 75, 90])
    assert [(wiggle.first, wiggle.last, wiggle.ratio) for wiggle in moved.wiggles] == [(2, 3, pytest.approx(9 / 12))]
    none = Phases(None, None, None, None, None, [])
    assert none.wiggles == [] and none.largest_wiggle is None and none.row()["wiggles"] == 0
    assert np.isnan(none.row()["largest_wiggle_ratio"])


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


def test_phases_are_carried_over_to_the_nearest_other_checkpoints():
    tokens = [0, 1, 2, 4, 8, 16, 32]
    found = find_phases(tokens, [10, 6, 3, 6, 12, 10, 8], np.full(7, 0.01))
    assert [span[0] for span in found.spans] == list(PHASES)
    moved = elsewhere(found, tokens, [0, 2, 7, 40])
    assert moved.spans == [("warmup", 0, 1), ("entropy-seeking", 1, 2), ("compression-seeking", 2, 3)]
    assert elsewhere(found, tokens, tokens).spans == found.spans and moved.turn == found.turn
    assert elsewhere(found, tokens, [0, 9, 40]).spans == [("entropy-seeking", 0, 1), ("compression-seeking", 1, 2)]


@pytest.mark.parametrize(("tokens", "others"), [([], []), ([], [0, 1]), ([0, 1, 2, 4, 8, 16, 32], [])])
def test_a_table_without_checkpoints_has_no_spans(tokens, others):
    found = find_phases([0, 1, 2, 4, 8, 16, 32], [10, 6, 3, 12, 9, 13, 8], np.full(7, 0.01))
    assert found.spans and found.wiggles
    moved = elsewhere(found, tokens, others)
    assert moved.spans == moved.wiggles == [] and moved.turn == found.turn

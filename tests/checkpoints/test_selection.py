"""Which checkpoints are chosen: properties that hold for any run, and bends that were put in by hand.

Trusted: the definitions themselves (every selection is compared with what its docstring promises, worked out by plain
loops), curves in closed form whose bends are known, and numpy's generator for noise of a known size. Choices are exact,
so there is no tolerance; false alarms of noise are counted against what the stated level allows.
"""

import math
from itertools import groupby

import numpy as np
import pandas as pd
import pytest

from reptrace.checkpoints.listing import Checkpoint
from reptrace.checkpoints.selection import refine, spread
from reptrace.checkpoints.suites import registered

PYTHIA = [0, *(2**k for k in range(10)), *range(1000, 143001, 1000)]


def run(steps, stage="pretraining", model="me/run", faulty=()):
    return [Checkpoint(model, f"{stage}-step{step}", step, stage=stage, fault="wrong" if step in faulty else None)
            for step in steps]


def random_run(rng):
    """One to four stages of random steps in order, some of which are faulty; now and then a main revision."""
    points = []
    for number in range(rng.integers(1, 5)):
        steps = np.unique(rng.integers(0, 10 ** rng.integers(1, 6), rng.integers(1, 40)))
        faulty = set(rng.choice(steps, rng.integers(0, len(steps) + 1), replace=False)) if rng.random() < 0.5 else ()
        points += run(steps.tolist(), f"stage{number}", f"me/run{number // 2}", faulty)
    return points + [Checkpoint("me/run", None, stage="released")] * int(rng.integers(0, 2))


def stages(points):
    return [list(group) for _, group in groupby(points, key=lambda point: (point.model, point.stage))]


def ends(points):
    """First and last good one of every stage."""
    good = [point for point in points if not point.fault]
    return {point for stage in stages(good) for point in (stage[0], stage[-1])}


def place(point):
    return math.log2((point.step or 0) + 1)


# Spread


@pytest.mark.parametrize("seed", range(15))
def test_a_larger_selection_holds_every_smaller_one_and_the_ends_of_all_stages_and_no_fault(seed):
    points = random_run(np.random.default_rng(seed))
    good = [point for point in points if not point.fault]
    before = set()
    for count in range(len(ends(points)), len(good) + 3):
        chosen = spread(points, count)
        assert len(chosen) == min(count, len(good)) == len(set(chosen))
        assert before <= set(chosen) and ends(points) <= set(chosen) and not any(point.fault for point in chosen)
        assert chosen == [point for point in points if point in set(chosen)]  # in the run's order
        before = set(chosen)
    assert spread(points, None) == good


@pytest.mark.parametrize("seed", range(10))
def test_each_next_one_is_the_farthest_from_those_chosen(seed):
    points = random_run(np.random.default_rng(seed))
    for count in range(len(ends(points)), sum(not point.fault for point in points)):
        chosen, more = (set(spread(points, number)) for number in (count, count + 1))

        def distance(point, chosen=chosen):
            return min(abs(place(point) - place(other)) for other in chosen
                       if (other.model, other.stage) == (point.model, point.stage))

        new, = more - chosen
        # stages are told apart by shifts of up to 4e6, beside which doubles keep a logarithm to 1e-9
        assert distance(new) >= max(distance(point) for point in set(points) - chosen if not point.fault) - 1e-8


def test_a_pythia_is_spread_evenly_on_a_log_scale():
    """18 checkpoints: one an octave of its seventeen. What may be missed is where 143 branches are 1000 steps apart."""
    chosen = [point.step for point in spread(run(PYTHIA), 18)]
    assert chosen[0] == 0 and chosen[-1] == 143000
    gaps = np.diff([math.log2(step + 1) for step in chosen])
    assert gaps.min() >= 0.5 and gaps.max() <= 2
    assert sum(step < 1000 for step in chosen) == 10 and len(chosen) == 18


@pytest.mark.parametrize(("name", "least"), [("pythia-1b", 2), ("olmo2-7b", 9), ("tulu3.1-8b", 5)])
def test_registered_suites_can_be_spread(name, least):
    points = registered()[name].checkpoints(ask=False)
    chosen = spread(points, least)
    assert set(chosen) == ends(points) and len(chosen) == least
    assert len(spread(points, least + 7)) == least + 7


def test_of_the_faulty_pythia_only_late_branches_are_left():
    points = registered()["pythia-2.8b"].checkpoints(ask=False)
    chosen = spread(points, 20)
    assert min(point.step for point in chosen) == 66000 and chosen[-1].step == 143000


def test_too_few_for_the_ends_of_the_stages_is_an_error_that_says_how_many_are_needed():
    points = run([0, 1, 2]) + run([5, 6], "SFT") + run([7], "DPO")
    for count in (4, 0, -1):
        with pytest.raises(ValueError, match=rf"at least 5 checkpoints .*first and last of each stage; got {count}\."):
            spread(points, count)
    assert len(spread(points, 5)) == 5


def test_where_all_are_faulty_none_is_chosen():
    assert spread(run([1, 2, 3], faulty={1, 2, 3}), 2) == spread([], 5) == spread([], None) == []


# Refine


def table(steps, values, stderr=0.01, stage="pretraining", model="me/run"):
    """What a sweep holds of one stage: ln RankMe at some steps, with a relative standard error."""
    rankme = np.exp(np.asarray(values, float))
    return pd.DataFrame({"model": model, "revision": [f"{stage}-step{step}" for step in steps], "stage": stage,
                         "step": steps, "status": "measured", "rankme": rankme, "rankme_stderr": stderr * rankme})


def bent(x, at, before=-0.5, after=0.5):
    """Two straight lines that meet at a place."""
    return np.where(x < at, before, after) * (x - at)


EVERY = [2**k - 1 for k in range(0, 18)]  # whole places on the scale of log2(step + 1)
FINE = sorted({round(2 ** (k / 8)) - 1 for k in range(8 * 17 + 1)})


@pytest.mark.parametrize("gap", [2, 7, 11])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_the_gap_that_holds_the_bend_is_chosen_first(gap, share):
    points, x = run(FINE), np.arange(18)
    chosen, = refine(table(EVERY, bent(x, gap + share)), points, 1)
    assert gap < place(chosen) < gap + 1
    assert abs(place(chosen) - gap - 0.5) == min(abs(place(point) - gap - 0.5) for point in points)


def test_of_two_bends_the_sharper_comes_first():
    x = np.arange(18)
    y = bent(x, 5.5, -0.1, 0.1) + bent(x, 12.5, -0.5, 0.5)
    chosen = refine(table(EVERY, y, 0.002), run(FINE), 4)
    assert 12 < place(chosen[0]) < 13 and any(5 < place(point) < 6 for point in chosen[1:])


def test_of_two_equal_bends_the_one_in_the_wider_gap_comes_first():
    steps = [2**k - 1 for k in (0, 1, 2, 3, 4, 8, 9, 10, 11, 12)]
    x = np.log2(np.array(steps) + 1.0)
    y = bent(x, 2.5, 0, 0.4) + bent(x, 6, 0, 0.4)
    chosen = refine(table(steps, y, 0.001), run(FINE), 2)
    assert 4 < place(chosen[0]) < 8


def test_what_interpolation_errs_by_falls_fast_as_one_refines():
    """A smooth curve with one minimum: chosen points do far better than as many more of an even spread."""
    points = run(FINE)
    everywhere = np.array([place(point) for point in points])

    def curve(x):
        return -2 * np.exp(-((np.asarray(x) - 7.3) ** 2))

    def error(chosen):
        x = sorted(place(point) for point in chosen)
        return np.abs(np.interp(everywhere, x, curve(x)) - curve(everywhere)).max()

    chosen = spread(points, 18)
    start = error(chosen)
    for _ in range(6):
        rows = table([point.step for point in chosen], curve([place(point) for point in chosen]), 0.001)
        more = refine(rows, points, 1)
        chosen = [point for point in points if point in chosen or point in more]
    assert len(chosen) == 24
    # twice as dense where it bends divides the error of a straight line by four; a bit is left to the choice of points
    assert error(chosen) < start / 3 and error(spread(points, 24)) > 2 * error(chosen)


@pytest.mark.parametrize("slope", [0.0, 0.3, -0.7])
@pytest.mark.parametrize("stderr", [0.0, 0.001, 0.05])
def test_a_straight_line_is_left_alone(slope, stderr):
    """Flat, rising or falling, and also where the errors are given as none and only rounding bends the line."""
    assert refine(table(EVERY, 3 + slope * np.arange(18), stderr), run(FINE), 5) == []


def test_noise_on_a_flat_line_is_left_alone():
    """Steps as a sweep has them and noise of the size of the standard errors: 1 in 20 runs may be taken in."""
    rng, points = np.random.default_rng(0), run(PYTHIA)
    steps = [point.step for point in spread(points, 40)]
    alarms = sum(bool(refine(table(steps, 6 + 0.02 * rng.standard_normal(40), 0.02), points, 5)) for _ in range(100))
    # at a rate of 1/20 more than 12 of 100 come about once in a thousand times
    assert alarms <= 12


def test_a_bend_well_above_the_noise_is_found_in_it():
    rng, points = np.random.default_rng(0), run(FINE)
    for _ in range(20):
        y = bent(np.arange(18), 7.5) + 0.02 * rng.standard_normal(18)
        assert 7 < place(refine(table(EVERY, y, 0.02), points, 1)[0]) < 8


def test_unknown_errors_are_no_reason_to_do_nothing():
    """One sequence too few for a standard error, or none given: nan."""
    chosen, = refine(table(EVERY, bent(np.arange(18), 7.5), math.nan), run(FINE), 1)
    assert 7 < place(chosen) < 8


def test_neither_faulty_nor_measured_ones_are_chosen_and_a_full_gap_has_none():
    x, steps = np.arange(18), [*EVERY[:8], *EVERY[8:]]
    inside = [step for step in FINE if 2**7 - 1 < step < 2**8 - 1]
    nearest = min(inside, key=lambda step: abs(math.log2(step + 1) - 7.5))
    rows = table(steps, bent(x, 7.5))
    first, = refine(rows, run(FINE), 1)
    second, = refine(rows, run(FINE, faulty={nearest}), 1)
    assert first.step == nearest != second.step and second.step in inside
    for left in (run(EVERY), run(FINE, faulty=set(FINE) - set(EVERY))):
        assert refine(rows, left, 5) == []


def test_failed_and_quarantined_rows_do_not_count_as_measured():
    rows = table(EVERY, bent(np.arange(18), 7.5))
    rows.loc[3, ["status", "rankme", "rankme_stderr"]] = ["failed", math.nan, math.nan]
    rows.loc[15, ["status", "rankme", "rankme_stderr"]] = ["quarantined", math.nan, math.nan]
    assert 7 < place(refine(rows, run(FINE), 1)[0]) < 8
    assert refine(rows.assign(status="failed"), run(FINE), 5) == refine(rows.iloc[:2], run(FINE), 5) == []


def test_stages_and_repositories_are_curves_of_their_own():
    """A jump from one stage to the next is no bend, nor do steps that start again from nothing make one."""
    x = np.arange(18)
    pretraining, tuning = table(EVERY, 0 * x + 6), table(EVERY, 0 * x + 2, stage="SFT")
    other = table(EVERY, 0 * x + 4, model="me/other")
    rows = pd.concat([pretraining, tuning, other])
    points = run(FINE) + run(FINE, "SFT") + run(FINE, model="me/other")
    assert refine(rows, points, 5) == []
    bend = table(EVERY, bent(x, 7.5), model="me/other")
    chosen, = refine(pd.concat([pretraining, tuning, bend]), points, 1)
    assert chosen.model == "me/other" and chosen.stage == "pretraining" and 7 < place(chosen) < 8


def test_a_run_without_stages_and_a_revision_without_a_step_are_taken_as_they_are():
    points = [Checkpoint("me/run", f"step{step}", step) for step in FINE] + [Checkpoint("me/run", "main")]
    rows = table(EVERY, bent(np.arange(18), 7.5)).assign(stage=None)
    rows.loc[18] = rows.loc[17]
    rows["step"] = rows.step.astype(float)
    rows.loc[18, "step"] = math.nan
    chosen, = refine(rows, points, 1)
    assert 7 < place(chosen) < 8 and chosen.revision == f"step{chosen.step}"


def test_no_more_than_were_asked_for_one_in_each_gap():
    rng = np.random.default_rng(0)
    rows, points = table(EVERY, 3 * rng.standard_normal(18), 0.001), run(FINE)
    for count in (0, 1, 3, 30):
        chosen = refine(rows, points, count)
        assert len(chosen) <= count and len({math.floor(place(point)) for point in chosen}) == len(chosen)
    assert refine(rows, points, 30)[:3] == refine(rows, points, 3)


def test_names_are_no_checkpoints():
    with pytest.raises(TypeError, match="expected checkpoints, got str 'pythia-1b'"):
        spread("pythia-1b", 3)

"""pass@k. Trusted: all subsets of a few samples, counted; the definition in whole numbers; planted probabilities, whose
pass@k and whose crossing are known; simulated problems, of which an interval must hold the truth as often as it says.
"""

from itertools import combinations
from math import comb

import numpy as np
import pytest
from scipy.optimize import brentq

from reptrace.measures.pass_at_k import Mean, crossing, difference, exact, mean, unbiased


def test_it_is_the_share_of_all_subsets_that_hold_a_right_one():
    for samples in range(1, 9):
        for right in range(samples + 1):
            outcomes = [1] * right + [0] * (samples - right)
            for k in range(1, samples + 1):
                share = np.mean([max(subset) for subset in combinations(outcomes, k)])
                assert unbiased(samples, right, k)[0] == pytest.approx(share, abs=1e-14)  # rounding of 8 factors


def test_it_is_the_quotient_of_whole_numbers_also_of_many_samples():
    right, ks = np.array([0, 1, 2, 7, 255, 256, 257, 511, 512]), [1, 2, 16, 64, 255, 256]
    found = unbiased(512, right, ks)
    due = [[float(1 - comb(512 - c, k) / comb(512, k)) if c else 0.0 for k in ks] for c in right.tolist()]
    np.testing.assert_allclose(found, due, rtol=1e-12)  # sums of up to 512 logarithms
    assert (found[-1] == 1).all() and (np.diff(found[1:-3], axis=1) >= 0).all()


def test_it_is_unbiased_and_the_bootstrap_at_k_of_all_samples_is_not(rng):
    p, samples, ks = 0.03, 32, [1, 4, 16, 32]
    right = rng.binomial(samples, p, 40_000)
    due = exact(np.log(p), ks)
    found = unbiased(samples, right, ks)
    assert (np.abs(found.mean(0) - due) < 4 * found.std(0) / 200).all()  # four standard errors
    wrong = 1 - (1 - right / samples) ** samples  # k = N drawn with replacement
    assert wrong.mean() < due[-1] - 0.1
    assert unbiased(512, 1, 512)[0] == 1  # and not 1 - 1/e


def test_exact_pass_at_k_is_that_of_independent_tries_also_of_tiny_probabilities():
    log_probability = np.log([1e-12, 0.1, 0.5])
    found = exact(log_probability, [1, 2, 256])
    np.testing.assert_allclose(found[:, 1], [2e-12, 0.19, 0.75], rtol=1e-9)  # 1e-12 squared is left out
    assert found[0, 2] == pytest.approx(256e-12, rel=1e-9) and exact(0.0, 1)[0] == 1 and exact(-np.inf, 9)[0] == 0
    assert exact([[-1.0, -2.0]], 3).shape == (1, 2, 1)


def graded(rng, size):
    """Probabilities of problems as small models have them: many hardly ever solved, some often."""
    return np.where(rng.random(size) < 0.4, rng.beta(0.3, 30, size), rng.beta(0.5, 1.5, size))


def test_the_interval_over_problems_covers_as_often_as_it_says(rng):
    for k in (1, 16, 256):
        truth = exact(np.log(graded(rng, 400_000)), k).mean()
        found = [mean(exact(np.log(graded(rng, 120)), k)[:, 0]) for _ in range(400)]
        covered = np.mean([each.low <= truth <= each.high for each in found])
        assert 0.91 < covered < 0.985  # 400 tries: 3.5 standard errors around 0.95


def test_the_interval_over_problems_and_seeds_covers_as_often_as_it_says(rng):
    seeds, problems, held, one_level = 4, 60, [], []
    for _ in range(600):
        values = (0.3 + rng.normal(0, 0.03, (seeds, 1)) + rng.normal(0, 0.2, problems)
                  + rng.normal(0, 0.1, (seeds, problems)))
        both, alone = mean(values, -9, 9), mean(values.mean(0), -9, 9)
        held.append(both.low <= 0.3 <= both.high)
        one_level.append(alone.low <= 0.3 <= alone.high)
    assert 0.92 < np.mean(held) < 0.985  # 600 tries; Satterthwaite's degrees of freedom lean to wide
    assert np.mean(one_level) < np.mean(held)  # without the seeds' scatter it is too narrow


def test_of_one_seed_it_is_students_interval_by_hand():
    found = mean([0.0, 0.5, 1.0, 0.5])
    half = 3.182446 * np.sqrt((2 * 0.25) / 3) / 2  # t of 3 degrees of freedom, from a table
    assert found == pytest.approx((0.5, max(0, 0.5 - half), min(1, 0.5 + half)), abs=1e-6)
    assert mean([[0.0, 0.5, 1.0, 0.5]]) == found


def test_values_that_are_all_alike_do_not_make_a_sure_mean():
    found = mean(np.zeros(100))
    assert found.mean == found.low == 0
    assert (1 - found.high) ** 100 == pytest.approx(0.025)  # a rarer success shows in 100 problems seldom enough
    assert mean(np.ones((3, 100))) == pytest.approx((1, 1 - found.high, 1))
    assert difference(np.ones(100), np.ones(100)) == pytest.approx((0, -found.high, found.high))


def test_a_difference_is_paired(rng):
    one = graded(rng, 200)
    other = np.clip(one + 0.02, 0, 1)
    paired = difference(one, other)
    assert paired.mean == pytest.approx(other.mean() - one.mean()) and paired.low > 0
    assert mean(other).low < mean(one).high  # unpaired, they overlap
    assert difference(other, one) == pytest.approx(Mean(-paired.mean, -paired.high, -paired.low))


KS = np.unique(np.geomspace(1, 256, 60).round().astype(int))


def test_a_planted_crossing_is_found_where_the_curves_cross():
    one, other = np.full(100, 0.1), np.repeat([0.3, 1e-9], 50)
    due = brentq(lambda k: 0.5 * (1 - 0.7**k) - (1 - 0.9**k), 1.5, 50)
    found = crossing(exact(np.log(one), KS), exact(np.log(other), KS), KS)
    assert found.k == pytest.approx(due, rel=0.01)  # straight between neighbouring k
    assert found.low < due < found.high and found.sure and found.share > 0.99
    again = crossing(exact(np.log(one), KS), exact(np.log(other), KS), KS)
    assert again == found


def test_without_a_crossing_there_is_none():
    one, better = exact(np.log(np.linspace(0.01, 0.2, 50)), KS), exact(np.log(np.linspace(0.02, 0.4, 50)), KS)
    assert crossing(one, better, KS) == (None, np.inf, np.inf, 0)  # never behind
    assert crossing(better, one, KS) == (None, 0, 0, 0)  # always behind
    assert crossing(one, one, KS) == (None, np.inf, np.inf, 0)
    behind_first = crossing(np.array([[0.2, 0.2]] * 9), np.array([[0.1, 0.3]] * 9), [1, 2])
    assert behind_first == (None, np.inf, np.inf, 0)  # crosses the other way


def test_the_last_crossing_counts_and_a_level_end_is_none():
    def found(*ahead):
        return crossing(np.full((5, 4), 0.2), np.tile(0.2 + np.array(ahead), (5, 1)), [1, 2, 4, 8]).k

    assert found(-0.1, 0.1, -0.1, -0.1) == pytest.approx(2 * 2**0.5)  # half way in ln k
    assert found(0.1, -0.1, 0.1, 0.1) is None and found(0.1, 0, 0, 0) is None


def test_the_interval_of_a_crossing_covers_as_often_as_it_says_and_seeds_widen_it(rng):
    few = 2 ** np.arange(9)

    def pair(size):
        p = graded(rng, size)
        sharper = np.where(rng.random(size) < 0.65, -np.expm1(4 * np.log1p(-p)), 0.02 * p)  # some gain, some are lost
        return [exact(np.log(each), few) for each in (p, sharper)]

    truth = crossing(*(np.tile(each.mean(0), (2, 1)) for each in pair(200_000)), few, draws=1).k
    found = [crossing(*pair(120), few, draws=300, seed=k) for k in range(200)]
    assert np.mean([each.low <= truth <= each.high for each in found]) > 0.89  # 200 tries: four standard errors
    p, sharper = np.full(300, 0.1), np.repeat([0.3, 1e-9], 150)
    one, other = exact(np.log(p), few), exact(np.log(sharper), few)
    seeds = exact(np.log(np.array([[0.6], [1.0], [1.4]]) * sharper), few)
    plain, wider = crossing(one, other, few), crossing(np.broadcast_to(one, seeds.shape), seeds, few)
    assert plain.sure and wider.low < plain.low and wider.high > plain.high


def test_curves_that_meet_at_the_largest_k_have_crossed_before():
    one, ahead = np.full((3, 4), 0.5), np.array([0.1, -0.1, -0.1, 0.0])
    assert crossing(one, one + ahead, [1, 4, 8, 16]).k == pytest.approx(2, rel=1e-12)  # half way in ln k
    assert crossing(one, one + np.array([0.1, 0.1, 0.1, 0.0]), [1, 4, 8, 16]).k is None


def test_differences_that_are_alike_but_for_rounding_are_alike():
    rounded = mean(np.array([0.3 - 0.2, 0.1] * 10), -1, 1)
    assert rounded == pytest.approx(mean(np.full(20, 0.1), -1, 1), abs=1e-12) and rounded.high - rounded.low > 0.1


@pytest.mark.parametrize(("made", "message"), [
    (lambda: unbiased(8, 9, 1), "right must be whole numbers from 0 to 8, got int64 0 to 9"),
    (lambda: unbiased(8, 1.5, 1), "right must be whole numbers"),
    (lambda: unbiased(8, 1, 9), "k must be whole numbers from 1 to 8"),
    (lambda: exact(0.5, 1), "at most 0, got 0.5"),
    (lambda: exact(np.nan, 1), "at most 0, got nan"),
    (lambda: mean([0.5]), "two problems or more"),
    (lambda: mean([0.5, np.nan]), "all known"),
    (lambda: mean([45, 50]), r"from 0 to 1; got shape \(2,\), 45 to 50"),
    (lambda: crossing(np.zeros((1, 2)), np.ones((1, 2)), [1, 2]), "two problems or more"),
    (lambda: crossing(np.zeros((2, 2)), np.full((2, 2), np.nan), [1, 2]), "all known"),
    (lambda: crossing(np.zeros((2, 2)), np.ones((2, 2)), [0, 2]), "rising from 1"),
    (lambda: difference([0.5, 0.1], [0.5]), r"not of the same problems: shapes \(2,\) and \(1,\)"),
    (lambda: crossing(np.zeros((4, 2)), np.zeros((4, 2)), [2, 1]), "two or more k, rising")])
def test_what_cannot_be_told_is_refused(made, message):
    with pytest.raises(ValueError, match=message):
        made()

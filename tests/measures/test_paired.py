"""Changes of RankMe and alpha between two readings of the same sequences, and their paired errors.

Trusted: RankMe and alpha by numpy and scipy alone, delete-one and over fresh draws of pairs; what scaling, rotating and
reordering must leave alone; spectra that we planted.
"""

import numpy as np
import pytest
import scipy.stats
import torch

from reptrace.measures.paired import paired_change
from reptrace.measures.spectra import geometry

RANKS = (2, 7)


def long_way(features):
    """RankMe and alpha over RANKS."""
    spectrum = np.linalg.eigvalsh(np.cov(features.T, ddof=0))[::-1]
    i = np.arange(RANKS[0], RANKS[1] + 1)
    slope = np.polyfit(np.log(i), np.log(spectrum[i - 1]), 1, w=np.sqrt(1 / i))[0]
    return np.array([np.exp(scipy.stats.entropy(spectrum)), -slope])


def pair(rng, samples, width=8, moved=0.1, steeper=0.2):
    """One text before and after a training that steepens the spectrum a little; of other widths."""
    ranks = np.arange(1, width + 1.0)
    latent = rng.standard_normal((samples, width))
    mixed = latent + moved * rng.standard_normal((samples, width))
    turned = np.linalg.qr(np.random.default_rng(1).standard_normal((width + 2, width)))[0]
    return latent * ranks**-0.5, (mixed * ranks ** (-0.5 - steeper / 2)) @ turned.T


def numbers(change):
    return [change.rankme, change.alpha], [change.rankme_stderr, change.alpha_stderr]


def test_the_error_is_the_delete_one_jackknife_of_the_difference(rng):
    samples = 600
    before, after = pair(rng, samples, width=8)
    after = after[:, :8] + 0  # of full rank for numpy's logarithm of alpha's window
    changes, errors = numbers(paired_change(before, after, RANKS))
    np.testing.assert_allclose(changes, long_way(after) - long_way(before), rtol=1e-9)  # float64 both
    left_out = np.array([long_way(np.delete(after, row, 0)) - long_way(np.delete(before, row, 0))
                         for row in range(samples)])
    exact = np.sqrt((samples - 1) / samples * np.square(left_out - left_out.mean(0)).sum(0))
    np.testing.assert_allclose(errors, exact, rtol=4 * 8 / samples)  # second order: a few widths over samples


def test_the_error_is_the_spread_over_fresh_draws_and_the_unpaired_one_is_far_from_it(rng):
    draws = []
    for _ in range(300):
        before, after = pair(rng, 400)
        alone = [geometry(each, RANKS) for each in (before, after)]
        draws.append([*numbers(paired_change(before, after, RANKS)),
                      [np.hypot(*[each.rankme_stderr for each in alone]),
                       np.hypot(*[each.alpha_stderr for each in alone])]])
    changes, errors, unpaired = np.swapaxes(draws, 0, 1)
    spread = changes.std(0, ddof=1)
    # A spread from 300 draws is itself known to 1 / sqrt(2 * 299) = 4 %: four of those
    np.testing.assert_allclose(errors.mean(0), spread, rtol=0.16)
    assert (unpaired.mean(0) > 2 * spread).all()


def test_a_checkpoint_has_not_changed_against_itself_nor_by_what_leaves_a_spectrum_alone(rng):
    before, _ = pair(rng, 300)
    assert numbers(paired_change(before, before.copy(), RANKS)) == ([0, 0], [0, 0])
    turn = np.linalg.qr(rng.standard_normal((8, 8)))[0]
    changes, errors = numbers(paired_change(before, 3 * before @ turn + 5, RANKS))
    # Rounding of 1e-16 of the largest eigenvalue, over the smallest (1/8 of it), and of the shift
    np.testing.assert_allclose([changes, errors], 0, atol=1e-12)


@pytest.mark.parametrize("steeper", [-0.5, 0.3, 1.0])
def test_planted_changes_have_their_sign_and_size(rng, steeper):
    ranks = np.arange(1, 33.0)
    latent = rng.standard_normal((20_000, 32))
    change = paired_change(latent / ranks**0.5, latent / ranks ** (0.5 + steeper / 2), (2, 30))
    expected = np.exp(scipy.stats.entropy(ranks ** (-1 - steeper))) - np.exp(scipy.stats.entropy(1 / ranks))
    assert change.alpha == pytest.approx(steeper, abs=4 * change.alpha_stderr + 1e-3)  # sample noise, its bias
    assert change.rankme == pytest.approx(expected, abs=4 * change.rankme_stderr + 32 * 32 / 20_000)  # bias: d^2 / M
    assert (change.rankme < 0) == (steeper > 0) and abs(change.rankme) > 20 * change.rankme_stderr


def test_order_of_the_pairs_does_not_matter_and_the_pairing_does(rng):
    before, after = pair(rng, 500)
    order = rng.permutation(500)
    same, other = paired_change(before[order], after[order], RANKS), paired_change(before, after[order], RANKS)
    known = paired_change(before, after, RANKS)
    np.testing.assert_allclose(numbers(same), numbers(known), rtol=1e-9)  # sums in another order
    assert other.rankme == pytest.approx(known.rankme, rel=1e-9) and other.rankme_stderr > 2 * known.rankme_stderr


def test_tensors_of_float32_and_a_missing_window_are_taken(rng):
    before, after = (torch.as_tensor(each, dtype=torch.float32) for each in pair(rng, 300))
    known = paired_change(before.double(), after.double(), None)
    found = paired_change(before, after, None)
    assert np.isnan([found.alpha, found.alpha_stderr]).all()
    # float32: rounding 6e-8 of the features
    assert (found.rankme, found.rankme_stderr) == pytest.approx((known.rankme, known.rankme_stderr), rel=1e-5)


def test_what_cannot_be_paired_is_refused(rng):
    before, after = pair(rng, 100)
    with pytest.raises(ValueError, match="100 rows before and 99 after"):
        paired_change(before, after[1:], RANKS)
    broken = after.copy()
    broken[7, 2] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity in 1 of 100 rows, the first is row 7"):
        paired_change(before, broken, RANKS)
    with pytest.raises(ValueError, match="8 eigenvalues"):
        paired_change(before, after)  # the default window is longer
    with pytest.raises(TypeError, match="floating point"):
        paired_change(before, np.ones((100, 3), int), RANKS)

"""Judging a power law.

Trusted: rows drawn from spectra that are power laws, or are broken on purpose; scipy's optimizer for the likelihood;
numpy's covariance of draws; scipy's Mahalanobis distance.
"""

import numpy as np
import pytest
import scipy.optimize
import scipy.spatial
import scipy.stats

from reptrace.measures.power_law import cross_validated_window, likelihood_alpha, power_law_judgement, squared_radii
from reptrace.measures.spectra import alpha_req, eigenspectrum

D, RANKS = 24, (2, 16)
I = np.arange(1.0, D + 1)  # noqa: E741
BROKEN = np.where(I <= 6, I**-0.5, 6.0 * I**-1.5)


def drawn(rng, samples, spectrum):
    return rng.standard_normal((samples, len(spectrum))) * np.sqrt(spectrum)


def rejections(rng, spectrum, samples, draws=40):
    return sum(power_law_judgement(eigenspectrum(drawn(rng, samples, spectrum)), samples, RANKS, draws=99,
                                   seed=k).rejected for k in range(draws))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_a_power_law_is_rejected_no_more_often_than_the_level_says(rng, alpha):
    found = rejections(rng, I**-alpha, 6 * D)
    assert found <= scipy.stats.binom.ppf(0.999, 40, 0.05)  # one test in a thousand fails by chance


@pytest.mark.parametrize("spectrum", [BROKEN, np.where(I <= 4, 20.0, 1.0)], ids=["broken", "few large"])
def test_what_is_none_is_rejected(rng, spectrum):
    assert rejections(rng, spectrum, 10 * D, draws=20) >= 18  # a power of 0.99 passes but once in a thousand


def test_the_exponent_is_the_one_that_was_planted(rng):
    found = [power_law_judgement(eigenspectrum(drawn(rng, 4 * D, I**-1.0)), 4 * D, RANKS, draws=49) for _ in range(30)]
    plain = np.mean([alpha_req(eigenspectrum(drawn(rng, 4 * D, I**-1.0)), RANKS).alpha for _ in range(30)])
    scatter = np.std([each.alpha for each in found])
    assert np.mean([each.alpha for each in found]) == pytest.approx(1, abs=3 * scatter / np.sqrt(30))
    assert plain > 1


def heavy(rng, samples, spectrum):
    """Rows of a multivariate t distribution of 5 degrees of freedom."""
    return drawn(rng, samples, spectrum) * np.sqrt(3 / rng.chisquare(5, (samples, 1)))


def test_of_heavy_rows_too_a_power_law_is_judged_one_as_often_as_the_level_says(rng):
    many, level = 60, 0.2
    known, normal = [], []
    for _ in range(many):
        rows = heavy(rng, 8 * D, I**-0.5)
        s = eigenspectrum(rows)
        for rejected, radii in ((known, squared_radii(rows)), (normal, None)):
            judgement = power_law_judgement(s, len(rows), RANKS, radii=radii, level=level, draws=39)
            rejected.append(judgement.rejected)
    # Counted in 60 draws: beyond these in one of 1,000 tries
    assert scipy.stats.binom.ppf(0.001, many, level) <= sum(known) <= scipy.stats.binom.ppf(0.999, many, level)
    assert sum(normal) > scipy.stats.binom.ppf(0.999, many, level)  # positive control: tails matter


def test_radii_are_distances_from_the_other_rows(rng):
    rows = heavy(rng, 80, I**-1.0)
    others = [np.delete(rows, k, axis=0) for k in range(80)]
    far = [scipy.spatial.distance.mahalanobis(row, its.mean(0), np.linalg.inv(np.cov(its.T))) ** 2
           for row, its in zip(rows, others, strict=True)]
    np.testing.assert_allclose(squared_radii(rows), far / np.mean(far), rtol=1e-9)  # rounding


def test_what_does_not_fit_a_judgement_is_refused(rng):
    s = eigenspectrum(drawn(rng, 8 * D, BROKEN))
    with pytest.raises(ValueError, match=r"24 eigenvalues is judged from 48 sequences on, got 47"):
        power_law_judgement(s, 2 * D - 1, RANKS)
    with pytest.raises(ValueError, match="of the 192 sequences, got 3"):
        power_law_judgement(s, 8 * D, RANKS, radii=np.ones(3))
    with pytest.raises(ValueError, match="in 24 dimensions are told from 48 sequences on that vary, got 47"):
        squared_radii(drawn(rng, 2 * D - 1, BROKEN))
    with pytest.raises(ValueError, match="in 0 dimensions"):
        squared_radii(np.ones((60, D)))


def test_a_spectrum_that_is_one_sequence_s_in_part_is_not_judged(rng):
    rows = drawn(rng, 8 * D, I**-0.5)
    rows[7] *= 30
    with pytest.raises(ValueError, match=r"one sequence has 8\d% of the squared radii"):  # 900 / (900 + 191) = 82 %
        power_law_judgement(eigenspectrum(rows), len(rows), RANKS, radii=squared_radii(rows))
    rest = np.delete(rows, 7, axis=0)
    assert not power_law_judgement(eigenspectrum(rest), len(rest), RANKS, radii=squared_radii(rest), draws=39).rejected


def test_the_likelihood_is_the_largest(rng):
    s, samples = eigenspectrum(drawn(rng, 4 * D, I**-1.0)), 4 * D
    first, last = RANKS
    part, x = s[first - 1 : last], np.log(np.arange(first, last + 1))

    def minus(p):
        return samples / 2 * (p[0] - p[1] * x + part * np.exp(-p[0] + p[1] * x)).sum()

    best = scipy.optimize.minimize(minus, [0.0, 1.0], tol=1e-12)
    alpha, stderr = likelihood_alpha(s, samples, RANKS)
    assert alpha == pytest.approx(best.x[1], abs=1e-5)  # the optimizer's own tolerance, by finite differences
    along = np.array([drawn(rng, samples, I**-1.0).var(0) for _ in range(400)])  # variances along fixed directions
    scatter = np.std([likelihood_alpha(each, samples, RANKS)[0] for each in np.sort(along)[:, ::-1]])
    assert stderr == pytest.approx(scatter, rel=0.2)  # known to 4 % from 400; sorting ties the variances together


def test_the_window_ends_where_the_power_law_does(rng):
    spectrum = np.where(I <= 12, I**-1.0, 12.0**3 * I**-4.0)
    windows = [(1, 8), (1, 12), (1, 18), (1, 24)]
    assert cross_validated_window(drawn(rng, 400 * D, spectrum), windows) == (1, 12)
    assert cross_validated_window(drawn(rng, 40 * D, I**-1.0), windows) in windows[2:]  # no end: chance decides which
    assert cross_validated_window(drawn(rng, 4000 * D, np.exp(-I)), [(1, 8), (2, 12)]) is None

"""Estimators that correct for few sequences.

Trusted: rows drawn from a covariance that is chosen, so that the variance along any direction, and RankMe and alpha of
infinitely many rows, are known; Page's entropy of a flat spectrum; scikit-learn's empirical covariance; the spread over
fresh draws.
"""

import numpy as np
import pytest
import torch
from sklearn.covariance import empirical_covariance

from reptrace.measures.estimators import cross_validated, extrapolated, linear, nonlinear
from reptrace.measures.spectra import alpha_req, eigenspectrum, geometry, rankme, rankme_bias

RANKS = (2, 12)
D = 16


def power_law(alpha, width=D):
    return np.arange(1.0, width + 1) ** -alpha


def drawn(rng, samples, spectrum):
    return rng.standard_normal((samples, len(spectrum))) * np.sqrt(spectrum)


def along_sample_directions(rows, spectrum):
    """True variance along the sample's own directions: what shrinkage aims at (Ledoit & Peche, 2011)."""
    vectors = np.linalg.eigh(empirical_covariance(rows))[1]
    return np.sort(vectors.T**2 @ spectrum)[::-1]


@pytest.mark.parametrize("samples", [100, 200, 800])
def test_nonlinear_shrinkage_finds_the_variance_along_the_samples_directions(rng, samples):
    spectrum = np.where(np.arange(200) < 80, 1.0, np.where(np.arange(200) < 160, 3.0, 10.0))[::-1]  # three levels
    rows = drawn(rng, samples, spectrum)
    aim, plain = along_sample_directions(rows, spectrum), eigenspectrum(rows)
    error = {name: np.square(found - aim).mean() for name, found in
             (("shrunk", nonlinear(plain, samples)), ("plain", plain))}
    # The kernel is h = n^(-1/3) wide, 0.2 and less, and an error goes with its square: most of it has to go.
    assert error["shrunk"] < 0.1 * error["plain"]


def test_nonlinear_shrinkage_hardly_depends_on_the_scale_and_refuses_too_few(rng):
    s = eigenspectrum(drawn(rng, 100, power_law(1)))
    np.testing.assert_allclose(nonlinear(1e-3 * s, 100), 1e-3 * nonlinear(s, 100), rtol=1e-9)  # rounding
    with pytest.raises(ValueError, match="at least 12 sequences, got 11"):
        nonlinear(s, 11)


def test_linear_shrinkage_draws_all_eigenvalues_to_their_mean(rng):
    rows = drawn(rng, 40, power_law(1))
    plain = np.linalg.eigvalsh(empirical_covariance(rows))[::-1]
    shrunk = linear(rows)
    kept = (shrunk - plain.mean()) / (plain - plain.mean())
    assert 0 < kept[0] < 1
    np.testing.assert_allclose(kept, kept[0], rtol=1e-9)  # rounding


def test_cross_validation_finds_the_variance_along_the_samples_directions(rng):
    spectrum, folds = power_law(1), 5
    found, aim = (np.mean(each, 0) for each in zip(*((cross_validated(rows, folds), along_sample_directions(
        rows[: len(rows) - len(rows) // folds], spectrum)) for rows in (drawn(rng, 80, spectrum) for _ in range(60))),
        strict=True))
    # Of 60 draws of 80 rows a variance is known to sqrt(2 / 4800) = 2 %; sorting adds as much at the flat end.
    np.testing.assert_allclose(found[:8], aim[:8], rtol=0.08)
    with pytest.raises(ValueError, match="5 folds need at least 10"):
        cross_validated(np.ones((9, 3)))


@pytest.mark.parametrize(("alpha", "samples"), [(0.0, 8 * D), (1.0, 8 * D), (2.0, 6 * D)])
def test_the_bias_of_rankme_is_what_draws_show(rng, alpha, samples):
    spectrum = power_law(alpha)
    found = np.array([rankme(eigenspectrum(drawn(rng, samples, spectrum))) for _ in range(600)])
    told = rankme_bias(spectrum, samples)
    # To first order: the next order is d / N of it, an eighth; and the mean of 600 draws is known to so much.
    assert found.mean() - rankme(spectrum) == pytest.approx(
        told, abs=abs(told) / 6 + 3 * found.std() / np.sqrt(len(found)))


def test_of_a_flat_spectrum_it_is_pages():
    # The mean entropy of a random state, ln d - d / 2M for complex ones; of real ones d + 1 in place of d, and the
    # scatter of the trace, by which both are divided, takes 2 / d of that back.
    bias = np.log(1 + rankme_bias(np.ones(50), 5000) / 50)
    assert bias == pytest.approx(-50 / 1e4, rel=0.03)


def test_extrapolation_takes_the_bias_out_and_knows_its_scatter(rng):
    spectrum, samples = power_law(1), 6 * D
    truth = rankme(spectrum), alpha_req(spectrum, RANKS).alpha
    found = [extrapolated(drawn(rng, samples, spectrum), RANKS) for _ in range(150)]
    plain = np.array([(each.rankme + each.rankme_bias, each.alpha + each.alpha_bias) for each in found])
    values = np.array([(each.rankme, each.alpha) for each in found])
    error = values.std(0) / np.sqrt(len(found))
    assert plain[:, 0].mean() < truth[0] - 10 * error[0]  # there is a bias to take out
    assert values[:, 0].mean() == pytest.approx(truth[0], abs=4 * error[0])  # 3, and what is left at 1/N^2
    stderr = np.median([(each.rankme_stderr, each.alpha_stderr) for each in found], axis=0)
    assert abs(values[:, 1].mean() - truth[1]) < stderr[1]  # alpha's bias is no clean 1/N: too much is taken out
    wide = stderr / values.std(0)
    # The scatter of 150 is known to 6 %, and the jackknife is one of few rows. alpha's is too wide, as eigenvalues that
    # lie close together keep apart, which no first order knows.
    assert 0.75 < wide[0] < 1.25 and 0.75 < wide[1] < 2


def test_the_rest_is_what_extrapolations_of_fresh_rows_differ_by(rng):
    spectrum, samples = power_law(1), 8 * D
    found = [extrapolated(drawn(rng, samples, spectrum), RANKS) for _ in range(100)]
    rest = np.array([(each.rankme_rest / each.rankme, each.alpha_rest) for each in found])
    whole, half, quarter = (np.array([(np.log(rankme(s)), alpha_req(s, RANKS).alpha) for s in (
        eigenspectrum(drawn(rng, samples // parts, spectrum)) for _ in range(600))]) for parts in (1, 2, 4))
    expected = 2 * whole - half - (2 * half - quarter)
    noise = np.hypot(expected.std(0) / np.sqrt(600), rest.std(0) / np.sqrt(100))
    assert (np.abs(rest.mean(0) - expected.mean(0)) < 4 * noise).all()
    assert (np.abs((half - quarter).mean(0) - expected.mean(0)) > 8 * noise).all()  # positive control: not that alone
    for each in found[:3]:
        for (low, high), value, stderr, left in (
                (np.log(each.rankme_interval), np.log(each.rankme), each.rankme_stderr / each.rankme,
                 each.rankme_rest / each.rankme),
                (each.alpha_interval, each.alpha, each.alpha_stderr, each.alpha_rest)):
            assert value - low == pytest.approx(high - value)
            assert max(1.96 * stderr, abs(left)) < high - value <= 1.96 * stderr + abs(left)


def test_what_is_extrapolated_is_the_plain_value_and_halves_of_the_rows(rng):
    rows = drawn(rng, 60, power_law(1))
    found, plain = extrapolated(rows, RANKS), geometry(rows, RANKS)
    assert found.rankme + found.rankme_bias == pytest.approx(plain.rankme, rel=1e-12)
    assert found.alpha + found.alpha_bias == pytest.approx(plain.alpha.alpha, rel=1e-12)
    scaled = extrapolated(torch.from_numpy(1e3 * rows), RANKS)
    assert (scaled.rankme, scaled.alpha) == pytest.approx((found.rankme, found.alpha), rel=1e-9)
    low, high = found.rankme_interval
    assert np.sqrt(low * high) == pytest.approx(found.rankme) and low < found.rankme < high


def test_an_interval_reaches_as_far_as_the_bias_that_is_no_1_over_n(rng):
    # Rows of heavy tails: of a t distribution of 5 degrees of freedom. At this width they hardly scatter.
    spectrum, draws = power_law(0.5, 256), 10
    found = [extrapolated(drawn(rng, 512, spectrum) * np.sqrt(3 / rng.chisquare(5, (512, 1))), None)
             for _ in range(draws)]
    left = np.array([each.rankme for each in found]) - rankme(spectrum)
    assert (left < 0).all()  # some bias is left, and one row far out may spoil a draw
    # Of a bias N^-p, as it is here with p between 0.8 and 1, 1 / (2^p - 1) times what is told is left: 1 to 1.35
    assert np.median(-left) < 1.35 * np.median([each.rankme_rest for each in found])
    inside = [each.rankme_interval[0] < rankme(spectrum) < each.rankme_interval[1] for each in found]
    assert np.mean(inside) >= 0.9
    bare = [abs(far) < 1.96 * each.rankme_stderr for far, each in zip(left, found, strict=True)]
    assert np.mean(bare) < 0.9  # positive control: the standard error alone is not enough


def test_below_two_sequences_a_dimension_there_is_no_interval(rng):
    found = extrapolated(drawn(rng, 2 * D - 1, power_law(1)), RANKS, shorten=True)
    assert not found.sound and np.isnan([*found.rankme_interval, *found.alpha_interval]).all()
    enough = extrapolated(drawn(rng, 2 * D, power_law(1)), RANKS, shorten=True)
    assert enough.sound and np.isfinite(enough.rankme_interval).all()
    assert np.isnan(enough.alpha_interval).all()  # its window ends at 12, of halves of 16
    without = extrapolated(drawn(rng, 4 * D, power_law(1)), None)
    assert np.isnan(without.alpha) and np.isfinite(without.rankme_stderr)
    with pytest.raises(ValueError, match="eight in all, got 7"):
        extrapolated(drawn(rng, 7, power_law(1, 2)), None)
    with pytest.raises(ValueError, match="must have shape"):
        extrapolated(np.ones(3))


def test_few_that_differ_have_no_interval_and_any_array_of_features_will_do(rng):
    rows = drawn(rng, 64, power_law(1, 4))
    few = np.where(np.arange(64)[:, None] < 6, rows, 0)  # of some quarter all are alike
    found = extrapolated(few, None)
    assert found.sound and found.rankme > 1 and np.isnan(found.rankme_interval).all()
    known, backwards = extrapolated(rows, (1, 4)), rows[::-1].copy()[::-1]
    rows.flags.writeable = False
    for each in (rows, backwards, torch.tensor(backwards.copy(), requires_grad=True)):
        assert extrapolated(each, (1, 4)) == known


def test_alpha_has_no_interval_where_its_window_reaches_the_last_eigenvalues_of_few_sequences(rng):
    rows = drawn(rng, 8 * RANKS[1], power_law(1))
    assert np.isfinite(extrapolated(rows, RANKS).alpha_interval).all()
    assert np.isnan(extrapolated(rows[1:], RANKS).alpha_interval).all()
    assert np.isfinite(geometry(rows[: 2 * RANKS[1]], RANKS).alpha_interval).all()
    assert np.isnan(geometry(rows[: 2 * RANKS[1] - 1], RANKS).alpha_interval).all()


def test_an_interval_is_settled_where_the_bias_is_slight(rng):
    few, many = (geometry(drawn(rng, n * D, power_law(1)), RANKS) for n in (2, 200))
    assert not few.settled and many.settled
    assert rankme_bias(few.eigenvalues, few.samples) < rankme_bias(many.eigenvalues, many.samples) < 0
    steep = drawn(rng, 4 * D, power_law(4))  # its bias is slight from the start
    assert geometry(steep, RANKS).settled and not geometry(steep[1:], RANKS).settled


def test_one_row_far_out_makes_no_rankme_below_1(rng):
    rows = drawn(rng, 2 * D, power_law(1))
    rows[7] *= 30
    plain, better = geometry(rows, None), extrapolated(rows, None)
    assert plain.rankme_interval[0] == 1 < plain.rankme
    assert np.isnan([better.rankme, *better.rankme_interval]).all()


def test_of_fewer_than_30_sequences_there_is_no_interval_of_rankme(rng):
    rows = drawn(rng, 30, power_law(1))
    assert np.isfinite(geometry(rows, RANKS).rankme_interval).all()
    few = geometry(rows[1:], RANKS)
    assert np.isnan(few.rankme_interval).all() and few.rankme_stderr > 0
    steep = drawn(rng, 30, power_law(6, 4))  # of so small a width, enough for its bias
    assert geometry(steep, None).settled and not geometry(steep[1:], None).settled

"""Spectra, RankMe, alpha-ReQ and their kin.

Trusted: matrices built with a covariance spectrum we chose (orthonormal columns, orthogonal to the vector of ones, so
that centring does nothing); numbers for s_i ~ 1/i that others worked out; sklearn's PCA, scipy's entropy and singular
values, numpy's covariance, weighted `polyfit` and norms. Standard errors are held against resampling done the long way:
numeric derivatives by row weights, delete-one, and the spread over fresh draws from a known Gaussian.
"""

import warnings

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import r2_score

from reptrace.measures.spectra import (
    alpha_req,
    dominated,
    eigenspectrum,
    geometry,
    participation_ratio,
    rankme,
    singular_value_rankme,
    singular_values,
    stable_rank,
    variance_share,
)

# Float64 eigenvalues are good to a few units of rounding of the largest one, whatever the size of the matrix here.
ROUNDING = 1e-13
READINGS = [rankme, participation_ratio, stable_rank, lambda s: variance_share(s, 1)]


def power_law(width, alpha):
    return np.arange(1.0, width + 1) ** -alpha


def planted(rng, samples, spectrum):
    """Features, shape (samples, d), whose centred covariance has exactly this spectrum, in a random basis."""
    ones_first = np.column_stack([np.ones(samples), rng.standard_normal((samples, len(spectrum)))])
    left = np.linalg.qr(ones_first)[0][:, 1:]
    return np.sqrt(samples) * left * np.sqrt(spectrum) @ rotation(rng, len(spectrum))


def rotation(rng, width):
    return np.linalg.qr(rng.standard_normal((width, width)))[0]


def gaussian(rng, samples, spectrum):
    return rng.standard_normal((samples, len(spectrum))) * np.sqrt(spectrum)


# Planted spectra


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.5])
def test_a_planted_power_law_is_recovered(rng, alpha):
    spectrum = power_law(128, alpha)
    features = planted(rng, 400, spectrum)
    np.testing.assert_allclose(eigenspectrum(features), spectrum, rtol=0, atol=10 * ROUNDING)
    # Rounding of 1e-15 of the largest eigenvalue is 1e-15 * 100^2.5 = 1e-10 of the one at rank 100.
    assert alpha_req(eigenspectrum(features)).alpha == pytest.approx(alpha, abs=1e-9)


@pytest.mark.parametrize(("spectrum", "reading", "published", "slack"), [
    pytest.param(power_law(2048, 1), rankme, 281, 0.5, id="eigenvalues at 2048"),
    pytest.param(power_law(2048, 0.5), lambda s: singular_value_rankme(s, 0), 1588, 0.6, id="singular values at 2048"),
    pytest.param(power_law(4096, 1), rankme, 431, 0.5, id="all of 4096"),
    pytest.param(power_law(4096, 1)[:2048], rankme, 281, 0.5, id="2048 kept of 4096"),
    pytest.param(power_law(512, 1), rankme, 117, 0.5, id="eigenvalues at 512"),
    pytest.param(power_law(2048, 1), lambda s: singular_value_rankme(s, 1e-5), 329, 0.5, id="epsilon 1e-5"),
    pytest.param(np.ones(2048), singular_value_rankme, 2050.8, 0.05, id="flat with Garrido's epsilon"),
])
def test_the_numbers_known_for_each_convention_come_out(spectrum, reading, published, slack):
    assert reading(spectrum) == pytest.approx(published, abs=slack)  # published to the digits shown


def test_few_samples_bias_rankme_down_by_the_known_amount_and_many_do_not(rng):
    spectrum = power_law(512, 1)  # true RankMe 117
    few = rankme(eigenspectrum(gaussian(rng, 512, spectrum).astype(np.float32)))
    many = rankme(eigenspectrum(gaussian(rng, 15_000, spectrum).astype(np.float32)))
    assert few == pytest.approx(95, abs=2.5)  # one draw scatters by about 1
    assert many == pytest.approx(117, abs=1.5)


@pytest.mark.parametrize("width", [1, 3, 200])
def test_a_flat_spectrum_has_full_rank_by_every_reading_and_exponent_zero(rng, width):
    spectrum = eigenspectrum(planted(rng, width + 2, np.full(width, 0.37)))
    for reading in (rankme, participation_ratio, stable_rank, lambda s: 1 / variance_share(s, 1)):
        assert reading(spectrum) == pytest.approx(width, rel=1e-12)
    if width == 200:
        assert alpha_req(spectrum).alpha == pytest.approx(0, abs=1e-12)


def test_an_exactly_flat_spectrum_has_no_r2_to_speak_of():
    assert np.isnan(alpha_req(np.full(200, 0.37)).r2)


@pytest.mark.parametrize("samples", [10, 300])
def test_rank_one_features_have_rank_one_by_every_reading(rng, samples):
    features = np.outer(rng.standard_normal(samples), rng.standard_normal(40)) + rng.standard_normal(40)
    found = geometry(features, ranks=None)
    for reading in READINGS:
        # 39 eigenvalues of rounding, 1e-16 of the first, add to the entropy 39 * 1e-16 * ln(1e16) = 1e-13.
        assert reading(found.eigenvalues) == pytest.approx(1, abs=1e-11)
    assert found.rankme == pytest.approx(1, abs=1e-11)
    assert found.rankme_stderr < 1e-5  # the nodes of `deletions`


# Identities


@pytest.mark.parametrize("factor", [1e-30, 3.7, 1e30])
def test_scale_does_not_matter(rng, factor):
    features = gaussian(rng, 300, power_law(120, 1))
    plain, scaled = geometry(features), geometry(factor * features)
    for name in ("rankme", "rankme_stderr", "alpha_stderr"):
        assert getattr(scaled, name) == pytest.approx(getattr(plain, name), rel=1e-9)
    assert (scaled.alpha.alpha, scaled.alpha.r2) == pytest.approx((plain.alpha.alpha, plain.alpha.r2), rel=1e-9)


@pytest.mark.parametrize("samples", [300, 60])
@pytest.mark.parametrize("change", ["rotation", "order", "offset"])
def test_rotation_order_and_offset_do_not_matter(rng, samples, change):
    features = gaussian(rng, samples, power_law(120, 1))
    changed = {"rotation": lambda: features @ rotation(rng, 120), "order": lambda: rng.permutation(features),
               "offset": lambda: features + rng.standard_normal(120)}[change]()
    np.testing.assert_allclose(eigenspectrum(changed), eigenspectrum(features), rtol=0, atol=10 * ROUNDING)


@pytest.mark.parametrize("samples", [200, 30])
def test_a_strong_mean_direction_does_not_hurt(rng, samples):
    features = gaussian(rng, samples, power_law(50, 1))
    offset = features + 1e6 * rng.standard_normal(50)
    # The offset features themselves are rounded at 1e-10; the covariance has no part in a larger loss.
    np.testing.assert_allclose(eigenspectrum(offset), eigenspectrum(features), rtol=0, atol=1e-8)
    # Positive control: without centring, the mean is all there is.
    assert singular_value_rankme(singular_values(offset), 0) < 1.1


def test_eigenvalues_add_up_to_the_total_variance(rng):
    features = rng.standard_normal((100, 30))
    assert eigenspectrum(features).sum() == pytest.approx(features.var(0).sum(), rel=1e-13)


def test_a_repeated_call_gives_the_same_result_to_the_last_bit(rng):
    features, ranks = gaussian(rng, 300, power_law(120, 1)), [12, 100]
    first, second = geometry(features, ranks), geometry(features, ranks)
    assert np.array_equal(first.eigenvalues, second.eigenvalues)
    assert first.alpha == second.alpha and first.rankme_stderr == second.rankme_stderr


# Outside implementations


@pytest.mark.parametrize(("samples", "dtype"), [(300, np.float64), (300, np.float32), (40, np.float64)])
def test_eigenvalues_equal_those_of_sklearns_pca(rng, samples, dtype):
    features = (gaussian(rng, samples, power_law(60, 1)) + 3).astype(dtype)
    found = eigenspectrum(features)
    # PCA divides by M - 1 and stops at min(M, d). It gets float64, as a float32 PCA is itself good to 1e-6 only.
    theirs = PCA(svd_solver="full").fit(features.astype(np.float64)).explained_variance_ * (samples - 1) / samples
    assert found.shape == (60,) and found.dtype == np.float64
    np.testing.assert_allclose(found[: len(theirs)], theirs, rtol=0, atol=ROUNDING * found[0])
    assert (np.diff(found) <= 0).all() and (found >= 0).all()


def test_with_fewer_samples_than_dimensions_both_routes_agree_and_the_rank_is_one_less_than_the_samples(rng):
    features = gaussian(rng, 40, power_law(120, 0.5)) + 1
    by_covariance = scipy.linalg.eigvalsh(np.cov(features.T, bias=True))[::-1]
    by_gram = eigenspectrum(features)
    np.testing.assert_allclose(by_gram, by_covariance, rtol=0, atol=ROUNDING * by_gram[0])
    np.testing.assert_allclose(geometry(features, None).eigenvalues, by_gram, rtol=0, atol=ROUNDING * by_gram[0])
    assert (by_gram > 1e-12 * by_gram[0]).sum() == 39
    assert rankme(by_gram) < 39


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("samples", [300, 20])
def test_half_precision_features_give_the_spectrum_of_their_own_values_in_float64(rng, dtype, samples):
    features = torch.tensor(gaussian(rng, samples, power_law(40, 1)) + 2).to(dtype)
    theirs = scipy.linalg.eigvalsh(np.cov(features.double().numpy().T, bias=True))[::-1]
    for found in (eigenspectrum(features), geometry(features, ranks=None).eigenvalues):
        np.testing.assert_allclose(found, theirs, rtol=0, atol=ROUNDING * theirs[0])


@pytest.mark.parametrize("kind", ["array", "float16 array", "tensor", "columns first", "list", "with gradient"])
def test_arrays_tensors_and_lists_are_read_alike(rng, kind):
    features = rng.standard_normal((50, 5)).astype(np.float16).astype(np.float64)  # exact in every kind
    same = {"array": lambda: features, "float16 array": lambda: features.astype(np.float16),
            "tensor": lambda: torch.tensor(features), "columns first": lambda: np.asfortranarray(features),
            "list": lambda: features.tolist(), "with gradient": lambda: torch.tensor(features, requires_grad=True)}
    theirs = scipy.linalg.eigvalsh(np.cov(features.T, bias=True))[::-1]
    np.testing.assert_allclose(eigenspectrum(same[kind]()), theirs, rtol=0, atol=10 * ROUNDING)


@pytest.mark.parametrize("alpha", [0.3, 1.2])
def test_rankme_is_the_exponential_of_scipys_entropy(rng, alpha):
    spectrum = np.sort(power_law(300, alpha) * rng.exponential(size=300))[::-1]
    assert rankme(spectrum) == pytest.approx(np.exp(scipy.stats.entropy(spectrum)), rel=1e-12)
    assert rankme(torch.tensor(spectrum.copy())) == rankme(spectrum)
    with_zeros = np.concatenate([spectrum, np.zeros(100)])
    assert rankme(with_zeros) == pytest.approx(rankme(spectrum), rel=1e-12)


def test_singular_values_equal_scipys_and_are_not_centred(rng):
    features = rng.standard_normal((30, 12)) + 5
    np.testing.assert_allclose(singular_values(features), scipy.linalg.svdvals(features), rtol=1e-12)
    assert singular_values(features[:7]).shape == (7,)


@pytest.mark.parametrize("epsilon", [0, 1e-7, 1e-3])
def test_garridos_rankme_is_their_formula_written_out(rng, epsilon):
    values = singular_values(rng.standard_normal((200, 64)))
    p = [value / sum(values) + epsilon for value in values]
    assert singular_value_rankme(values, epsilon) == pytest.approx(np.exp(-sum(q * np.log(q) for q in p)), rel=1e-12)


def test_participation_ratio_and_stable_rank_and_variance_share_equal_the_direct_formulas(rng):
    features = gaussian(rng, 200, power_law(30, 0.8)) + 1
    spectrum, covariance = eigenspectrum(features), np.cov(features.T)
    centred = features - features.mean(0)
    ratio = np.trace(covariance) ** 2 / np.trace(covariance @ covariance)
    assert participation_ratio(spectrum) == pytest.approx(ratio, rel=1e-12)
    norms = np.linalg.norm(centred) ** 2 / np.linalg.norm(centred, 2) ** 2
    assert stable_rank(spectrum) == pytest.approx(norms, rel=1e-12)
    shares = PCA().fit(features).explained_variance_ratio_
    for k in (1, 10, 30):
        assert variance_share(spectrum, k) == pytest.approx(shares[:k].sum(), rel=1e-12)


# The fit


@pytest.mark.parametrize("ranks", [(12, 100), (1, 150), (40, 43), (1, 3)])
def test_the_fit_equals_numpys_weighted_polyfit_with_its_standard_error(rng, ranks):
    spectrum = np.sort(power_law(150, 1.1) * np.exp(0.2 * rng.standard_normal(150)))[::-1]
    i = np.arange(ranks[0], ranks[1] + 1)
    y = np.log(spectrum[i - 1])
    # polyfit multiplies residuals by w, so weights 1/i are w = sqrt(1/i)
    (slope, intercept), covariance = np.polyfit(np.log(i), y, 1, w=np.sqrt(1 / i), cov=True)
    fit = alpha_req(spectrum, ranks)
    # Normal equations against polyfit's own SVD: ten digits, fewer none
    assert fit.alpha == pytest.approx(-slope, rel=1e-9)
    assert fit.intercept == pytest.approx(intercept, rel=1e-9)
    assert fit.stderr == pytest.approx(np.sqrt(covariance[0, 0]), rel=1e-9)
    r2 = r2_score(y, intercept + slope * np.log(i), sample_weight=1 / i)
    assert fit.r2 == pytest.approx(r2, rel=1e-9)
    assert fit.ranks == ranks


def test_the_default_window_is_ranks_12_to_100_counted_from_one_both_ends_fitted():
    spectrum = power_law(150, 1)
    outside, first, last = spectrum.copy(), spectrum.copy(), spectrum.copy()
    outside[:11] *= 2
    outside[100:] /= 2
    first[:12] *= 2
    last[99:] /= 2
    assert alpha_req(outside) == alpha_req(spectrum)
    authors = np.arange(11, 100)  # their 0-based indices
    for changed in (first, last):
        slope = np.polyfit(np.log(authors + 1), np.log(changed[authors]), 1, w=np.sqrt(1 / (authors + 1)))[0]
        assert abs(slope + 1) > 1e-3  # an end left out would leave the slope at -1
        assert alpha_req(changed).alpha == pytest.approx(-slope, rel=1e-9)


def test_a_window_beyond_the_spectrum_is_an_error_that_says_how_much_there_is():
    with pytest.raises(ValueError, match=r"ranks 12\.\.100 .* has 50 eigenvalues"):
        alpha_req(power_law(50, 1))


def test_eigenvalues_of_rounding_do_not_count_as_spectrum(rng):
    spectrum = eigenspectrum(gaussian(rng, 60, power_law(120, 0.5)))
    with pytest.raises(ValueError, match="has 59 eigenvalues"):
        alpha_req(spectrum)
    assert alpha_req(spectrum, shorten=True).ranks == (12, 59)


def test_asked_to_shorten_the_fit_states_the_window_it_used():
    shortened = alpha_req(power_law(50, 1), shorten=True)
    assert shortened.ranks == (12, 50)
    assert shortened == alpha_req(power_law(50, 1), (12, 50))
    assert alpha_req(power_law(150, 1), shorten=True).ranks == (12, 100)


@pytest.mark.parametrize("width", [5, 12, 13])
def test_fewer_than_three_ranks_are_never_fitted(width):
    with pytest.raises(ValueError, match="at least three ranks"):
        alpha_req(power_law(width, 1), shorten=True)


@pytest.mark.parametrize("ranks", [(0, 50), (-3, 50), (50, 50), (60, 50), (12.5, 100)])
def test_a_window_that_is_none_is_refused(ranks):
    with pytest.raises(ValueError, match=r"1 <= first < last"):
        alpha_req(power_law(150, 1), ranks)


@pytest.mark.parametrize("ranks", [np.arange(11, 100), (12,), (12, 50, 100)])
def test_a_window_that_is_not_a_pair_is_refused_with_what_is_wanted(ranks):
    with pytest.raises(ValueError, match="ranks must be two"):  # the authors pass arange(11, 100)
        alpha_req(power_law(150, 1), ranks)


# Standard errors


def long_way(features, weights=None):
    """RankMe and alpha over ranks 2 to 7 by numpy and scipy alone, rows weighted."""
    spectrum = np.linalg.eigvalsh(np.cov(features.T, ddof=0, aweights=weights))[::-1]
    i = np.arange(2, 8)
    slope = np.polyfit(np.log(i), np.log(spectrum[i - 1]), 1, w=np.sqrt(1 / i))[0]
    return np.array([np.exp(scipy.stats.entropy(spectrum)), -slope])


@pytest.mark.parametrize("heavy", [False, True])
def test_standard_errors_are_the_jackknife_s_rankme_s_the_larger_of_two(rng, heavy):
    samples, step = 60, 1e-5
    features = gaussian(rng, samples, power_law(8, 0.5 if heavy else 1))
    if heavy:  # whole rows, as of a t distribution of 3 degrees of freedom
        features *= np.sqrt(1 / rng.chisquare(3, (samples, 1)))
    found = geometry(features, (2, 7))
    derivatives = []
    for row in range(samples):
        direction = np.eye(samples)[row] - 1 / samples
        ahead, behind = (long_way(features, 1 / samples + sign * step * direction) for sign in (1, -1))
        derivatives.append((ahead - behind) / (2 * step))
    expected = np.sqrt(np.square(derivatives).sum(0)) / samples
    left = np.array([long_way(np.delete(features, row, axis=0)) for row in range(samples)])
    deleted = np.sqrt((samples - 1) * left.var(0))
    assert (deleted[0] > expected[0]) != heavy
    expected[0] = max(expected[0], deleted[0])
    # Central differences: (step * samples)^2 = 4e-7 of truncation, 1e-15 / step = 1e-10 of rounding
    np.testing.assert_allclose([found.rankme_stderr, found.alpha_stderr], expected, rtol=1e-5)


@pytest.mark.parametrize("samples", [400, 2000])
def test_standard_errors_equal_the_spread_over_fresh_draws(rng, samples):
    draws = [geometry(gaussian(rng, samples, power_law(16, 1)), (2, 12)) for _ in range(300)]
    for value, stderr in (([g.rankme for g in draws], [g.rankme_stderr for g in draws]),
                          ([g.alpha.alpha for g in draws], [g.alpha_stderr for g in draws])):
        # A spread from 300 draws is itself known to 1 / sqrt(2 * 299) = 4 %: four of those
        assert np.mean(stderr) == pytest.approx(np.std(value, ddof=1), rel=0.16)


def test_geometry_reads_the_same_as_its_parts_and_its_intervals_are_1_96_standard_errors(rng):
    features = gaussian(rng, 400, power_law(120, 1))
    found = geometry(features)
    np.testing.assert_allclose(found.eigenvalues, eigenspectrum(features), rtol=0, atol=ROUNDING)
    assert found.samples == 400
    assert found.rankme == pytest.approx(rankme(eigenspectrum(features)), rel=1e-12)
    assert found.alpha.alpha == pytest.approx(alpha_req(eigenspectrum(features)).alpha, rel=1e-9)
    half = scipy.stats.norm.ppf(0.975)
    for interval, value, stderr in ((found.rankme_interval, found.rankme, found.rankme_stderr),
                                    (found.alpha_interval, found.alpha.alpha, found.alpha_stderr)):
        # 1.96 is the quantile rounded to three digits
        np.testing.assert_allclose(interval, (value - half * stderr, value + half * stderr), atol=1e-4 * stderr)


@pytest.mark.parametrize("options", [{"ranks": None}, {"shorten": True}])
def test_where_no_window_fits_geometry_measures_rankme_alone(rng, options):
    found = geometry(gaussian(rng, 100, power_law(13, 1)), **options)
    assert found.alpha is None and np.isnan(found.alpha_stderr) and np.isnan(found.alpha_interval).all()
    assert found.rankme > 1 and found.rankme_stderr > 0


# How few sequences it is about


def with_massive(rng, count, size, samples=800, width=24):
    """Features of which `count` have a massive coordinate, as the last token of some sequences has in middle layers."""
    features = rng.standard_normal((samples, width)) * np.arange(1, width + 1) ** -0.5
    features[rng.choice(samples, count, replace=False), 3] += size
    return features


@pytest.mark.parametrize(("count", "size"), [(0, 0), (1, 300), (5, 60), (40, 8)])
def test_influence_and_variance_of_sequences_equal_the_long_way(rng, count, size):
    features = with_massive(rng, count, size)
    found = geometry(features, (4, 20))
    samples, step = len(features), 1e-6
    derivatives = []
    for row in range(samples):  # more weight for one sequence, less for all others
        ends = [long_way(features, np.ones(samples) + sign * step * (np.arange(samples) == row))[0] for sign in (1, -1)]
        derivatives.append((ends[0] - ends[1]) / (2 * step))
    squares = np.square(derivatives)
    # central differences are right to 1e-6 of the largest derivative
    assert found.largest_influence == pytest.approx(squares.max() / squares.sum(), rel=1e-3)
    parts = np.sort(((features - features.mean(0)) ** 2).sum(1))[::-1]
    needed = next(k for k in range(1, samples + 1) if parts[:k].sum() >= parts.sum() / 2)
    assert found.half_variance == needed


@pytest.mark.parametrize(("count", "size", "few"), [(0, 0, False), (1, 300, True), (5, 60, True), (12, 60, True),
                                                    (1, 25, True), (80, 8, False)])
def test_a_geometry_says_when_it_is_that_of_a_few_sequences(rng, count, size, few):
    features = with_massive(rng, count, size)
    found, plain = geometry(features, (4, 20)), geometry(with_massive(np.random.default_rng(0), 0, 0), (4, 20))
    assert found.dominated == few
    if few:
        assert found.rankme < plain.rankme - 4 * plain.rankme_stderr  # what it warns of
        assert abs(found.alpha.alpha - plain.alpha.alpha) < 4 * plain.alpha_stderr  # and what stays


def clusters(rng, share, samples=500, width=32):
    """Two heaps 20 standard deviations apart, of which one holds this share of the sequences."""
    return rng.standard_normal((samples, width)) + 20 * (np.arange(samples)[:, None] < share * samples)


@pytest.mark.parametrize(("share", "few"), [(0.5, False), (0.1, False), (0.05, False), (0.01, True), (0.002, True)])
def test_a_kind_of_texts_apart_from_all_others_is_no_few_sequences_unless_it_is_rare(rng, share, few):
    assert geometry(clusters(rng, share), None).dominated == few


@pytest.mark.parametrize(("half", "influence", "samples", "stderr", "few"), [
    (150, 0.5, 2000, 0.01, False),  # one has the influence, on a RankMe that is well known all the same
    (150, 0.5, 2000, 0.05, True), (150, 0.05, 2000, 0.05, False),
    (150, 0.05, 2000, 0.2, True),  # nobody knows which they are, but the standard error knows that they are few
    (10, 0.05, 50, 0.2, False), (10, 0.05, 50, 0.5, True),  # of 50 alike it is 0.14 already
    (40, 0.05, 2000, 0.01, True), (41, 0.05, 2000, 0.01, False), (1, 0.05, 20, 0.01, True)])
def test_each_of_the_three_signs_by_itself(half, influence, samples, stderr, few):
    assert dominated(half, influence, samples, stderr) == few


def test_gaps_of_a_table_are_not_said_to_be_of_a_few():
    assert not dominated(np.full(2, np.nan), np.full(2, np.nan), np.full(2, np.nan), np.full(2, np.nan)).any()


@pytest.mark.parametrize("samples", [20, 100, 1000, 10_000])
def test_an_ordinary_sample_of_any_size_is_not_said_to_be_that_of_a_few(rng, samples):
    found = [geometry(gaussian(rng, samples, power_law(12, alpha)), None) for alpha in (0.5, 1, 2) for _ in range(30)]
    assert sum(each.dominated for each in found) == 0


def test_equal_parts_weigh_alike():
    corners = np.array([[x, y, z] for x in (-1.0, 1) for y in (-1.0, 1) for z in (-1.0, 1)])
    found = geometry(corners, None)
    assert found.half_variance == 4 and not found.dominated
    two = geometry(np.array([[0.0, 0.0], [1.0, 0.0]]), None)
    assert two.half_variance == 1 and two.largest_influence == 0.5


# Awkward inputs


@pytest.mark.parametrize("samples", [10, 3000])
@pytest.mark.parametrize("reading", [*READINGS, lambda s: singular_value_rankme(s, 0)])
def test_constant_features_have_a_spectrum_of_zeros_and_every_reading_says_so(samples, reading):
    spectrum = eigenspectrum(np.full((samples, 120), 0.1))
    assert (spectrum == 0).all()
    with pytest.raises(ValueError, match="do not vary"):
        reading(spectrum)


@pytest.mark.parametrize("options", [{}, {"shorten": True}, {"ranks": None}])
def test_geometry_of_constant_features_says_that_they_do_not_vary(options):
    with pytest.raises(ValueError, match="do not vary"):  # no other ranks would help
        geometry(np.full((300, 120), 0.1), **options)


@pytest.mark.parametrize("measure", [eigenspectrum, geometry, singular_values])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("container", [np.asarray, torch.tensor])
def test_nan_and_infinity_are_named_by_row(rng, measure, bad, container):
    features = rng.standard_normal((30, 4))
    features[[17, 23], 2] = bad
    with pytest.raises(ValueError, match="in 2 of 30 rows, the first is row 17"):
        measure(container(features))


@pytest.mark.parametrize("measure", [eigenspectrum, geometry, singular_values])
@pytest.mark.parametrize(("features", "error", "says"), [
    pytest.param(np.ones((5, 3), dtype=int), TypeError, "floating point.*int64", id="integers"),
    pytest.param(torch.ones(5, 3, dtype=torch.int32), TypeError, "floating point.*int32", id="integer tensor"),
    pytest.param(np.ones((5, 3), dtype=bool), TypeError, "floating point.*bool", id="booleans"),
    pytest.param(np.ones((5, 3), dtype=complex), TypeError, "floating point.*complex", id="complex"),
    pytest.param(np.ones(5), ValueError, r"\(sequences, width\), got \(5,\)", id="one dimension"),
    pytest.param(np.ones((2, 5, 3)), ValueError, r"got \(2, 5, 3\)", id="three dimensions"),
    pytest.param(np.ones((1, 3)), ValueError, r"at least 2 sequences.*\(1, 3\)", id="one row"),
    pytest.param(np.ones((0, 3)), ValueError, r"at least 2 sequences.*\(0, 3\)", id="no row"),
    pytest.param(np.ones((5, 0)), ValueError, r"1 dimension, got \(5, 0\)", id="no dimension"),
])
def test_features_of_the_wrong_kind_are_refused_by_what_arrived(measure, features, error, says):
    with pytest.raises(error, match=says):
        measure(features)


@pytest.mark.parametrize("reading", [*READINGS, alpha_req, singular_value_rankme])
@pytest.mark.parametrize(("values", "says"), [
    ([], "shape"), ([[2.0, 1.0]], "shape"), ([np.nan, 1.0], "NaN"), ([np.inf, 1.0], "infinity"),
    ([1.0, -0.5], "negative"), ([1.0, 2.0], "descending"),
])
def test_values_that_are_no_spectrum_are_refused(reading, values, says):
    with pytest.raises(ValueError, match=says):
        reading(values)


@pytest.mark.parametrize("k", [0, -1, 4])
def test_a_share_of_more_or_fewer_directions_than_there_are_is_refused(k):
    with pytest.raises(ValueError, match=r"1\.\.3"):
        variance_share([3.0, 2.0, 1.0], k)


@pytest.mark.parametrize("samples", [300, 60])
@pytest.mark.parametrize("container", [np.array, torch.tensor])
def test_no_function_changes_its_features(rng, samples, container):
    original = gaussian(rng, samples, power_law(120, 1)) + 1
    features = container(original)
    for measure in (eigenspectrum, singular_values, lambda f: geometry(f, shorten=True)):
        measure(features)
    assert np.array_equal(np.asarray(features), original)


@pytest.mark.parametrize("container", [np.array, torch.tensor])
def test_no_function_changes_its_eigenvalues(container):
    values = container(power_law(150, 1))
    for reading in (*READINGS, alpha_req, singular_value_rankme):
        reading(values)
    assert np.array_equal(np.asarray(values), power_law(150, 1))


@pytest.mark.parametrize("container", [list, tuple, np.array])
def test_ranks_are_left_as_they_are_so_that_a_second_call_fits_the_same_window(rng, container):
    ranks = container([12, 100])
    first = alpha_req(power_law(150, 1), ranks)
    geometry(gaussian(rng, 300, power_law(120, 1)), ranks)
    assert list(ranks) == [12, 100]
    assert alpha_req(power_law(150, 1), ranks) == first and first.ranks == (12, 100)


def test_a_read_only_array_is_read_without_a_warning(rng):
    features = rng.standard_normal((50, 5))
    features.flags.writeable = False  # as a memory map or a table's column gives it
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        eigenspectrum(features)

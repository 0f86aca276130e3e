"""Standard errors told from a part of the rows.

Trusted: the same influences of all rows, written out with numpy in float64; the delete-one jackknife; the spread over
fresh draws. Most tests make "wide" mean 32 and lead with 8 directions, so that they take little time; the constants are
otherwise those in use.
"""

import numpy as np
import pytest
import scipy.stats
import torch

from reptrace.measures import influences, moments
from reptrace.measures.spectra import decompose, geometry, rankme

MANY = 4000  # rows, of which fewer than half are measured whole


@pytest.fixture
def narrow(monkeypatch):
    """32 is wide."""
    monkeypatch.setattr(moments, "WIDE", 32)
    monkeypatch.setattr(influences, "LEADING", 8)


def gaussian(rng, samples, width, alpha=1.0):
    return (rng.standard_normal((samples, width)) * np.arange(1, width + 1) ** (-alpha / 2)).astype(np.float32)


def slope(spectrum, ranks):
    i = np.arange(ranks[0], ranks[1] + 1)
    return -np.polyfit(np.log(i), np.log(spectrum[i - 1]), 1, w=np.sqrt(1 / i))[0]


def of_all_rows(features, ranks):
    """Influences on RankMe and alpha, shape (M, 2), in float64."""
    centred = features.astype(float) - features.mean(0, dtype=float)
    s, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    s, vectors = s[::-1], vectors[:, ::-1]
    p = s / s.sum()
    slopes = np.zeros((len(s), 2))
    slopes[:, 0] = -rankme(s) * (np.log(p) - p @ np.log(p)) / s.sum()
    for i in range(ranks[0] - 1, ranks[1]):  # alpha is linear in ln s
        slopes[i, 1] = slope(np.exp(np.eye(len(s))[i]), ranks) / s[i]
    return (np.square(centred @ vectors) - s) @ slopes


def delete_one(features):
    """RankMe's delete-one jackknife, from a spectrum a row."""
    centred = features.astype(float) - features.mean(0, dtype=float)
    samples = len(centred)
    outer = centred.T @ centred - centred[:, :, None] * centred[:, None] * samples / (samples - 1)
    left = scipy.stats.entropy(np.linalg.eigvalsh(outer).clip(0), axis=1)
    return np.sqrt((samples - 1) * np.exp(left).var())


def check(features, ranks, within, deleted=None):
    """Against all rows: RankMe's error within a share, alpha's to the rounding of float32."""
    found, all_rows = geometry(features, ranks), of_all_rows(features, ranks)
    rankme_stderr, alpha_stderr = np.sqrt(np.square(all_rows).sum(0)) / len(features)
    rankme_stderr = max(rankme_stderr, delete_one(features) if deleted is None else deleted)
    assert found.rankme_stderr == pytest.approx(rankme_stderr, rel=within)
    assert found.alpha_stderr == pytest.approx(alpha_stderr, rel=1e-4)  # squares of a coordinate: 1e-6, and sums
    squares = np.square(all_rows[:, 0])
    return found, squares.max() / squares.sum()


@pytest.mark.parametrize(("alpha", "within"), [(0.5, 0.015), (1, 0.003), (2, 0.001)])
def test_a_part_of_the_rows_tells_the_error_of_all_at_full_width(rng, alpha, within):
    # Four times the scatter over draws of the part, measured: 0.35 %, 0.04 % and 0.001 %
    features = gaussian(rng, MANY, 1024, alpha)
    found, largest = check(features, (12, 100), within, deleted=0)  # of normal rows it is the smaller one
    assert found.largest_influence == pytest.approx(largest, rel=3 * within)
    parts = np.sort(np.square(features - features.mean(0)).sum(1, dtype=float))[::-1]
    assert abs(found.half_variance - np.searchsorted(parts.cumsum(), parts.sum() / 2) - 1) <= 1  # rounding at the edge


def test_where_the_leading_directions_tell_nothing_the_part_drawn_at_random_does(rng, narrow):
    features = gaussian(rng, MANY, 256, 0)
    found = geometry(features, (2, 7)).rankme_stderr
    all_rows = of_all_rows(features, (2, 7))[:, 0]
    known = np.sqrt(np.square(all_rows).sum()) / MANY
    # 2.2 % by theory where guesses are worth nothing, three of those; the guesses by themselves are far off
    assert found == pytest.approx(known, rel=0.066)
    one_draw = abs(found / known - 1)
    assert one_draw > 1e-6  # positive control: not all rows were measured


@pytest.mark.parametrize("heaps", [False, True])
def test_the_part_of_the_rows_agrees_with_the_delete_one_jackknife_on_all(rng, narrow, heaps):
    features = gaussian(rng, MANY, 32)
    if heaps:  # in which the two differ
        features[:, :16] = np.where(rng.random((MANY, 1)) < 0.1, 3, 0.3) * np.sign(features[:, :16])
    read = decompose(features, None)
    found = influences.influences(torch.from_numpy(features), read.mean, read.vectors, read.eigenvalues, read.gradients)
    first_order, deleted = np.sqrt([found.squares[0] / MANY**2, found.deleted / MANY / (MANY - 1)])
    # Three times 0.8 %, the scatter over draws of the part, measured
    assert deleted == pytest.approx(delete_one(features), rel=0.024)
    assert (abs(first_order / deleted - 1) > 0.05) == heaps


def test_the_part_of_the_rows_gives_the_spread_over_fresh_draws(rng, narrow):
    draws = [geometry(gaussian(rng, MANY, 32), (2, 12)) for _ in range(150)]
    for value, stderr in (([g.rankme for g in draws], [g.rankme_stderr for g in draws]),
                          ([g.alpha.alpha for g in draws], [g.alpha_stderr for g in draws])):
        # A spread from 150 draws is itself known to 1 / sqrt(2 * 149) = 5.8 %: three of those
        assert np.mean(stderr) == pytest.approx(np.std(value, ddof=1), rel=0.175)


@pytest.mark.parametrize("direction", [0, 5, 20, 31])
@pytest.mark.parametrize("size", [10, 60])
def test_an_outlier_in_any_row_and_direction_is_found(rng, narrow, direction, size):
    for row in (0, 1234, MANY - 1):
        features = gaussian(rng, MANY, 32)
        features[row, direction] = size
        found, largest = check(features, (2, 12), 0.01)
        assert found.largest_influence == pytest.approx(largest, rel=0.02)
        assert found.dominated == (size == 60)


def test_an_outlier_nearer_to_the_mean_than_many_is_found(rng, narrow):
    features = gaussian(rng, MANY, 32)
    features[:, 0] = 1000 * np.sign(rng.standard_normal(MANY)) * rng.uniform(0.9, 1.1, MANY)
    features[1234] = 0
    features[1234, 3] = 700
    found, largest = check(features, (2, 7), 0.01)
    assert largest > 0.1 and found.largest_influence == pytest.approx(largest, rel=0.02)


def test_an_outlier_is_found_where_its_influence_cannot_be_guessed(rng):
    """Slopes beyond the leading directions that cancel; of one far row they do not."""
    features = torch.as_tensor(gaussian(rng, MANY, 1024, 0))
    features[1234, 1000] = 50
    slopes = np.zeros((1024, 2))
    slopes[influences.LEADING :, 0] = np.resize([1, -1], 1024 - influences.LEADING)
    found = influences.influences(features, torch.zeros(1024).double(), torch.eye(1024).double(), np.ones(1024), slopes)
    expected = np.square((np.square(features.numpy().astype(float)) - 1) @ slopes[:, 0])
    assert expected.argmax() == 1234
    assert found.largest == pytest.approx(expected.max(), rel=1e-5)  # float32


def test_one_error_comes_of_one_matrix_and_the_randomness_of_others_is_left_alone(rng, narrow):
    features = gaussian(rng, MANY, 32, 0)
    np.random.seed(3)
    first = geometry(features, None).rankme_stderr
    assert np.random.random() == np.random.RandomState(3).random()
    assert geometry(features, None).rankme_stderr == first
    assert geometry(rng.permutation(features), None).rankme_stderr == pytest.approx(first, rel=0.1)  # another part


@pytest.mark.parametrize(("samples", "dtype"), [(3072, np.float32), (MANY, np.float64)])
def test_of_few_rows_and_of_float64_all_are_measured(rng, narrow, samples, dtype):
    features = gaussian(rng, samples, 64, 0).astype(dtype)
    expected = np.sqrt(np.square(of_all_rows(features, (2, 7))).sum(0)) / samples
    expected[0] = max(expected[0], delete_one(features))
    found = geometry(features, (2, 7))
    # float32: rounding 1e-7 of coordinates; a part of the rows would be off by a percent
    np.testing.assert_allclose([found.rankme_stderr, found.alpha_stderr], expected, rtol=1e-4)

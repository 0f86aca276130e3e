"""RankMe and alpha without centring, and of singular values.

Trusted: `geometry`, tested elsewhere, for the choices that it knows; numpy's singular values and scipy's entropy for
the others; numeric derivatives by the weight of each row for the infinitesimal jackknife.
"""

import numpy as np
import pytest
import scipy.stats
import torch

from reptrace.measures.spectra import geometry, singular_value_rankme, singular_values
from reptrace.measures.variants import variant

RANKS = (2, 6)


@pytest.fixture
def features(rng):
    """120 rows of 8 dimensions, with a mean as large as their spread."""
    return torch.from_numpy(rng.standard_normal((120, 8)) * np.arange(1, 9) ** -0.5 + np.linspace(0, 1, 8))


def long_way(rows: np.ndarray, weights: np.ndarray, centred: bool, singular: bool) -> np.ndarray:
    """RankMe and alpha of weighted rows, from numpy's singular values; the weights add up to 1."""
    scaled = (rows - weights @ rows * centred) * np.sqrt(weights)[:, None]
    values = np.linalg.svd(scaled, compute_uv=False)
    values = values if singular else values**2
    i = np.arange(RANKS[0], RANKS[1] + 1)
    slope = np.polyfit(np.log(i), np.log(values[RANKS[0] - 1 : RANKS[1]]), 1, w=i**-0.5)[0]  # squared: 1/i
    return np.array([np.exp(scipy.stats.entropy(values)), -slope])


@pytest.mark.parametrize(("centred", "singular"), [(True, True), (False, True), (False, False)])
def test_values_are_numpy_s_and_errors_those_of_derivatives_by_the_rows_weights(features, centred, singular):
    found, rows, step = variant(features, RANKS, centred, singular), features.numpy(), 1e-6
    equal = np.full(len(rows), 1 / len(rows))
    value = long_way(rows, equal, centred, singular)
    assert (found.rankme, found.alpha) == pytest.approx(tuple(value), rel=1e-10)
    more = [long_way(rows, equal * (1 - step) + step * (np.arange(len(rows)) == k), centred, singular)
            for k in range(len(rows))]
    errors = np.sqrt(np.square((np.array(more) - value) / step).sum(0)) / len(rows)
    assert (found.rankme_stderr, found.alpha_stderr) == pytest.approx(tuple(errors), rel=1e-3)  # of the step


def test_the_paper_s_choice_is_that_of_geometry(features):
    found, known = variant(features, RANKS), geometry(features, RANKS)
    assert (found.rankme, found.rankme_stderr, found.alpha, found.alpha_stderr) == pytest.approx(
        (known.rankme, known.rankme_stderr, known.alpha.alpha, known.alpha_stderr), rel=1e-10)


def test_garrido_s_choice_is_their_rankme(features):
    found = variant(features, RANKS, centred=False, singular=True).rankme
    assert found == pytest.approx(singular_value_rankme(singular_values(features)), rel=1e-5)  # their epsilon


@pytest.mark.parametrize("singular", [True, False])
def test_directions_without_variance_count_for_nothing_and_few_rows_leave_alpha_out(rng, singular):
    features = torch.from_numpy(np.pad(rng.standard_normal((50, 3)), ((0, 0), (0, 5))))
    found = variant(features, RANKS, singular=singular)
    assert 1 < found.rankme <= 3 and np.isfinite(found.rankme_stderr)
    assert np.isnan(variant(features, (3, 6), singular=singular).alpha)

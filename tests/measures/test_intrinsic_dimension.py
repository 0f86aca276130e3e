"""TwoNN. Trusted: scikit-learn's nearest neighbours and linear regression for the paper's fit; the dimension of
manifolds that were planted; the scatter over draws for the standard error; scipy's Kolmogorov-Smirnov distance."""

import numpy as np
import pytest
import torch
from scipy.stats import kstest, ortho_group
from sklearn.linear_model import LinearRegression
from sklearn.neighbors import NearestNeighbors

from reptrace.measures.intrinsic_dimension import NEIGHBOURS, intrinsic_dimension, nearest

RNG = np.random.default_rng(0)


def planted(dimension, count=500, width=12, rng=RNG):
    """Uniform on a flat cube of this dimension, turned into a wider space."""
    return rng.uniform(size=(count, dimension)) @ ortho_group.rvs(width, random_state=1)[:dimension] + 100


def by_scikit_learn(features):
    """Facco et al., section "The TWO-NN algorithm", step by step."""
    distances = NearestNeighbors(n_neighbors=3, algorithm="kd_tree").fit(features).kneighbors()[0]
    mu = np.sort(distances[:, 1] / distances[:, 0])
    count, kept = len(mu), int(0.9 * len(mu))
    x, y = np.log(mu)[:kept, None], -np.log(1 - np.arange(1, kept + 1) / count)
    dimension = LinearRegression(fit_intercept=False).fit(x, y).coef_[0]
    return dimension, kstest(np.log(mu), "expon", args=(0, 1 / dimension)).statistic


def test_neighbours_are_scikit_learn_s():
    features = planted(4)
    distances, numbers = NearestNeighbors(n_neighbors=NEIGHBOURS, algorithm="kd_tree").fit(features).kneighbors()
    near, found = nearest(torch.tensor(features))
    np.testing.assert_allclose(found, distances, rtol=1e-9)
    np.testing.assert_array_equal(near, numbers)


@pytest.mark.parametrize("dimension", [1, 3, 6])
def test_the_fit_is_the_paper_s_and_finds_the_planted_dimension(dimension):
    features = planted(dimension)
    found = intrinsic_dimension(torch.tensor(features))
    expected, misfit = by_scikit_learn(features)
    assert found["intrinsic_dimension"] == pytest.approx(expected, rel=1e-9)
    assert found["intrinsic_dimension_misfit"] == pytest.approx(misfit, rel=1e-7)
    # edges of the cube draw it down by about 5 % in 6 dimensions
    assert found["intrinsic_dimension"] == pytest.approx(dimension, abs=4 * found["intrinsic_dimension_stderr"]
                                                         + 0.05 * dimension)
    assert found["intrinsic_dimension_doubt"] == "" and found["intrinsic_dimension_duplicates"] == 0


def test_the_standard_error_is_the_scatter_over_draws():
    rng = np.random.default_rng(1)
    found = [intrinsic_dimension(torch.tensor(planted(3, 300, rng=rng))) for _ in range(40)]
    scatter = np.std([each["intrinsic_dimension"] for each in found], ddof=1)
    stderr = np.sqrt(np.mean([each["intrinsic_dimension_stderr"] ** 2 for each in found]))
    assert stderr == pytest.approx(scatter, rel=0.4)  # scatter of 40 draws is off by 11 %, the error by a tenth


def test_a_doubt_names_what_fails():
    features = planted(3)
    twice = intrinsic_dimension(torch.tensor(np.concatenate([features[:250], features[:250]])))
    assert twice["intrinsic_dimension_duplicates"] == 1 and "duplicates" in twice["intrinsic_dimension_doubt"]
    thick = np.pad(planted(1, 2000), ((0, 0), (0, 3)))  # a line in fine noise: of one dimension from afar alone
    thick += RNG.normal(size=thick.shape) * 5e-4
    assert "scale" in intrinsic_dimension(torch.tensor(thick))["intrinsic_dimension_doubt"]
    # pairs of near copies far from all others: their ratios follow no power law
    pairs = np.repeat(planted(3, 250), 2, axis=0) + RNG.normal(size=(500, 12)) * 1e-6
    assert "fit" in intrinsic_dimension(torch.tensor(pairs))["intrinsic_dimension_doubt"]


def test_it_takes_as_many_points_as_stated_and_no_direction_that_does_not_vary(monkeypatch):
    features = planted(3)
    monkeypatch.setattr("reptrace.measures.intrinsic_dimension.POINTS", 200)
    some = intrinsic_dimension(torch.tensor(features))
    assert some == intrinsic_dimension(torch.tensor(features[:200]))


def test_where_nearly_all_are_next_to_a_few_there_is_no_standard_error():
    rng = np.random.default_rng(0)
    far = rng.normal(size=(400, 200)) * rng.random((400, 1)) ** 2  # those in the middle are all others' nearest
    found = intrinsic_dimension(torch.tensor(far))
    assert found["intrinsic_dimension"] > 20 and np.isnan(found["intrinsic_dimension_stderr"])

"""RankMe without one of the sequences.

Trusted: numpy's eigenvalues and scipy's entropy of the rows that are left, each left out in turn.
"""

import numpy as np
import pytest
import scipy.stats
import torch

from reptrace.measures.deletions import rankme_without


def found(rows):
    centred = rows - rows.mean(0)
    s, vectors = np.linalg.eigh(centred.T @ centred / len(rows))
    z_squares = torch.from_numpy(np.square((centred @ vectors[:, ::-1]).astype(float)))
    return rankme_without(z_squares, s[::-1].clip(0).astype(float), len(rows)).numpy()


def long_way(rows):
    left = (np.delete(rows, row, axis=0) for row in range(len(rows)))
    return np.array([np.exp(scipy.stats.entropy(np.linalg.eigvalsh(np.cov(each.T)).clip(0))) for each in left])


def check(rows, dtype=float):
    known = long_way(rows)
    # The rule's error falls as exp(-2 pi^2 / 1.25) = 1e-7 of a change; as seen, 2e-4 of the spread in the steepest
    np.testing.assert_allclose(found(rows.astype(dtype)), known, rtol=0, atol=1e-3 * known.std())


@pytest.mark.parametrize("alpha", [0, 0.5, 2, 4])
@pytest.mark.parametrize("samples", [4, 10, 20, 21, 22, 40, 200])  # width 20
def test_it_is_that_of_the_rows_that_are_left(rng, samples, alpha):
    check(rng.standard_normal((samples, 20)) * np.arange(1.0, 21) ** (-alpha / 2))


@pytest.mark.parametrize("size", [30, 3000, 3e5])
def test_one_row_may_have_all_of_the_variance(rng, size):
    rows = rng.standard_normal((50, 20))
    rows[17, 3] = size
    check(rows)
    assert found(rows)[17] > 2 * np.delete(found(rows), 17).max()


def test_rows_may_come_in_heaps_and_directions_may_be_missing(rng):
    rows = rng.standard_normal((8, 20))[rng.integers(8, size=60)] + 1e-3 * rng.standard_normal((60, 20))
    check(rows)
    rows[:, 5:9] = rows[:, :4]  # no variance in the differences
    check(rows)


def test_a_row_may_lie_at_the_mean(rng):
    half = rng.integers(-9, 10, (15, 8)).astype(float)  # whole numbers: their mean is exactly zero
    check(np.concatenate([half, -half, np.zeros((1, 8))]))


@pytest.mark.parametrize("alpha", [1, 8])
def test_products_in_float32_will_do(rng, alpha):
    """Eigenvalues beyond the rank, or far below 1e-7 of the largest, are then rounding, and so are coordinates."""
    check(rng.standard_normal((30, 60)) * np.arange(1.0, 61) ** (-alpha / 2), np.float32)


def test_scale_and_place_do_not_matter(rng):
    rows = rng.standard_normal((30, 12))
    np.testing.assert_allclose(found(1e-4 * rows + 1), found(rows), rtol=1e-9)  # rounding, of 1e-12


def test_where_the_others_do_not_vary_it_is_one():
    rows = np.zeros((6, 4))
    rows[2] = 1, 2, 3, 4
    np.testing.assert_allclose(found(rows), [1, 1, 1, 1, 1, 1], rtol=1e-5)  # of one direction, or of none

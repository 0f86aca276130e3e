"""CKA of two feature matrices. Trusted: Song et al.'s sums over M x M kernels, in numpy; the mean over all quadruples
of rows that defines the unbiased estimator; the textbook's delete-one jackknife; and what holds of CKA by definition.
"""

from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.stats import ortho_group
from test_anisotropy import delete_one

from reptrace.measures.cka import Kernel, cka, linear_cka
from reptrace.measures.measure import REGISTRY

RNG = np.random.default_rng(0)
FIRST = RNG.normal(size=(30, 5)) * [4, 2, 1, 1, 1] + 3
SECOND = FIRST[:, :3] @ RNG.normal(size=(3, 7)) + RNG.normal(size=(30, 7))


def hsic(x, y):
    """Equation 5 of Song et al. 2012, as it is printed."""
    k, q = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(q, 0)
    m, one = len(k), np.ones(len(k))
    return (np.trace(k @ q) + one @ k @ one * (one @ q @ one) / (m - 1) / (m - 2)
            - 2 / (m - 2) * one @ k @ q @ one) / (m * (m - 3))


def by_kernels(x, y):
    return hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))


def test_cka_is_that_of_the_kernels_and_its_error_that_of_leaving_one_out():
    value, stderr = linear_cka(torch.tensor(FIRST), torch.tensor(SECOND))
    assert 0.3 < value < 0.99 and value == pytest.approx(by_kernels(FIRST, SECOND), rel=1e-10)
    assert stderr == pytest.approx(delete_one(by_kernels, [FIRST, SECOND]), rel=1e-8)


def test_hsic_is_the_mean_over_quadruples_that_defines_it():
    x, y = FIRST[:7], SECOND[:7]
    k, q = x @ x.T, y @ y.T
    each = [k[i, j] * (q[i, j] + q[r, s] - 2 * q[i, r]) for i, j, r, s in permutations(range(7), 4)]
    assert hsic(x, y) == pytest.approx(np.mean(each), rel=1e-9)
    assert float(Kernel.of(torch.tensor(x)).own[0]) == pytest.approx(hsic(x, x), rel=1e-9)


def test_it_sees_neither_a_rotation_nor_a_scale_nor_a_shift_and_is_near_none_where_nothing_is_shared():
    turned = FIRST @ ortho_group.rvs(5, random_state=0) * 7 - 2
    assert linear_cka(torch.tensor(FIRST), torch.tensor(turned)) == pytest.approx((1, 0), abs=1e-9)
    found = np.array([linear_cka(*torch.tensor(RNG.normal(size=(2, 60, 40)))) for _ in range(100)])
    assert abs(found[:, 0].mean()) < 4 * found[:, 0].std() / 10  # the biased estimator has 0.4 here
    # where nothing is shared a jackknife's variance is twice too large (Efron & Stein 1981); scatter of 100 draws
    assert found[:, 1].mean() / 2**0.5 == pytest.approx(found[:, 0].std(), rel=0.25)


def test_the_standard_error_is_the_scatter_over_draws_where_something_is_shared():
    mixing = RNG.normal(size=(6, 6))
    drawn = [RNG.normal(size=(2, 80, 6)) for _ in range(100)]
    found = np.array([linear_cka(torch.tensor(x), torch.tensor(x @ mixing + 2 * noise)) for x, noise in drawn])
    assert found[:, 1].mean() == pytest.approx(found[:, 0].std(), rel=0.25)  # the scatter is off by 7 %


def test_float32_of_a_wide_layer_agrees_with_float64():
    wide = RNG.normal(size=(300, 1024)) / np.arange(1, 1025) + 5
    other = wide + RNG.normal(size=wide.shape) / 50
    found = linear_cka(torch.tensor(wide, dtype=torch.float32), torch.tensor(other, dtype=torch.float32))
    assert found == pytest.approx(linear_cka(torch.tensor(wide), torch.tensor(other)), rel=1e-3)


def test_one_massive_sequence_takes_it_to_nearly_nothing_and_the_error_says_so():
    rng = np.random.default_rng(5)
    first = rng.normal(size=(300, 8)) * np.linspace(3, 0.5, 8)
    second = first + rng.normal(size=first.shape)
    spoilt = second * np.where(np.arange(300) == 7, 1000, 1)[:, None]
    whole, one = by_kernels(first, second), by_kernels(first, spoilt)
    assert whole > 0.75 and abs(one) < whole / 5  # what is left is of the order of one row's share, 1 / sqrt(M)
    assert by_kernels(first[8:], spoilt[8:]) == pytest.approx(whole, rel=0.02)
    value, stderr = linear_cka(torch.tensor(first), torch.tensor(spoilt))
    # the massive row's square, 1e6 times the others', is subtracted from sums of the kernel: six digits are lost
    assert value == pytest.approx(one, rel=1e-6) and stderr > abs(value)


def test_the_columns_are_those_of_the_references_and_a_missing_one_is_nan():
    own, other = torch.tensor(FIRST), torch.tensor(SECOND)
    found = cka(own, first=other, last=own, previous=None)
    assert set(found) == set(REGISTRY["cka"].returned)
    assert (found["cka_first"], found["cka_first_stderr"]) == linear_cka(own, other)
    assert found["cka_last"] == pytest.approx(1)
    assert np.isnan([found["cka_previous"], found["cka_previous_stderr"]]).all()
    with pytest.raises(ValueError, match="the same sequences of both, in one order: got 30 rows, and 29 of last"):
        cka(own, first=own, last=other[1:], previous=None)

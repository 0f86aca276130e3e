"""Streaming moments.

Trusted: `numpy.cov(bias=True)`, which sees all vectors at once and centres them first, and exact rational arithmetic
(`fractions`) where the offset is so large that a careless formula loses every digit. Where the inputs are of a shorter
dtype, the oracle gets the same rounded values in float64, so the comparison stays one of exact algebra.
"""

from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
import torch

from reptrace.measures.moments import Moments

# Exact algebra in float64: sums of a few thousand terms of order one keep 12 digits and more.
EXACT = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture
def vectors(rng):
    """5,000 correlated vectors with a mean: more than two of the blocks that an update is worked through in."""
    return rng.standard_normal((5000, 6)) @ rng.standard_normal((6, 6)) + rng.standard_normal(6)


def seen(*batches, width=6):
    moments = Moments(width)
    for batch in batches:
        moments.update(torch.tensor(batch))
    return moments


def check(moments, vectors):
    assert moments.count == len(vectors)
    np.testing.assert_allclose(moments.mean, vectors.mean(0), **EXACT)
    np.testing.assert_allclose(moments.covariance(), np.cov(vectors.T, bias=True), **EXACT)


@pytest.mark.parametrize("batch_size", [1, 7, 2048, 2049, 5000])
def test_streaming_in_batches_of_any_size_equals_the_one_shot_covariance(vectors, batch_size):
    vectors = vectors[:300] if batch_size == 1 else vectors
    check(seen(*np.split(vectors, range(batch_size, len(vectors), batch_size))), vectors)


def test_merging_in_any_order_equals_the_one_shot_covariance(vectors):
    pieces = np.split(vectors, [3, 100, 2500])
    for order in permutations(range(4)):
        merged = Moments(6)
        for k in order:
            merged.merge(seen(pieces[k]))
        check(merged, vectors)


def test_merging_as_a_tree_equals_merging_in_a_row(vectors):
    a, b, c, d = (seen(piece) for piece in np.split(vectors, [3, 100, 2500]))
    check(a.merge(b).merge(c.merge(d)), vectors)


def test_an_empty_accumulator_adds_nothing(vectors):
    check(seen(vectors).merge(Moments(6)), vectors)
    assert Moments(6).merge(Moments(6)).count == 0


def test_merging_into_an_empty_accumulator_copies_without_sharing(vectors):
    other = seen(vectors)
    copied = Moments(6).merge(other)
    check(copied, vectors)
    copied.update(torch.ones(10, 6, dtype=torch.float64))
    check(other, vectors)


def test_merge_leaves_the_other_accumulator_as_it_is(vectors):
    other = seen(vectors[:10])
    seen(vectors[10:]).merge(other)
    check(other, vectors[:10])


def test_merging_an_accumulator_with_itself_counts_every_vector_twice(vectors):
    moments = seen(vectors)
    check(moments.merge(moments), np.concatenate([vectors, vectors]))


def test_empty_batches_change_nothing(vectors):
    check(seen(vectors[:0], vectors, vectors[:0]), vectors)


@pytest.mark.parametrize("batch_size", [64, 9])
def test_a_large_offset_costs_no_digits_of_the_covariance(rng, batch_size):
    vectors = 1e8 + rng.standard_normal((64, 2))
    exact = [[Fraction(x) for x in column] for column in vectors.T]
    means = [sum(column) / len(column) for column in exact]
    covariance = [[float(sum((x - means[i]) * (y - means[j]) for x, y in zip(exact[i], exact[j], strict=True)) / 64)
                   for j in range(2)] for i in range(2)]
    found = seen(*np.split(vectors, range(batch_size, 64, batch_size)), width=2).covariance()
    # One batch is shifted by its own first row, which is exact; between batches the means meet, and a float64 mean near
    # 1e8 is rounded at 1.5e-8.
    np.testing.assert_allclose(found, covariance, rtol=0, atol=1e-13 if batch_size == 64 else 1e-7)
    # Positive control: the textbook formula E[xx] - mean mean^T has lost all of it here.
    naive = vectors.T @ vectors / 64 - np.outer(vectors.mean(0), vectors.mean(0))
    assert np.abs(naive - covariance).max() > 0.1


def test_vectors_that_do_not_vary_have_a_covariance_of_exactly_zero():
    moments = seen(np.full((5000, 6), 0.1), np.full((3, 6), 0.1))
    assert (moments.covariance() == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_shorter_dtypes_are_summed_in_float64(vectors, dtype):
    rounded = torch.tensor(vectors).to(dtype)
    moments = Moments(6).update(rounded[:100]).update(rounded[100:])
    assert moments.covariance().dtype == moments.mean.dtype == torch.float64
    check(moments, rounded.double().numpy())


@pytest.mark.parametrize("rows", [1, 50])
def test_update_leaves_the_batch_as_it_is(vectors, rows):
    batch = torch.tensor(vectors[:rows])
    before = batch.clone()
    Moments(6).update(batch)
    assert torch.equal(batch, before)


def test_no_graph_of_the_batches_is_kept(vectors):
    batch = torch.tensor(vectors[:50], requires_grad=True)
    moments = Moments(6).update(batch).update(batch)
    # A graph would hold on to every batch that ever passed: memory O(N d) instead of O(d^2).
    assert not moments.mean.requires_grad and not moments.comoment.requires_grad


@pytest.mark.parametrize("batch", [torch.zeros(3, 5), torch.zeros(6), torch.zeros(2, 3, 6)])
def test_a_batch_of_another_shape_is_refused_by_its_shape(batch):
    with pytest.raises(ValueError, match=r"expected a batch of shape \(n, 6\), got"):
        Moments(6).update(batch)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_vectors_that_are_not_floating_point_are_refused(dtype):
    with pytest.raises(TypeError, match="floating-point"):
        Moments(6).update(torch.zeros(3, 6, dtype=dtype))


def test_moments_of_another_width_are_not_merged():
    with pytest.raises(ValueError, match="width 5 into width 6"):
        Moments(6).merge(Moments(5))


@pytest.mark.parametrize("count", [0, 1])
def test_a_covariance_of_fewer_than_two_vectors_is_refused(vectors, count):
    with pytest.raises(ValueError, match=f"at least 2 vectors, got {count}"):
        seen(vectors[:count]).covariance()


@pytest.mark.parametrize("width", [0, -3, 2.5])
def test_a_width_that_is_not_a_positive_integer_is_refused(width):
    with pytest.raises(ValueError, match="positive integer"):
        Moments(width)


def test_a_device_without_float64_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match='use device="cpu"'):
        Moments(6, device="mps")

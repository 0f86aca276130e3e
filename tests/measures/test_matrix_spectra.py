"""Spectra of weights. Trusted: numpy's SVD, scipy's entropy, numpy's norms and condition number."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy, gmean

from reptrace.measures.measure import REGISTRY
from reptrace.measures.weights import Spectra, singular_values, weights

RNG = np.random.default_rng(0)
MATRICES = [RNG.normal(size=(20, 8)), RNG.normal(size=(6, 12)) * np.arange(1, 13)]


@pytest.mark.parametrize("matrix", MATRICES)
def test_singular_values_are_numpy_s(matrix):
    expected = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(singular_values(torch.tensor(matrix)), expected, rtol=1e-9)


def test_columns_are_means_over_the_matrices_of_a_kind():
    found = weights(Spectra.of({"attention": map(torch.tensor, MATRICES), "mlp": [torch.tensor(MATRICES[0])]}, 1))
    assert set(found) == set(REGISTRY["weights"].returned) and found["attention_fused"] == 1
    values = [np.linalg.svd(each, compute_uv=False) for each in MATRICES]
    expected = {"attention_effective_rank": np.mean([np.exp(entropy(s)) for s in values]),
                "attention_stable_rank": np.mean([(np.linalg.norm(each) / np.linalg.norm(each, 2)) ** 2
                                                  for each in MATRICES]),
                "attention_condition": gmean([np.linalg.cond(each) for each in MATRICES]),
                "mlp_condition": np.linalg.cond(MATRICES[0])}
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-8)
    assert all(math.isnan(found[f"unembedding_{what}"]) for what in ("effective_rank", "stable_rank", "condition"))


def test_a_singular_matrix_is_at_the_floor_of_rounding_and_one_of_zeros_is_refused():
    singular = torch.tensor(np.outer(RNG.normal(size=9), RNG.normal(size=4)))
    assert weights(Spectra.of({"mlp": [singular]}))["mlp_condition"] > 1e7
    with pytest.raises(ValueError, match=r"a weight matrix of shape \(3, 2\) is zero throughout"):
        singular_values(torch.zeros(3, 2))

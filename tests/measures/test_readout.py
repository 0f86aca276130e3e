"""What states share with the unembedding. Trusted: scipy's angles between subspaces, scikit-learn's linear regression,
and directions that were planted."""

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from scipy.stats import entropy, ortho_group
from sklearn.linear_model import LinearRegression
from test_anisotropy import delete_one

from reptrace.measures.measure import REGISTRY
from reptrace.measures.readout import Head, Readout, overlap, readout, share_along

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("k", "m"), [(1, 1), (3, 3), (2, 5), (5, 2)])
def test_the_overlap_is_that_of_scipy_s_principal_angles(k, m):
    first, second = ortho_group.rvs(8, random_state=1)[:, :k], ortho_group.rvs(8, random_state=2)[:, :m]
    expected = np.square(np.cos(subspace_angles(first, second))).mean()
    assert overlap(first, second) == pytest.approx(expected, rel=1e-10)


def test_random_subspaces_share_what_the_docstring_says():
    found = [overlap(a[:, :3], b[:, :6]) for a, b in
             zip(ortho_group.rvs(12, 400, random_state=3), ortho_group.rvs(12, 400, random_state=4), strict=True)]
    assert np.mean(found) == pytest.approx(6 / 12, abs=4 * np.std(found) / np.sqrt(len(found)))


def test_shares_along_eigenvectors_are_the_eigenvalues_and_of_any_basis_they_add_up_to_one():
    features = RNG.normal(size=(50, 6)) @ np.diag([5, 4, 3, 2, 1, 0.5])
    covariance = np.cov(features.T, bias=True)
    values, vectors = np.linalg.eigh(covariance)
    np.testing.assert_allclose(share_along(covariance, vectors), values / values.sum(), rtol=1e-10)
    assert share_along(covariance, ortho_group.rvs(6, random_state=5)).sum() == pytest.approx(1)
    assert share_along(covariance, vectors[:, -1]) == pytest.approx(values[-1] / values.sum())


def test_a_planted_direction_of_frequency_is_found_and_its_share_is_scikit_learn_s():
    planted = RNG.normal(size=5)
    weights = RNG.normal(size=(300, 5)) + 7
    counts = np.round(np.exp(weights @ planted + RNG.normal(size=300) + 4))
    counts[:10] = 0
    found = Readout.of(weights, counts)
    seen = counts > 0
    fit = LinearRegression().fit(weights[seen], np.log(counts[seen]))
    np.testing.assert_allclose(found.frequency, fit.coef_ / np.linalg.norm(fit.coef_), rtol=1e-8)
    assert found.frequency_r2 == pytest.approx(fit.score(weights[seen], np.log(counts[seen])), rel=1e-8)
    assert found.frequency @ planted / np.linalg.norm(planted) > 0.99


def test_the_leading_direction_is_that_of_the_centred_unembedding():
    weights = np.outer(RNG.normal(size=200), [0, 3, 0, 0]) + RNG.normal(size=(200, 4)) * 0.1 + [50, 0, 0, 0]
    found = Readout.of(weights, np.ones(200) + np.arange(200))
    assert abs(found.directions[1, 0]) > 0.99  # not the first axis, along which all rows lie alike


@pytest.mark.parametrize(("shape", "counts", "said"), [
    ((6, 2), 5, r"expected weights \(V, d\) and counts \(V,\), got \(6, 2\) and \(5,\)"),
    ((4, 4), 4, "4 tokens occur, which does not settle a direction of 4 dimensions")])
def test_what_cannot_be_fitted_is_said(shape, counts, said):
    with pytest.raises(ValueError, match=said):
        Readout.of(np.ones(shape), np.ones(counts))


OTHER = np.random.default_rng(1)
UNEMBEDDING = OTHER.normal(size=(80, 8)) * [5, 4, 3, 1, 0.5, 0.3, 0.2, 0.1] + 4
STATES = OTHER.normal(size=(150, 8)) * [4, 2, 3, 1, 2, 0.5, 0.4, 0.3] + 7


def by_hand(k):
    """Share and overlap of k directions, of some states, by SVDs and scipy's angles."""
    own = np.linalg.svd(UNEMBEDDING - UNEMBEDDING.mean(0))[2][:k].T

    def found(states):
        centred = states - states.mean(0)
        theirs = np.linalg.svd(centred, full_matrices=False)[2][:k].T
        return (np.square(centred @ own).sum() / np.square(centred).sum(),
                np.square(np.cos(subspace_angles(theirs, own))).mean())

    return found


def test_readout_is_that_of_svds_and_angles_and_its_errors_near_those_of_leaving_one_out():
    found = readout(torch.tensor(STATES), Head.of(torch.tensor(UNEMBEDDING), tied=True))
    assert set(found) == set(REGISTRY["readout"].returned) and found["unembedding_tied"] is True
    values = np.linalg.svd(UNEMBEDDING - UNEMBEDDING.mean(0), compute_uv=False) ** 2
    assert found["readout_rank"] == pytest.approx(np.exp(entropy(values)), rel=1e-9)
    k = found["readout_k"]
    assert k == round(found["readout_rank"]) == 3 and found["readout_chance"] == 3 / 8
    assert found["readout_quarter_chance"] == 2 / 8
    for name, number in (("", k), ("quarter_", 2)):
        by_k = by_hand(number)
        ours = found[f"readout_{name}share"], found[f"readout_{name}overlap"]
        assert ours == pytest.approx(by_k(STATES), rel=1e-8)
        errors = found[f"readout_{name}share_stderr"], found[f"readout_{name}overlap_stderr"]
        # infinitesimal against delete-one: they differ by terms of 1 / M and, for directions, of the gap
        assert errors == pytest.approx(tuple(delete_one(by_k, [STATES])), rel=0.1)


def test_random_directions_hold_what_chance_is_said_to_be():
    states = torch.tensor(STATES)
    found = [readout(states, Head.of(torch.tensor(UNEMBEDDING @ turn), tied=False)) for turn in
             ortho_group.rvs(8, 200, random_state=6)]
    for name in ("", "quarter_"):
        for what in ("share", "overlap"):
            each = np.array([one[f"readout_{name}{what}"] for one in found])
            assert each.mean() == pytest.approx(found[0][f"readout_{name}chance"], abs=4 * each.std() / np.sqrt(200))


def test_readout_of_another_width_or_of_too_few_states_is_refused():
    head = Head.of(torch.tensor(UNEMBEDDING), tied=False)
    with pytest.raises(ValueError, match="states of width 6 are not what an unembedding of width 8 reads"):
        readout(torch.tensor(STATES[:, :6]), head)
    with pytest.raises(ValueError, match="3 leading directions of the states: that needs 5 sequences at least, got 4"):
        readout(torch.tensor(STATES[:4]), head)


def test_states_that_vary_along_fewer_directions_have_no_overlap_of_leading_ones():
    head = Head.of(torch.randn(50, 16, generator=torch.Generator().manual_seed(0)), False)
    few = torch.randn(3, 16, generator=torch.Generator().manual_seed(1)).repeat(20, 1)  # two directions
    found = readout(few, head)
    assert np.isnan([found["readout_quarter_overlap"], found["readout_quarter_overlap_stderr"]]).all()
    assert 0 < found["readout_quarter_share"] < 1

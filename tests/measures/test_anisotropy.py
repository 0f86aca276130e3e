"""How far states point one way. Trusted: scikit-learn's cosines of all pairs, numpy's moments, and the textbook's
delete-one jackknife, which measures everything anew without each row."""

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity

from reptrace.measures.anisotropy import anisotropy

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(40, 6)) * [5, 3, 2, 1, 1, 1] + [2, 1, 0, 0, 0, 0]


def by_hand(features):
    return (cosine_similarity(features)[~np.eye(len(features), dtype=bool)].mean(),
            np.square(features.mean(0)).sum() / np.square(features).sum(1).mean())


def delete_one(statistic, rows):
    left_out = np.array([statistic(*(np.delete(each, k, 0) for each in rows)) for k in range(len(rows[0]))])
    count = len(left_out)
    return np.sqrt((count - 1) / count * np.square(left_out - left_out.mean(0)).sum(0))


def test_cosine_and_share_are_those_of_all_pairs_and_their_errors_those_of_leaving_one_out():
    found = anisotropy(torch.tensor(FEATURES))
    assert (found["mean_cosine"], found["mean_share"]) == pytest.approx(by_hand(FEATURES), rel=1e-10)
    errors = delete_one(by_hand, [FEATURES])
    assert (found["mean_cosine_stderr"], found["mean_share_stderr"]) == pytest.approx(tuple(errors), rel=1e-8)


def test_states_alike_are_at_one_and_those_in_all_directions_near_none():
    alike = anisotropy(torch.tensor(np.outer(RNG.uniform(1, 2, 30), [3.0, 4.0])))
    assert alike["mean_cosine"] == pytest.approx(1) and alike["mean_cosine_stderr"] == pytest.approx(0, abs=1e-7)
    around = anisotropy(torch.tensor(RNG.normal(size=(2000, 20))))
    assert abs(around["mean_cosine"]) < 4 * around["mean_cosine_stderr"] < 1e-2 and around["mean_share"] < 2e-3


def test_a_state_of_length_zero_is_refused():
    with pytest.raises(ValueError, match="1 states are zero: they have no direction"):
        anisotropy(torch.tensor([[1.0, 2], [0, 0], [2, 1]]))

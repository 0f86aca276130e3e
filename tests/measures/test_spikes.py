"""Sequences that one coordinate dominates: planted ones are found, and RankMe without them is that of the others.

Trusted: what was planted; numpy's norms; `geometry` of the rows that are left.
"""

import numpy as np
import pytest
import torch

from reptrace.measures import registry
from reptrace.measures.spectra import geometry
from reptrace.measures.spikes import DOMINATED, largest_share, spikes


@pytest.fixture
def states():
    return torch.randn(300, 16, generator=torch.Generator().manual_seed(0))


def test_shares_are_numpy_s(states):
    squares = states.double().numpy() ** 2
    assert largest_share(states).numpy() == pytest.approx(squares.max(1) / squares.sum(1), rel=1e-12)


def test_planted_spikes_are_counted_and_rankme_of_the_others_is_as_if_they_were_not_there(states):
    plain = spikes(states)
    planted = torch.cat([states, torch.zeros(3, 16)])
    planted[300:, 5] = torch.tensor([5000.0, 40.0, -30.0])  # the first beyond 100: massive, too
    planted[300:, 6] = 1
    found = registry.measured(["spikes"], {"features": planted})
    assert (plain["massive"], plain["one_coordinate"]) == (0, 0)
    assert plain["rankme_rest"] == geometry(states, None).rankme
    assert (found["massive"], found["one_coordinate"]) == (1, 3)
    assert found["rankme_rest"] == pytest.approx(plain["rankme_rest"], rel=1e-12)
    assert found["rankme_rest_stderr"] == pytest.approx(plain["rankme_rest_stderr"], rel=1e-12)
    assert geometry(planted, None).rankme < 1.01  # one sequence has nearly all variance
    assert found["coordinate_share_largest"] > DOMINATED > found["coordinate_share_median"]


def test_the_unit_of_the_states_does_not_change_which_one_coordinate_dominates(states):
    states[:5, 2] = 50
    assert spikes(states)["one_coordinate"] == spikes(states * 1e-4)["one_coordinate"] == 5


def test_states_in_one_coordinate_all_leave_nothing():
    found = spikes(torch.tensor(np.eye(4)) * 7)
    assert found["one_coordinate"] == 4 and np.isnan(found["rankme_rest"]) and np.isnan(found["rankme_rest_stderr"])


def test_others_that_do_not_differ_have_no_rankme_and_do_not_cost_the_rest(states):
    flagged = torch.zeros(4, 16)
    flagged[:, 3] = torch.arange(4.0) + 500
    found = spikes(torch.cat([flagged, torch.ones(3, 16)]))
    assert found["massive"] == 4 and np.isnan(found["rankme_rest"])

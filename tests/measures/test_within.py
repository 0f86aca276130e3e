"""Prompt entropy, curvature and Diff-eRank.

Trusted: states whose numbers are known (a line, a zigzag, orthonormal and equal tokens), numpy's eigenvalues and dot
products, a loop over one sequence at a time, on the hidden states that transformers gives for that sequence alone.
"""

import math
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from test_hidden_states import TOLERANCES, tiny
from test_registry import SEQUENCES, traced

from reptrace.checkpoints.listing import Checkpoint
from reptrace.measures import within
from reptrace.measures.registry import measured
from reptrace.measures.within import curvatures, diff_erank, prompt_entropies, sentence_entropies
from reptrace.models.hidden_states import extract

NAMES = ["prompt_entropy", "curvature", "sentence_erank"]
# Angles near 0 and pi: the arc cosine makes 1e-8 of a float64's rounding of the cosine, 1e-16.
ANGLES = 1e-7


def entropy(matrix):
    shares = np.linalg.eigvalsh(matrix) / np.trace(matrix)
    shares = shares[shares > 1e-14]
    return -(shares * np.log(shares)).sum()


def by_hand(states):
    """Prompt entropy, curvature and sentence entropy of one sequence's states (t, d), as the papers' equations say."""
    steps = [after - before for before, after in pairwise(states)]
    angles = [np.arccos(np.clip(one @ other / np.linalg.norm(one) / np.linalg.norm(other), -1, 1))
              for one, other in pairwise(steps)]
    centred = states - states.mean(0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    covariance = sum(np.outer(row, row) for row in unit) / len(unit)
    return entropy(states @ states.T), np.mean(angles), entropy(covariance)


def alone(states, reduction):
    states = torch.as_tensor(np.asarray(states, float))[None]
    return float(reduction(states, torch.tensor([states.shape[1] - 1])))


def test_all_layers_are_as_by_hand_from_what_transformers_gives_for_each_sequence_alone():
    model = tiny()
    found = extract(model, SEQUENCES, "all", 16, reductions=within.REDUCTIONS).reduced
    assert len({len(ids) for ids in SEQUENCES}) > 3  # padding behind the last token
    with torch.no_grad():
        for row, ids in enumerate(SEQUENCES):
            states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
            for layer, each in ((0, states[0]), (1, states[1]), ("final", states[-1])):
                got = [float(found[name][layer][row]) for name in within.REDUCTIONS]
                assert got == pytest.approx(by_hand(each[0].numpy()), abs=TOLERANCES[torch.float64])


def test_what_follows_the_last_token_does_not_matter():
    generator = torch.Generator().manual_seed(0)
    states, last = torch.randn(3, 9, 4, generator=generator), torch.tensor([8, 5, 3])
    other = states.clone()
    other[1, 6:], other[2, 4:] = 1e9, math.inf
    for reduction in within.REDUCTIONS.values():
        assert torch.equal(reduction(states, last), reduction(other, last))


def test_a_straight_path_has_curvature_0_a_zigzag_pi_and_a_square_a_right_angle():
    line = np.outer([0, 1, 3, 4, 9], [1, 2, -1])
    assert alone(line + 5, curvatures) == pytest.approx(0, abs=ANGLES)
    assert alone(np.outer([0, 1, 0, 1, 0], [1, 2, -1]), curvatures) == pytest.approx(math.pi, abs=ANGLES)
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    assert alone(square, curvatures) == pytest.approx(math.pi / 2, abs=ANGLES)
    # Where the path stands still it has no direction, and the angles beside are left out.
    assert alone(square[[0, 1, 2, 2, 3, 0, 1]], curvatures) == pytest.approx(math.pi / 2, abs=ANGLES)


def test_equal_tokens_have_entropy_0_and_orthonormal_ones_that_of_their_number():
    equal = np.tile(np.random.default_rng(0).normal(size=6), (5, 1))
    assert alone(equal, prompt_entropies) == pytest.approx(0, abs=1e-12)  # rounding of the eigenvalues, times its log
    assert alone(np.eye(5, 7), prompt_entropies) == pytest.approx(math.log(5), abs=1e-12)
    # Centred, they are the corners of a simplex in one direction fewer, all of one length.
    assert alone(np.eye(5, 7), sentence_entropies) == pytest.approx(math.log(4), abs=1e-12)
    assert alone(equal * [[1], [1], [1], [2], [2]], sentence_entropies) == pytest.approx(0, abs=1e-12)
    assert alone(np.array([[1, 1], [-1, 1], [1, -1], [-1, -1], [0, 0]]) + 7, sentence_entropies) == pytest.approx(
        math.log(2), abs=1e-12)  # the last is the mean: it has no direction


def test_sequences_without_a_number_are_counted_and_not_averaged_in():
    generator = torch.Generator().manual_seed(1)
    states, last = torch.randn(5, 6, 4, generator=generator), torch.tensor([5, 4, 2, 1, 0])
    states[2] = states[2, 0]  # equal tokens: no direction, and a prompt entropy of 0
    given = {name: reduction(states, last) for name, reduction in within.REDUCTIONS.items()}
    found = measured(NAMES, given)
    assert [found[f"{name}_sequences"] for name in NAMES] == [4, 2, 3]
    first, second = (by_hand(states[k, : last[k] + 1].double().numpy()) for k in (0, 1))
    assert found["curvature"] == pytest.approx((first[1] + second[1]) / 2)
    assert found["curvature_stderr"] == pytest.approx(abs(first[1] - second[1]) / 2)  # of two numbers
    entropies = [first[2], second[2], 0]  # two tokens lie opposite of each other: one direction
    assert found["sentence_erank"] == pytest.approx(np.exp(np.mean(entropies)))
    assert found["sentence_erank_stderr"] == pytest.approx(
        np.exp(np.mean(entropies)) * np.std(entropies, ddof=1) / 3**0.5)
    with pytest.raises(ValueError, match="curvature: 1 of 3 sequences have one"):
        measured(["curvature"], {name: reduction(states[1:4], last[1:4]) for name, reduction in
                                 within.REDUCTIONS.items()})


def test_states_that_are_no_numbers_give_no_number_and_no_error():
    states, last = torch.ones(2, 4, 3), torch.tensor([3, 3])
    states[0, 1, 1] = math.nan
    assert math.isnan(prompt_entropies(states, last)[0]) and prompt_entropies(states, last)[1] == pytest.approx(0)


def test_a_checkpoint_less_itself_is_surely_0_and_its_error_is_that_of_the_paired_difference():
    rng = np.random.default_rng(2)
    shared, own = rng.normal(2, 0.3, 4096), rng.normal(0, 0.02, (2, 4096))
    entropies = [torch.tensor(shared + own[0]), torch.tensor(0.9 * shared + own[1])]
    table = pd.DataFrame([measured(["sentence_erank"], {"sentence_entropies": each}) for each in entropies], [7, 9])
    found = diff_erank(table)
    assert found.loc[7].tolist() == [0, 0]
    ranks = [float(each.mean().exp()) for each in entropies]
    assert found.diff_erank[9] == pytest.approx(ranks[0] - ranks[1])
    of_each = ranks[0] * entropies[0] - ranks[1] * entropies[1]  # to first order, by sequence
    # An error from 32 parts is itself known to 1 / sqrt(62) = 13 %: three times that.
    assert found.diff_erank_stderr[9] == pytest.approx(float(of_each.std()) / 64, rel=0.4)
    assert found.diff_erank_stderr[9] < 0.5 * np.hypot(*table.sentence_erank_stderr)  # not as if unpaired
    with pytest.raises(ValueError, match="other numbers of sequences"):
        diff_erank(table.assign(sentence_erank_sequences=[4096, 4095]))


def test_a_sweep_measures_them_beside_the_rest_in_the_same_pass(tmp_path):
    model = tiny(dtype=torch.float32)
    model.save_pretrained(tmp_path / "model")
    point = Checkpoint(str(tmp_path / "model"))
    row = traced(point, tmp_path, ["rankme", *NAMES], layers=["final"]).iloc[0]
    assert row.status == "measured", row.reason
    with torch.no_grad():
        expected = np.mean([by_hand(model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0].double()
                                    .numpy()) for ids in SEQUENCES], axis=0)
    # States in float32, of means of entropies and angles of order 1
    assert [row.prompt_entropy, row.curvature, np.log(row.sentence_erank)] == pytest.approx(expected, rel=1e-5)
    assert row.rankme == traced(point, tmp_path, ["rankme"], layers=["final"]).iloc[0].rankme
    assert len(row.sentence_entropy_parts) == 32

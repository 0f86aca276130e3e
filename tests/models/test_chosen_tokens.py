"""Other tokens than the last one: by hand; chances by counts.

That they are what transformers' own hidden states say, a token and a layer at a time, test_choices.py shows.
"""

import numpy as np
import torch

from reptrace.models.chosen_tokens import at, at_random, lengths, mean


def test_any_token_is_a_real_one_the_same_at_every_call_and_each_is_as_likely():
    places = torch.arange(10.0).expand(4000, 10)[..., None]
    last = torch.full((4000,), 3)
    drawn = at_random(places, last)
    assert torch.equal(drawn, at_random(places, last))
    counts = np.bincount(drawn.flatten().long(), minlength=10)
    assert counts[4:].sum() == 0 and (abs(counts[:4] - 1000) < 5 * np.sqrt(750)).all()  # five binomial deviations


def test_lengths_of_the_first_token_and_of_the_others_pass_over_padding():
    hidden = torch.tensor([[[3.0, 4], [1, 0], [2, 0], [6, 0]], [[0.0, 2], [1, 0], [9, 0], [9, 0]]])
    assert lengths(hidden, torch.tensor([3, 1])).tolist() == [[5, 2], [2, 1]]
    assert mean(hidden, torch.tensor([3, 1])).tolist() == [[3, 1], [0.5, 1]]
    assert mean(hidden, torch.tensor([3, 1]), first=1).tolist() == [[3, 0], [1, 0]]
    third = at(2, hidden, torch.tensor([3, 1]))
    assert third[0].tolist() == [2, 0] and third[1].isnan().all()


def test_a_mean_of_bfloat16_counts_all_tokens():
    assert mean(torch.ones(1, 301, 2, dtype=torch.bfloat16), torch.tensor([300])).tolist() == [[1, 1]]

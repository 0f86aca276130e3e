"""Copying what stands earlier. Trusted: models whose losses are known by construction, and transformers' own loss."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from reptrace.models.repetition import repetition, shuffled

VOCABULARY = 11


class Copier:
    """Knows after a token what followed it before, with all its logits on that; else all tokens are alike to it."""

    def __call__(self, ids, use_cache):
        logits = torch.zeros(*ids.shape, VOCABULARY)
        for row, sequence in enumerate(ids.tolist()):
            for place, token in enumerate(sequence):
                if token in sequence[:place]:
                    logits[row, place, sequence[sequence.index(token) + 1]] = 50.0
        return SimpleNamespace(logits=logits)


def test_a_model_that_copies_has_no_loss_in_the_second_copy_and_that_of_chance_in_the_first():
    sequences = torch.stack([torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(k))[:6]
                             for k in range(5)])
    found = repetition(Copier(), sequences)
    assert found.first_loss == pytest.approx(np.log(VOCABULARY), rel=1e-6)  # float32
    assert found.second_loss == pytest.approx(0, abs=1e-6) and found.accuracy == 1


def test_the_losses_are_transformers_own(monkeypatch):
    torch.manual_seed(0)
    model = GPTNeoXForCausalLM(GPTNeoXConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16)).eval()
    sequences = torch.randint(VOCABULARY, (7, 8))
    monkeypatch.setattr("reptrace.models.repetition.TOGETHER", 48)  # three sequences at a time, the last one alone
    found, ids = repetition(model, sequences), torch.cat([sequences, sequences], 1)
    first, second = (ids.masked_fill(torch.arange(16) // 8 != half, -100) for half in (0, 1))
    second[:, 8] = -100  # the first token of a copy is not counted
    with torch.no_grad():
        expected = [model(ids, labels=labels).loss.item() for labels in (first, second)]
    assert [found.first_loss, found.second_loss] == pytest.approx(expected, rel=1e-5)


def test_shuffled_tokens_are_those_of_the_text_each_as_often():
    ids = torch.arange(60).view(6, 10)
    found = shuffled(ids, 12, 5)
    assert found.shape == (12, 5) and sorted(found.flatten().tolist()) == list(range(60))
    assert torch.equal(found, shuffled(ids, 12, 5)) and not torch.equal(found, shuffled(ids, 12, 5, seed=1))
    assert not torch.equal(found.flatten(), ids.flatten())


def test_what_cannot_be_done_is_said():
    with pytest.raises(ValueError, match="13 sequences of 5 tokens need more than the text's 60"):
        shuffled(torch.arange(60), 13, 5)
    with pytest.raises(ValueError, match="two tokens or more are needed, got 1"):
        repetition(None, torch.zeros(3, 1, dtype=torch.long))

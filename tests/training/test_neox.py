"""The forward pass and the loss of training on a CPU.

Trusted: transformers' own forward pass and torch's own cross-entropy, with autograd's gradients of them.
"""

import pytest
import torch
from weather import a_run

from reptrace.training import neox
from reptrace.training.lean import head_loss, initial_model


def gradients(loss, weights):
    return torch.autograd.grad(loss, list(weights))


@pytest.mark.parametrize("changes", [{}, {"width": 32, "layers": 2, "rotary": 1.0}, {"width": 24},
                                     {"width": 32, "head_width": 8, "rotary": 0.5}])
def test_states_and_gradients_are_those_of_transformers(changes):
    model, ids = initial_model(a_run(**changes)).double(), torch.randint(300, (3, 16))
    with torch.no_grad():
        for weights in model.parameters():  # no bias at 0, no norm at 1
            weights += 0.1 * torch.randn_like(weights)
    weights = list(model.gpt_neox.parameters())
    expected, found = model.gpt_neox(ids).last_hidden_state, neox.Forward(model, 16)(ids)
    # the angles are known in single precision, on both sides alike
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    towards = torch.randn_like(expected)
    both = (gradients((states * towards).sum(), weights) for states in (found, expected))
    for ours, theirs in zip(*both, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("scale", [1.0, 300.0])  # at the larger one the exponential of a logit is infinite
@pytest.mark.parametrize("logits", [2**17, 700])  # all rows at once; two at a time, and one at the end
def test_loss_and_gradients_are_torch_s_own(scale, logits, monkeypatch):
    monkeypatch.setattr(neox, "LOGITS", logits)
    states, ids = torch.randn(3, 6, 8), torch.randint(300, (3, 6))
    given = states * scale, torch.randn(300, 8)
    given = [each.requires_grad_() for each in given]
    doubled = [each.detach().double().requires_grad_() for each in given]
    expected, found = (3 * loss for loss in (head_loss_in_double(*doubled, ids), neox.head_loss(*given, ids)))
    # single precision: 300 exponentials of differences that are known to 1e-7 of the largest logit
    torch.testing.assert_close(found.double(), expected, rtol=1e-6 * (1 + scale / 30), atol=0)
    for ours, theirs in zip(gradients(found, given), gradients(expected, doubled), strict=True):
        least = 2e-6 * (1 + scale) * float(theirs.abs().max())
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=least)


def head_loss_in_double(states, unembedding, ids):
    return torch.nn.functional.cross_entropy((states @ unembedding.T)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def test_the_plain_loss_is_the_same():
    states, unembedding, ids = torch.randn(3, 6, 8), torch.randn(300, 8), torch.randint(300, (3, 6))
    torch.testing.assert_close(head_loss(states, unembedding, ids), neox.head_loss(states, unembedding, ids))


def test_another_kind_of_block_is_refused():
    model = initial_model(a_run())
    model.config.use_parallel_residual = False
    with pytest.raises(ValueError, match="parallel residuals and GELU"):
        neox.Forward(model, 16)

"""A model after it was measured: the weights and the modes that it had.

Trusted: copies of its weights made before, and a model that saw nothing but transformers.
"""

import copy

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, RwkvConfig, RwkvForCausalLM

from reptrace.models.hidden_states import last_token_states
from reptrace.tasks.evaluation import loss

SEQUENCES = [[3, 5, 7, 11, 2], [4, 4, 9], [1, 2, 3, 4, 5, 6, 7, 8]]


def rwkv():
    """Of twelve blocks: from the seventh on, weights are halved in evaluation."""
    torch.manual_seed(0)
    return RwkvForCausalLM(RwkvConfig(vocab_size=29, hidden_size=16, num_hidden_layers=12, context_length=32))


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=29, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                                        intermediate_size=32, pad_token_id=0))


@pytest.mark.parametrize("measure", [last_token_states, lambda model, given: loss(model, given, 2)],
                         ids=["states", "loss"])
@pytest.mark.parametrize("used", [False, True], ids=["new", "used in evaluation"])
def test_rwkv_has_its_own_weights_again_after_it_was_measured(used, measure):
    model = rwkv()
    if used:
        model.eval()(torch.tensor([[1, 2, 3]]))
        assert any(not torch.equal(one, other) for one, other in
                   zip(model.parameters(), rwkv().parameters(), strict=True))  # halving does happen
    else:
        model.train()
    before = copy.deepcopy(model.state_dict())
    measure(model, SEQUENCES)
    after = model.state_dict()
    assert model.training != used and all(torch.equal(after[key], before[key]) for key in before)
    expected = rwkv().eval()(torch.tensor([SEQUENCES[0]])).logits
    torch.testing.assert_close(model.eval()(torch.tensor([SEQUENCES[0]])).logits, expected, rtol=0, atol=0)


class Learning(nn.Module):
    """An MLP that has moved a little after every call."""

    def __init__(self, mlp):
        super().__init__()
        self.mlp = mlp

    def forward(self, x):
        with torch.no_grad():
            self.mlp.up_proj.weight.add_(1e-3)
        return self.mlp(x)


@pytest.mark.parametrize("measure", [last_token_states, lambda model, given: loss(model, given, 2)],
                         ids=["states", "loss"])
def test_a_model_whose_forward_pass_changes_its_weights_is_refused_with_their_names(measure):
    model = llama()
    model.model.layers[0].mlp = Learning(model.model.layers[0].mlp)
    with pytest.raises(RuntimeError, match=r"changes its weights \(.*mlp\.up_proj\.weight"):
        measure(model, SEQUENCES)


class Merging(nn.Linear):
    """Adds its adapter to its weights in evaluation and takes it away in training, as loralib does."""

    merged = False

    def train(self, mode=True):
        if self.merged == mode:
            self.weight.data += -1.0 if mode else 1.0
            self.merged = not mode
        return super().train(mode)


def test_a_module_that_changes_with_its_mode_has_what_belongs_to_the_mode_that_it_has():
    model = llama()
    mlp = model.model.layers[0].mlp
    mlp.up_proj = Merging(16, 32, bias=False)
    model.train()
    before = mlp.up_proj.weight.detach().clone()
    last_token_states(model, SEQUENCES)
    loss(model, SEQUENCES, 2)
    assert mlp.up_proj.training and not mlp.up_proj.merged
    torch.testing.assert_close(mlp.up_proj.weight, before, rtol=0, atol=1e-6)  # 1 was added and taken away


@pytest.mark.parametrize("fails", [False, True])
def test_each_module_is_in_its_own_mode_again_whatever_happens(fails):
    model = llama().train()
    model.model.layers[1].eval()  # a frozen part, as people keep it
    before = [module.training for module in model.modules()]
    if fails:
        model.model.norm.weight.data.fill_(float("nan"))
    try:
        last_token_states(model, SEQUENCES)
        assert not fails
    except ValueError:
        assert fails
    assert [module.training for module in model.modules()] == before

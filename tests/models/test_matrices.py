"""Weight matrices by what they are part of. Trusted: transformers' own attention, whose queries, keys and values come
out of the matrices that are told apart; the sizes that a configuration says."""

import pytest
import torch
from test_hidden_states import CLASSES, LAYERS, SHAPE, tiny
from transformers import (
    AutoModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OlmoeConfig,
    OlmoeModel,
    OPTConfig,
    OPTModel,
    Phi3Config,
    Phi3Model,
)

from reptrace.models.matrices import block_matrices, tied, unembedding

WIDTH = SHAPE["hidden_size"]


def projected(model, name, states):
    """What the module of this name in the first block makes of some states."""
    return dict(model.named_modules())[name](states)


@pytest.mark.parametrize("name", CLASSES)
def test_blocks_have_as_many_matrices_as_their_architecture(name):
    found, fused = block_matrices(tiny(name))
    assert (len(found["attention"]), fused) == (4 * LAYERS, 0)
    assert len(found["mlp"]) == LAYERS * (2 if name == "GPTNeoX" else 3)


@torch.no_grad()
def test_gpt_neox_queries_keys_and_values_are_told_apart():
    model, states = tiny("GPTNeoX"), torch.randn(5, WIDTH, dtype=torch.float64)
    fused = model.base_model.layers[0].attention.query_key_value
    torch.nn.init.zeros_(fused.bias)
    expected = fused(states).view(5, SHAPE["num_attention_heads"], -1).chunk(3, dim=-1)  # as its attention does it
    found, _ = block_matrices(model)
    for matrix, each in zip(found["attention"], expected, strict=False):
        torch.testing.assert_close(states @ matrix.T, each.reshape(5, WIDTH))


@torch.no_grad()
def test_gpt2_s_and_phi3_s_are_told_apart_and_unknown_ones_are_counted():
    states = torch.randn(5, WIDTH)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=WIDTH, n_layer=2, n_head=4, n_positions=16))
    found, fused = block_matrices(model)
    assert fused == 0 and tied(model)
    for matrix, each in zip(found["attention"], model.transformer.h[0].attn.c_attn(states).split(WIDTH, 1),
                            strict=False):
        torch.testing.assert_close(states @ matrix, each)
    shape = SHAPE | {"num_key_value_heads": 2}
    model = Phi3Model(Phi3Config(**shape))
    found, fused = block_matrices(model)
    assert fused == 0 and sorted(len(each) for each in found["attention"][:4]) == [16, 16, 32, 32]
    model.config.model_type = "else"
    assert block_matrices(model)[1] == LAYERS


def test_an_mlp_without_a_module_of_its_own_is_one_and_a_router_is_none():
    shape = {"vocab_size": 97, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
    found, _ = block_matrices(OPTModel(OPTConfig(**shape, ffn_dim=64, word_embed_proj_dim=WIDTH)))
    assert [len(found[kind]) for kind in ("attention", "mlp")] == [8, 4]
    moe = OlmoeModel(OlmoeConfig(**shape, intermediate_size=48, num_experts=3, num_experts_per_tok=2))
    found, _ = block_matrices(moe)
    assert {48, 96} >= {max(set(each.shape) - {WIDTH}) for each in found["mlp"]}
    assert sum(each.numel() for each in found["mlp"]) == 2 * 3 * 3 * 48 * WIDTH  # gate, up and down of each expert


def test_a_tied_unembedding_is_said_and_a_missing_one_is_refused():
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True))
    assert tied(model) and unembedding(model).shape == (SHAPE["vocab_size"], WIDTH)
    assert not tied(LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=False)))
    with pytest.raises(ValueError, match=r"LlamaModel has no unembedding .* leave out the measures of it"):
        unembedding(AutoModel.from_config(LlamaConfig(**SHAPE)))

"""Models inside of wrappers: PEFT's adapters, torch.compile, DistributedDataParallel.

Trusted: PEFT, which merges an adapter into the weights, and transformers' `output_hidden_states` on the merged model,
one sequence at a time; torch's own wrappers.
"""

import copy

import peft
import pytest
import torch
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from reptrace.models.decoders import adapters
from reptrace.models.hidden_states import last_token_states

SEQUENCES = [torch.arange(length).mul(7 + length).remainder(50).tolist() for length in (5, 9, 1, 12, 9)]
SIZES = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "max_position_embeddings": 16}
TASK = {"task_type": "CAUSAL_LM"}


def llama(kind=LlamaForCausalLM):
    torch.manual_seed(0)
    return kind(LlamaConfig(**SIZES))


def neox():
    torch.manual_seed(0)
    return GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES))


def adapted(config, model=None):
    """A model in training whose adapter does something: its weights are moved away from where they start."""
    found = peft.get_peft_model(model or llama(), config).train()
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return found


def last_states_by_transformers(model):
    """Layer -> (M, d): the embeddings, and the last hidden state, which is after the final norm."""
    model.eval()
    with torch.inference_mode():
        states = [model(torch.tensor([ids]), output_hidden_states=True).hidden_states for ids in SEQUENCES]
    return {layer: torch.stack([each[place][0, -1] for each in states])
            for layer, place in ((0, 0), (1, 1), ("final", -1))}


def assert_close(found, expected):
    for layer, states in expected.items():
        # float32, two blocks: the merged weights round differently
        torch.testing.assert_close(found[layer], states, rtol=0, atol=5e-6)


ADAPTERS = {
    "LoRA": peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], lora_dropout=0.5, **TASK),
    "LoRA on the embeddings and a norm trained whole": peft.LoraConfig(
        r=2, target_modules=["v_proj", "embed_tokens"], modules_to_save=["norm"], **TASK),
    "embeddings trained whole": peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"],
                                                **TASK),
    "a few tokens trained": peft.LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[7, 14], **TASK),
    "DoRA": peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], use_dora=True, **TASK),
    "IA3": peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], **TASK),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_states_through_an_adapter_are_those_of_the_merged_model(name):
    model = adapted(ADAPTERS[name])
    found = last_token_states(model, SEQUENCES, [0, 1, "final"])
    assert_close(found, last_states_by_transformers(copy.deepcopy(model).merge_and_unload()))
    plain = last_token_states(llama(), SEQUENCES)["final"]
    assert (found["final"] - plain).abs().max() > 0.01  # the adapter matters
    assert model.training and model.base_model.model.model.layers[0].training


def test_so_they_are_in_gpt_neox_and_without_a_head_and_where_transformers_adds_the_adapter():
    config = peft.LoraConfig(r=2, target_modules=["query_key_value", "dense_4h_to_h"])
    model = adapted(config, neox())
    expected = last_states_by_transformers(copy.deepcopy(model).merge_and_unload())
    assert_close(last_token_states(model, SEQUENCES, [0, 1, "final"]), expected)
    headless = adapted(config, neox().base_model)
    assert_close(last_token_states(headless, SEQUENCES, [0, 1, "final"]),
                 last_states_by_transformers(copy.deepcopy(headless).merge_and_unload()))
    own = neox()
    own.add_adapter(config)
    own.load_state_dict({name.removeprefix("base_model.model."): weight for name, weight in model.state_dict().items()})
    assert_close(last_token_states(own, SEQUENCES, [0, 1, "final"]), expected)


def test_a_classifier_is_measured_by_its_decoder():
    model = llama(LlamaForSequenceClassification)
    assert torch.equal(last_token_states(model, SEQUENCES)["final"],
                       last_token_states(model.model, SEQUENCES)["final"])


def test_the_active_adapter_counts_and_none_that_is_disabled():
    model = adapted(ADAPTERS["LoRA"])
    first = last_token_states(model, SEQUENCES)["final"]
    model.add_adapter("other", peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, **TASK))
    model.set_adapter("other")
    other = last_token_states(model, SEQUENCES)["final"]
    merged = copy.deepcopy(model)
    merged.delete_adapter("default")
    expected = last_states_by_transformers(merged.merge_and_unload())["final"]
    torch.testing.assert_close(other, expected, rtol=0, atol=5e-6)
    model.set_adapter("default")
    assert torch.equal(last_token_states(model, SEQUENCES)["final"], first) and not torch.equal(first, other)
    with model.disable_adapter():
        plain = last_token_states(model, SEQUENCES)["final"]
        assert adapters(model) == []
    assert torch.equal(plain, last_token_states(llama(), SEQUENCES)["final"])


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_adapters_named_are_those_that_peft_calls_active(name):
    model = adapted(ADAPTERS[name])
    assert adapters(model) == peft.get_model_status(model).active_adapters == ["default"]


def test_none_is_named_that_is_inactive_merged_or_not_there():
    model = adapted(ADAPTERS["LoRA"])
    model.add_adapter("other", peft.LoraConfig(r=2, target_modules=["v_proj"], **TASK))
    assert adapters(model) == ["default"] and adapters(llama()) == []
    model.set_adapter("other")
    assert adapters(model) == peft.get_model_status(model).active_adapters == ["other"]
    assert adapters(model.merge_and_unload()) == []


PROMPTS = {
    "PROMPT_TUNING": peft.PromptTuningConfig(num_virtual_tokens=3, **TASK),
    "PREFIX_TUNING": peft.PrefixTuningConfig(num_virtual_tokens=3, **TASK),
    "P_TUNING": peft.PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=8, **TASK),
}


@pytest.mark.parametrize("kind", PROMPTS)
def test_learned_tokens_before_the_text_are_refused_unless_they_are_disabled(kind):
    model = peft.get_peft_model(llama(), PROMPTS[kind])
    with pytest.raises(TypeError, match=f"an adapter of the kind {kind}, which puts learned tokens"):
        last_token_states(model, SEQUENCES)
    with model.disable_adapter():
        assert torch.equal(last_token_states(model, SEQUENCES)["final"],
                           last_token_states(llama(), SEQUENCES)["final"])


def test_adapters_that_do_more_than_their_layers_are_refused(tmp_path):
    activated = peft.LoraConfig(r=2, target_modules=["q_proj"], alora_invocation_tokens=[1, 2], **TASK)
    with pytest.raises(TypeError, match="of the kind aLoRA, which depends on more"):
        last_token_states(peft.get_peft_model(llama(), activated), SEQUENCES)
    peft.get_peft_model(llama(), ADAPTERS["LoRA"]).save_pretrained(tmp_path)
    model = llama()
    model.config.use_cache = False
    mixed = peft.get_peft_model(model, peft.XLoraConfig(hidden_size=16, adapters={"0": str(tmp_path)}, **TASK))
    with pytest.raises(TypeError, match="of the kind XLORA, which depends on more"):
        last_token_states(mixed, SEQUENCES)


def wrapped(how, model):
    """A new adapter of LoRA does nothing yet."""
    new = peft.LoraConfig(r=2, target_modules=["q_proj"])
    if how == "compiled":
        return torch.compile(model, backend="eager")
    if how == "a compiled adapter":
        return torch.compile(peft.get_peft_model(model, new), backend="eager")
    if how == "a compiled decoder":
        model.model = torch.compile(model.model, backend="eager")
    if how == "an adapter on the decoder":
        model.model = peft.get_peft_model(model.model, new)
    return torch.nn.DataParallel(model) if how == "DataParallel" else model


@pytest.mark.parametrize("how", ["compiled", "a compiled adapter", "a compiled decoder", "an adapter on the decoder",
                                 "DataParallel"])
def test_wrappers_change_nothing(how):
    found = last_token_states(wrapped(how, llama()), SEQUENCES)["final"]
    assert torch.equal(found, last_token_states(llama(), SEQUENCES)["final"])


def test_a_model_in_ddp_is_measured_by_one_process_alone():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = llama()
        found = last_token_states(torch.nn.parallel.DistributedDataParallel(model), SEQUENCES)["final"]
    finally:
        torch.distributed.destroy_process_group()
    assert torch.equal(found, last_token_states(model, SEQUENCES)["final"])


@pytest.mark.parametrize("model", [None, "a name", torch.nn.Linear(2, 2), object()])
def test_what_is_no_model_is_said_to_be_none(model):
    with pytest.raises(TypeError, match=f"expected a transformers model, got {type(model).__name__}"):
        last_token_states(model, SEQUENCES)

"""Hidden states of the last token, against the models themselves.

Trusted: transformers' own output of one sequence at a time, without padding or batch: `output_hidden_states` for the
embeddings and the inner blocks, `last_hidden_state` for what follows the final norm, and `last_hidden_state` of a copy
whose final norm is replaced by the identity for the last block before it. In the three classes below, the last entry of
`output_hidden_states` is after the norm, which a test of its own pins down. Models are tiny and random, with weights
large enough that attention and position matter.
"""

import copy
import re

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertModel,
    Olmo2Config,
    Olmo2ForCausalLM,
)
from transformers.utils import logging

from reptrace.models import hidden_states
from reptrace.models.batches import TooLittleMemoryError
from reptrace.models.hidden_states import NonFiniteError, extract, last_token_states, unpadded
from reptrace.models.loading import load, placement

LAYERS, VOCABULARY, CONTEXT = 3, 97, 64
SHAPE = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
         "intermediate_size": 48, "max_position_embeddings": CONTEXT, "bos_token_id": 1, "eos_token_id": 2,
         "pad_token_id": 0}
CLASSES = {
    "GPTNeoX": (GPTNeoXForCausalLM, GPTNeoXConfig, {"hidden_dropout": 0.1}, "final_layer_norm"),
    "Olmo2": (Olmo2ForCausalLM, Olmo2Config, {}, "norm"),
    "Llama": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 2}, "norm"),
}
# Values reach 8. Float64 and float32 differ by the order of their sums, 1e-16 and 1e-7 of 8 each, in three blocks;
# bfloat16 numbers near 8 lie 0.06 apart: two of these steps.
TOLERANCES = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 0.125}
# Rotary angles are float32 in a model of any dtype, and a GPU rounds their sines otherwise: seen 5e-7 on an H200.
TWO_DEVICES = TOLERANCES[torch.float32]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(scope="module", autouse=True)
def quiet():
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    yield
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


def tiny(name="Llama", dtype=torch.float64):
    model_class, config_class, options, _ = CLASSES[name]
    torch.manual_seed(0)
    return model_class(config_class(**SHAPE, **options, initializer_range=0.2)).to(dtype).eval()


@pytest.fixture
def sequences():
    """Lengths out of order, repeated, of one token and of the whole context; id 0, the padding, among the real ones."""
    lengths = [5, 1, 40, 12, CONTEXT, 12, 3, 29, 2, 7]
    drawn = [torch.randint(0, VOCABULARY, (length,)).tolist() for length in lengths]
    drawn[3][-1] = drawn[5][0] = drawn[6][1] = 0
    return drawn


@torch.no_grad()
def own_states(model, name, sequences):
    """What transformers gives for each sequence alone: layer -> states of the last tokens, shape (M, d)."""
    normless = copy.deepcopy(model)
    setattr(normless.base_model, CLASSES[name][3], torch.nn.Identity())
    rows = {layer: [] for layer in [*range(LAYERS + 1), "final"]}
    for sequence in sequences:
        ids = torch.tensor([sequence])
        states = model(ids, output_hidden_states=True).hidden_states
        for k in range(LAYERS):
            rows[k].append(states[k][0, -1])
        rows[LAYERS].append(normless.base_model(ids).last_hidden_state[0, -1])
        rows["final"].append(model.base_model(ids).last_hidden_state[0, -1])
    return {layer: torch.stack(found) for layer, found in rows.items()}


def same(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[layer], expected[layer]) for layer in expected)


def hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


# Agreement with the models


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", CLASSES)
def test_every_layer_equals_the_models_own_unbatched_output(name, dtype, sequences):
    model = tiny(name, dtype)
    found = last_token_states(model, sequences, "all", batch_size=2)
    assert list(found) == [0, 1, 2, 3, "final"]
    for layer, expected in own_states(model, name, sequences).items():
        torch.testing.assert_close(found[layer], expected.to(found[layer].dtype), rtol=0, atol=TOLERANCES[dtype])


@pytest.mark.parametrize("name", CLASSES)
def test_the_default_layer_is_what_the_final_norm_makes_of_the_last_block(name, sequences):
    model = tiny(name)
    default = last_token_states(model, sequences)
    assert list(default) == ["final"]
    norm = getattr(model.base_model, CLASSES[name][3])
    with torch.no_grad():
        normed = norm(last_token_states(model, sequences, [LAYERS])[LAYERS])
    torch.testing.assert_close(default["final"], normed, rtol=0, atol=TOLERANCES[torch.float64])


@pytest.mark.parametrize("name", CLASSES)
def test_the_last_of_transformers_own_hidden_states_is_after_the_norm_in_these_classes(name):
    model, ids = tiny(name), torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        last = model(ids, output_hidden_states=True).hidden_states[-1]
        assert torch.equal(last, model.base_model(ids).last_hidden_state)


@pytest.mark.parametrize("name", CLASSES)
def test_the_default_layer_is_what_the_lm_head_receives(name, sequences):
    model, received = tiny(name), []
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda module, args: received.append(args[0]))
    with torch.no_grad():
        model(torch.tensor([sequences[3]]))
    handle.remove()
    found = last_token_states(model, sequences)["final"]
    torch.testing.assert_close(found[3], received[0][0, -1], rtol=0, atol=TOLERANCES[torch.float64])


@pytest.mark.parametrize("name", CLASSES)
def test_a_model_with_and_without_its_lm_head_gives_the_same(name, sequences):
    model = tiny(name)
    with_head, without = (last_token_states(m, sequences)["final"] for m in (model, model.base_model))
    assert torch.equal(with_head, without)


# Identities


@pytest.mark.parametrize("batch_size", [1, 3, 10, 1000])
def test_batch_size_does_not_matter(batch_size, sequences):
    model = tiny("GPTNeoX")
    found = last_token_states(model, sequences, "all", batch_size)
    for layer, states in last_token_states(model, sequences, "all", batch_size=2).items():
        torch.testing.assert_close(found[layer], states, rtol=0, atol=TOLERANCES[torch.float64])


@pytest.mark.parametrize("kind", [tuple, np.array, torch.tensor, lambda s: np.array(s, np.int32)],
                         ids=["tuple", "array", "tensor", "int32"])
def test_token_ids_may_come_in_any_container(kind, sequences):
    model = tiny()
    found = last_token_states(model, [kind(sequence) for sequence in sequences])
    assert same(found, last_token_states(model, sequences))


def test_rows_come_in_the_order_of_the_sequences(sequences):
    model = tiny()
    order = torch.randperm(len(sequences))
    found = last_token_states(model, [sequences[k] for k in order], batch_size=3)["final"]
    expected = last_token_states(model, sequences, batch_size=3)["final"][order]
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCES[torch.float64])


def test_layers_come_in_the_order_asked_for_each_once(sequences):
    assert list(last_token_states(tiny(), sequences, ["final", 1, 0, 1])) == ["final", 1, 0]


@pytest.mark.parametrize("side", ["left", "right", "none"])
def test_padding_on_either_side_or_none_gives_the_same_features(side, sequences):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<pad>": 0}, "<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>")
    if side == "none":
        given = [unpadded(tokenizer.pad({"input_ids": [sequence]}, return_tensors="pt"))[0] for sequence in sequences]
    else:
        padded = tokenizer.pad({"input_ids": sequences}, padding_side=side, return_tensors="pt")
        assert padded["input_ids"].shape == (len(sequences), CONTEXT)
        given = unpadded(padded)
    assert given == sequences  # padding goes, a real token with the padding's id stays
    model = tiny()
    found = last_token_states(model, given)["final"]
    expected = own_states(model, "Llama", sequences)["final"]
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCES[torch.float64])


@pytest.mark.parametrize(("dtype", "kept"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float32),
                                             (torch.float64, torch.float64)], ids=str)
def test_features_are_float32_and_float64_only_for_a_float64_model(dtype, kept, sequences):
    found = last_token_states(tiny(dtype=dtype), sequences)["final"]
    assert found.dtype == kept and found.shape == (len(sequences), 32) and found.device.type == "cpu"
    assert not found.requires_grad


# Batches and memory


@pytest.fixture
def memory():
    """Sets a model's memory: it raises an error at a batch of more tokens, padding included. Returns batches tried."""
    handles = []

    def limit(model, tokens, error=None):
        tried = []

        def check(module, args, kwargs):
            tried.append(tuple(kwargs["input_ids"].shape))
            if kwargs["input_ids"].numel() > tokens:
                raise error or torch.OutOfMemoryError("CUDA out of memory.")

        handles.append(model.base_model.register_forward_pre_hook(check, with_kwargs=True))
        return tried

    yield limit
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."),
                                   RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
                                   MemoryError()], ids=lambda error: type(error).__name__)
def test_auto_halves_the_batch_where_memory_runs_out_and_goes_on(error, memory, sequences):
    model = tiny()
    expected = last_token_states(model, sequences, "all")
    tried = memory(model, 2 * CONTEXT, error)
    found = extract(model, sequences, "all", "auto")
    assert found.token_budget == 2 * CONTEXT  # of 10 sequences, 5, then 2 of the longest
    # before its batches: whether the model is causal, and whether a long sequence beside or before a short one matters
    checks = [(1, 2), (1, 2), (1, 12), (2, 64), (1, 12)]
    assert tried[:5] == checks and tried[5:8] == [(10, 64), (5, 64), (2, 64)]
    assert all(rows == 1 for rows, _ in tried[-3:])  # and afterwards, whether its batches did matter
    for layer, states in expected.items():
        torch.testing.assert_close(found.features[layer], states, rtol=0, atol=TOLERANCES[torch.float64])
    assert hooks(model) == 1  # the memory's own


def test_memory_that_runs_out_later_costs_nothing_already_measured(memory, sequences):
    model = tiny()
    expected = last_token_states(model, sequences)["final"]
    failures = iter([torch.OutOfMemoryError("once")])

    def fail_once(module, args, kwargs):
        if kwargs["input_ids"].shape == (4, 29) and (failure := next(failures, None)):
            raise failure

    handle = model.base_model.register_forward_pre_hook(fail_once, with_kwargs=True)
    memory(model, 2 * CONTEXT)
    found = extract(model, sequences, ("final",), "auto")
    handle.remove()
    assert found.token_budget == 2 * 29  # four of 29 had fitted into the two contexts that memory holds
    torch.testing.assert_close(found.features["final"], expected, rtol=0, atol=TOLERANCES[torch.float64])


def test_a_given_batch_that_does_not_fit_is_an_error_that_says_which_does(memory, sequences):
    model = tiny()
    memory(model, 3 * CONTEXT)
    with pytest.raises(TooLittleMemoryError, match=r'batch of 8 sequences of 64 tokens .*cpu, 2 of them do: try '
                                                   r'batch_size=2, or batch_size="auto"'):
        last_token_states(model, sequences, batch_size=8)
    assert hooks(model) == 1
    last_token_states(model, sequences, batch_size=2)  # the advice is good


@pytest.mark.parametrize("tokens", [CONTEXT - 1, 1])
@pytest.mark.parametrize("batch_size", [1, 8, "auto"])
def test_not_even_one_sequence_is_an_error_with_the_models_size_and_what_to_try(batch_size, tokens, memory, sequences):
    model = tiny()
    memory(model, tokens)
    with pytest.raises(TooLittleMemoryError, match=r'not even one .*model\'s 0\.0 GB in float64.*device="auto"'):
        last_token_states(model, sequences, batch_size=batch_size)


@pytest.mark.parametrize(("batch_size", "budget"), [(3, 3 * CONTEXT), ("auto", 2**18 // 32)])
def test_the_token_budget_is_told_with_the_features(batch_size, budget, memory, sequences):
    model = tiny()
    tried = memory(model, 10**6)
    found = extract(model, sequences, "all", batch_size)
    assert found.token_budget == budget >= max(rows * length for rows, length in tried)
    assert same(found.features, last_token_states(model, sequences, "all", batch_size))


@pytest.mark.parametrize("limit", [0, 700, 10**6])
def test_features_gathered_before_they_are_copied_are_the_same(limit):
    model, rows = tiny().base_model, torch.randperm(9).tolist()
    states = {name: torch.randn(9, 32, dtype=torch.float64) for name in (0, "final")}
    results, spare = hidden_states._Results(model, 9, list(states), limit), torch.randn(9, 2, 3, dtype=torch.float64)
    for start in (0, 3, 6):
        part = slice(start, start + 3)
        results.add(rows[part], {name: given[part] for name, given in states.items()}, {"a": spare[part]})
    results.flush()
    for name, given in states.items():
        assert torch.equal(results.features[name][rows], given)
    assert torch.equal(results.reduced["a"][rows], spare)


def test_among_gathered_features_the_first_layer_and_row_of_nan_are_named():
    results = hidden_states._Results(tiny().base_model, 9, [0, 1, "final"], 10**6)
    for rows in ([4, 2, 7], [1, 0, 8]):
        states = {name: torch.zeros(3, 32) for name in (0, 1, "final")}
        if 1 in rows:
            states[1][1], states["final"][0] = float("nan"), float("inf")
        results.add(rows, states, {})
    with pytest.raises(NonFiniteError, match="sequence 0 at layer 1 holds"):
        results.flush()


def mean_of_tokens(hidden, last):
    real = torch.arange(hidden.shape[1]) <= last[:, None]
    return (hidden * real[:, :, None]).sum(1) / (last + 1)[:, None]


@pytest.mark.parametrize("name", CLASSES)
def test_a_reduction_sees_all_tokens_of_every_layer_as_the_model_gives_them_alone(name, sequences):
    model = tiny(name)
    found = extract(model, sequences, "all", 2, reductions={"mean": mean_of_tokens, "last": lambda _, last: last})
    for layer, expected in last_token_states(model, sequences, "all", 2).items():
        torch.testing.assert_close(found.features[layer], expected, rtol=0, atol=TOLERANCES[torch.float64])
        assert found.reduced["last"][layer].tolist() == [len(sequence) - 1 for sequence in sequences]
    with torch.no_grad():
        for row, sequence in enumerate(sequences):
            states = model(torch.tensor([sequence]), output_hidden_states=True).hidden_states
            expected = [*states[:LAYERS], model.base_model(torch.tensor([sequence])).last_hidden_state]
            for layer, each in zip([*range(LAYERS), "final"], expected, strict=True):
                torch.testing.assert_close(found.reduced["mean"][layer][row], each[0].mean(0), rtol=0,
                                           atol=TOLERANCES[torch.float64])


def test_a_reduction_is_right_where_memory_ran_out_on_the_way(memory, sequences):
    model = tiny()
    whole = extract(model, sequences, "all", 2, reductions={"mean": mean_of_tokens}).reduced["mean"]
    memory(model, 100)
    found = extract(model, sequences, "all", "auto", reductions={"mean": mean_of_tokens}).reduced["mean"]
    for layer, expected in whole.items():
        torch.testing.assert_close(found[layer], expected, rtol=0, atol=TOLERANCES[torch.float64])


# Several devices


@pytest.mark.parametrize("offload", ["cpu", "disk"])
@pytest.mark.parametrize("name", CLASSES)
def test_a_model_whose_weights_accelerate_puts_away_gives_the_same_to_the_bit(name, offload, tmp_path, sequences):
    import accelerate

    model = tiny(name, torch.float32)
    expected = last_token_states(model, sequences, "all")
    if offload == "cpu":
        accelerate.cpu_offload(model, execution_device="cpu")
    else:
        accelerate.disk_offload(model, str(tmp_path), execution_device="cpu")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert same(last_token_states(model, sequences, "all"), expected)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_device_auto_without_a_gpu_is_the_cpu_in_float32(tmp_path, sequences):
    tiny(dtype=torch.float32).save_pretrained(tmp_path)
    assert placement("auto") == ("auto", "float32")
    found = last_token_states(load(str(tmp_path), device="auto"), sequences, "all")
    assert same(found, last_token_states(load(str(tmp_path), device="cpu"), sequences, "all"))


@needs_gpu
@pytest.mark.gpu
def test_device_auto_spreads_a_model_over_the_gpus(tmp_path, sequences):
    tiny().save_pretrained(tmp_path)
    assert placement("auto") == ("auto", "bfloat16")
    found = last_token_states(load(str(tmp_path), device="auto", dtype="float64"), sequences, "all")
    for layer, states in last_token_states(tiny(), sequences, "all").items():
        torch.testing.assert_close(found[layer], states, rtol=0, atol=TWO_DEVICES)


def test_device_auto_leaves_on_the_disk_what_no_memory_holds(tmp_path, monkeypatch, sequences):
    from transformers.integrations import accelerate as placing

    model = tiny(dtype=torch.float32)
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(placing, "accelerate_max_memory", lambda *_: {"cpu": 80_000})
    spread = load(str(tmp_path), device="auto", dtype="float32")
    assert set(spread.hf_device_map.values()) == {"cpu", "disk"}
    assert same(last_token_states(spread, sequences, "all"), last_token_states(model, sequences, "all"))


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("batch_size", [2, "auto"])
@pytest.mark.parametrize("name", CLASSES)
def test_a_gpu_gives_what_the_cpu_gives(name, batch_size, sequences):
    expected = last_token_states(tiny(name), sequences, "all")
    found = last_token_states(tiny(name).cuda(), sequences, "all", batch_size)
    for layer, states in expected.items():
        assert found[layer].device.type == "cpu"
        torch.testing.assert_close(found[layer], states, rtol=0, atol=TWO_DEVICES)


@needs_gpu
@pytest.mark.gpu
def test_load_puts_a_model_on_the_gpu_in_bfloat16(tmp_path, sequences):
    tiny(dtype=torch.float32).save_pretrained(tmp_path)
    model = load(str(tmp_path))
    assert {(parameter.device.type, parameter.dtype) for parameter in model.parameters()} == {("cuda", torch.bfloat16)}
    expected = last_token_states(tiny(dtype=torch.float32), sequences)["final"]
    torch.testing.assert_close(last_token_states(model, sequences)["final"], expected, rtol=0,
                               atol=TOLERANCES[torch.bfloat16])


@needs_gpu
@pytest.mark.gpu
def test_a_gpu_that_runs_out_of_memory_is_noticed(sequences):
    torch.manual_seed(0)
    shape = SHAPE | {"hidden_size": 512, "intermediate_size": 8192, "max_position_embeddings": 1024}
    model = LlamaForCausalLM(LlamaConfig(**shape)).cuda().eval()
    many = torch.randint(0, VOCABULARY, (64, 1024)).tolist()  # 64k tokens: 2 GB an intermediate in float32
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(1.5e9 / total)
    try:
        with pytest.raises(TooLittleMemoryError, match="of them do: try batch_size="):
            last_token_states(model, many, batch_size=64)
        found = last_token_states(model, many, batch_size="auto")["final"]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    one_by_one = last_token_states(model, many, batch_size=1)["final"]
    torch.testing.assert_close(found, one_by_one, rtol=0, atol=1e-4)


# What is left as it was


def test_the_lm_head_is_never_run(sequences):
    model, calls = tiny(), []
    model.get_output_embeddings().register_forward_hook(lambda *_: calls.append(1))
    last_token_states(model, sequences, "all")
    assert not calls
    model(torch.tensor([sequences[0]]))
    assert calls  # the count does count


def test_sequences_are_left_as_they_are(sequences):
    before = copy.deepcopy(sequences)
    last_token_states(tiny(), sequences)
    assert sequences == before


@pytest.mark.parametrize("failure", [None, RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("training", [True, False])
def test_hooks_come_off_and_the_training_mode_comes_back_even_after_an_exception(failure, training, sequences):
    model = tiny("GPTNeoX").train(training)

    def fail(*_):
        assert not model.base_model.training
        if failure:
            raise failure("on the way")

    handle = model.base_model.layers[1].register_forward_hook(fail)
    if failure:
        with pytest.raises(failure, match="on the way"):
            last_token_states(model, sequences, "all")
    else:
        last_token_states(model, sequences, "all")
    handle.remove()
    assert hooks(model) == 0
    assert all(module.training == training for module in model.modules())


def test_a_part_that_its_owner_keeps_in_another_mode_stays_in_that_mode(sequences):
    model = tiny("GPTNeoX").train()
    model.base_model.layers[1].eval()  # frozen, say, its dropout off
    before = [module.training for module in model.modules()]
    last_token_states(model, sequences)
    assert [module.training for module in model.modules()] == before


def test_dropout_is_off_while_a_model_in_training_is_measured(sequences):
    model = tiny("GPTNeoX")
    expected = last_token_states(model, sequences)["final"]
    assert torch.equal(last_token_states(model.train(), sequences)["final"], expected)
    with torch.no_grad():  # positive control: its dropout would show
        noisy = model.base_model(torch.tensor([sequences[0]])).last_hidden_state[0, -1]
    assert (noisy - expected[0]).abs().max() > 0.01


# Errors


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("batch_size", [1, 16])
def test_non_finite_weights_are_named_by_the_sequence_they_spoil(bad, batch_size, sequences):
    sequences = [[token if token != 50 else 51 for token in sequence] for sequence in sequences]
    sequences[7][3] = 50
    model = tiny()
    model.get_input_embeddings().weight.data[50] = bad
    with pytest.raises(NonFiniteError, match=r"sequence 7 at layer \w+ holds NaN or infinity"):
        last_token_states(model, sequences, batch_size=batch_size)
    sequences[7][3] = 51
    last_token_states(model, sequences, batch_size=batch_size)  # no other sequence is spoiled


@pytest.mark.parametrize("block", range(LAYERS))
def test_non_finite_weights_are_named_by_the_first_layer_they_spoil(block, sequences):
    model = tiny("GPTNeoX")
    next(model.base_model.layers[block].parameters()).data[0] = float("nan")
    with pytest.raises(NonFiniteError, match=f"at layer {block + 1} holds"):
        last_token_states(model, sequences, "all")
    assert hooks(model) == 0


def test_float16_is_refused_by_the_forward_pass_and_by_load(sequences):
    with pytest.raises(TypeError, match="float16"):
        last_token_states(tiny(dtype=torch.float16), sequences)
    with pytest.raises(TypeError, match="float16"):
        load("nobody/nothing", dtype=torch.float16)


@pytest.mark.parametrize(("change", "says"), [
    pytest.param(lambda s: [], "no sequences", id="no sequences"),
    pytest.param(lambda s: [*s, []], "sequence 10 is empty", id="an empty one"),
    pytest.param(lambda s: [*s, [VOCABULARY]], f"sequence 10 .*{VOCABULARY}.*vocabulary", id="id too high"),
    pytest.param(lambda s: [*s, [3, -1]], "sequence 10 .*token id -1", id="negative id"),
    pytest.param(lambda s: [*s, [2**40]], f"sequence 10 .*token id {2**40}", id="far too high"),
    pytest.param(lambda s: [*s, [1] * (CONTEXT + 1)], f"sequence 10 has {CONTEXT + 1} .*is {CONTEXT}", id="long"),
])
def test_sequences_that_cannot_be_measured_are_named(change, says, sequences):
    with pytest.raises(ValueError, match=says):
        last_token_states(tiny(), change(sequences))


@pytest.mark.parametrize("wrong", [[1.0, 2.0], ["a"], [[1, 2]], [2**70]], ids=str)
def test_sequences_that_are_not_lists_of_whole_numbers_are_named(wrong, sequences):
    with pytest.raises(TypeError, match="sequence 1 is not a list of token ids"):
        last_token_states(tiny(), [sequences[0], wrong])


@pytest.mark.parametrize("wrong", ["some text", ["one", "two"], [1, 2, 3]], ids=str)
def test_texts_and_a_single_sequence_are_refused_with_what_to_pass(wrong):
    with pytest.raises(TypeError, match=r"a list of (lists of )?token ids.*measure\(model, texts\)"):
        last_token_states(tiny(), wrong)


@pytest.mark.parametrize("trust", ["me/mine", 1, None])
def test_trust_is_yes_or_no_and_no_name(trust, tmp_path):
    with pytest.raises(TypeError, match="trust_remote_code is True or False, got"):
        load(str(tmp_path), device="cpu", trust_remote_code=trust)


@pytest.mark.parametrize("layers", [[LAYERS + 1], [-1], ["last"], [], "final", [0.5], 1])
def test_an_unknown_layer_is_refused_with_the_ones_there_are(layers, sequences):
    with pytest.raises(ValueError, match=re.escape(f'layers must be "all" or a list of 0..{LAYERS} and "final"')):
        last_token_states(tiny(), sequences, layers)


@pytest.mark.parametrize("batch_size", [0, -1, 2.5])
def test_a_batch_size_that_is_not_a_positive_whole_number_is_refused(batch_size, sequences):
    with pytest.raises(ValueError, match="batch_size"):
        last_token_states(tiny(), sequences, batch_size=batch_size)


@pytest.mark.parametrize("initializer_range", [0.2, 0.02], ids=["strong attention", "transformers default"])
def test_a_bidirectional_model_is_refused_as_not_causal(initializer_range, sequences):
    special = {"cls_token_id": 1, "sep_token_id": 2}
    torch.manual_seed(0)
    model = ModernBertModel(ModernBertConfig(**SHAPE, **special, initializer_range=initializer_range))
    ids = torch.tensor([[5, 6], [5, 7]])
    with torch.no_grad():
        first = model(ids).last_hidden_state[:, 0]
    assert (first[0] - first[1]).abs().max() > 1e-3  # it does look ahead, a thousand times beyond float32's rounding
    with pytest.raises(ValueError, match="not causal"):
        last_token_states(model, sequences)


def test_a_model_without_a_decoders_blocks_is_refused(sequences):
    with pytest.raises((ValueError, TypeError), match=r"decoder|causal"):
        last_token_states(BertModel(BertConfig(**SHAPE)), sequences)
    with pytest.raises(TypeError, match="expected a transformers model, got Linear"):
        last_token_states(torch.nn.Linear(3, 3), sequences)


def test_a_padded_batch_without_its_mask_is_refused():
    with pytest.raises(ValueError, match="attention_mask"):
        unpadded({"input_ids": torch.ones(2, 3)})


class TokenShift(torch.nn.Module):
    """An MLP that sees the token before, too, as RWKV's and Primer's do."""

    def __init__(self, mlp):
        super().__init__()
        self.mlp = mlp

    def forward(self, x):
        return self.mlp(x + torch.nn.functional.pad(x[:, :-1], (0, 0, 1, 0)))


def replaced(model):
    for block in model.model.layers:
        block.mlp = TokenShift(block.mlp)


def hooked(model):
    for block in model.model.layers:
        block.mlp.register_forward_pre_hook(lambda module, args: (args[0] + args[0].cumsum(1),))


@pytest.mark.parametrize("change", [replaced, hooked])
def test_an_mlp_that_sees_more_than_one_token_gets_them_all(change, sequences):
    """The last block's MLP passes the last token alone only where it is transformers' own."""
    model = tiny()
    change(model)
    found = last_token_states(model, sequences, batch_size=4)["final"]
    with torch.no_grad():
        expected = torch.stack([model.model(torch.tensor([s])).last_hidden_state[0, -1] for s in sequences])
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCES[torch.float64])

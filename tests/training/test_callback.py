"""Trusted: the Trainer's log and reporters, a training without the callback, PEFT's merged model, torch's wrappers."""

import copy
import gc
import logging
import os
import random
import re
import socket
import weakref
from functools import partial

import numpy as np
import peft
import pytest
import torch
from accelerate.state import AcceleratorState
from limits import SOON, beside
from transformers import (
    BatchEncoding,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import reptrace
from reptrace.models.hidden_states import last_token_states
from reptrace.texts.probes import Probe

SEQUENCES = [np.random.default_rng(k).integers(0, 50, 6 + k % 5).tolist() for k in range(40)]
SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 32,
         "max_position_embeddings": 16}


class Reporter(TrainerCallback):
    """Stands where TensorBoard and W&B stand: among the callbacks that the Trainer is made with."""

    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen.append((state.global_step, dict(logs)))


def neox(**options):
    """With dropout, so that random numbers that measuring used up would show in the weights."""
    torch.manual_seed(0)
    return GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, hidden_dropout=0.2, attention_dropout=0.2, **options))


def llama(**options):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, attention_dropout=0.2, **options))


def lora(model):
    names = ["query_key_value", "dense_h_to_4h"] if "NeoX" in type(model).__name__ else ["q_proj", "down_proj"]
    config = peft.LoraConfig(r=4, target_modules=names, lora_dropout=0.2, task_type="CAUSAL_LM")
    return peft.get_peft_model(model, config)


def train(tmp_path, model=None, reporter=None, trainer_class=Trainer, tokens=8, arguments=None, beside=(),
          sequences=SEQUENCES, **options):
    """Six steps; the callback takes part where it has options."""
    data = [{"input_ids": torch.arange(tokens) % (k + 2), "labels": torch.arange(tokens) % (k + 2)} for k in range(40)]
    settings = TrainingArguments(str(tmp_path), **{
        "max_steps": 6, "per_device_train_batch_size": 4, "use_cpu": True, "report_to": "none", "save_strategy": "no",
        "disable_tqdm": True, "logging_steps": 2, **(arguments or {})})
    reporter = reporter or Reporter()
    trainer = trainer_class(neox() if model is None else model, settings, train_dataset=data,
                            callbacks=[*beside, reporter])
    if options:
        trainer.add_callback(reptrace.GeometryCallback(trainer, sequences, **options))
    trainer.train()
    return trainer, reporter


def weights(trainer):
    return trainer.model.state_dict()


def assert_same_weights(one, other):
    assert weights(one).keys() == weights(other).keys()
    assert [name for name, value in weights(one).items() if not torch.equal(value, weights(other)[name])] == []


def rankme_by_numpy(states):
    s = np.linalg.eigvalsh(np.cov(states.double().numpy().T, bias=True))
    p = s[s > 1e-12 * s.max()] / s[s > 1e-12 * s.max()].sum()
    return np.exp(-(p * np.log(p)).sum())


def last_states_by_transformers(model):
    """After the final norm, one sequence at a time."""
    model.eval()
    with torch.inference_mode():
        return torch.stack([model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0, -1]
                            for ids in SEQUENCES])


def logged(trainer, name="geometry/rankme"):
    return {row["step"]: row[name] for row in trainer.state.log_history if name in row}


@pytest.fixture
def said(caplog):
    """A function that gives the warnings of the callback so far, the last one being that of the end of training."""
    caplog.set_level(logging.WARNING, "reptrace")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "reptrace"]


# What is logged


@pytest.mark.parametrize("when, expected", [({"every": 2}, [0, 2, 4, 6]), ({"steps": [0, 5]}, [0, 5])])
def test_reporters_and_log_show_the_geometry_at_the_steps_asked_for(tmp_path, when, expected):
    trainer, reporter = train(tmp_path, **when, ranks=(2, 10))
    rows = [row for row in trainer.state.log_history if "geometry/rankme" in row]
    assert [row["step"] for row in rows] == expected
    assert [step for step, logs in reporter.seen if "geometry/rankme" in logs] == expected
    for name in ("rankme_stderr", "alpha", "alpha_stderr"):
        assert all(np.isfinite(row[f"geometry/{name}"]) for row in rows)
    assert all(0 < row["geometry/time_share"] < 1 for row in rows)


def test_the_last_logged_value_is_that_of_the_trained_model_by_numpy(tmp_path):
    trainer, _ = train(tmp_path, every=6)
    states = last_token_states(trainer.model, SEQUENCES)["final"]
    assert logged(trainer)[6] == pytest.approx(rankme_by_numpy(states), rel=1e-6)  # same features, float64


def test_the_trainers_own_rows_are_those_of_a_training_without_it(tmp_path):
    plain, _ = train(tmp_path / "a")
    measured, _ = train(tmp_path / "b", every=1)
    own = ("step", "epoch", "loss", "grad_norm", "learning_rate", "train_loss")
    rows = [[{name: row[name] for name in own if name in row} for row in trainer.state.log_history
             if not any(name.startswith("geometry") for name in row)] for trainer in (plain, measured)]
    assert rows[0] == rows[1] and [row["step"] for row in rows[0]] == [2, 4, 6, 6]


def test_several_layers_are_named(tmp_path):
    trainer, _ = train(tmp_path, every=6, layers="all")
    assert all(list(logged(trainer, f"geometry/{layer}/rankme")) == [0, 6] for layer in (0, 1, "final"))


def test_the_end_says_what_measuring_took_and_nothing_of_failures_where_there_were_none(tmp_path, said):
    train(tmp_path, every=3)
    (end,) = said()
    assert re.fullmatch(r"geometry took \d+\.\d s, \d+\.\d% of the training time", end)


# Training goes on as if nothing had been asked


def generators():
    _, keys, *place = np.random.get_state()
    return random.getstate(), keys.tolist(), place, torch.get_rng_state().tolist()


def test_training_itself_is_unchanged(tmp_path):
    plain, _ = train(tmp_path / "a")
    before = generators()
    measured, _ = train(tmp_path / "b", every=1)
    assert_same_weights(plain, measured)
    assert generators() == before and measured.model.training


def drawing(model, sequences, *options):
    random.random()
    np.random.rand()
    torch.rand(1)
    return last_token_states(model, sequences, *options)


def test_nor_would_it_be_if_measuring_drew_random_numbers(tmp_path, monkeypatch):
    plain, _ = train(tmp_path / "a")
    before = generators()
    monkeypatch.setattr("reptrace.training.callback.last_token_states", drawing)
    measured, _ = train(tmp_path / "b", every=1)
    assert_same_weights(plain, measured)
    assert generators() == before and list(logged(measured)) == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("fails", [False, True])
def test_so_it_is_on_a_gpu_whose_generator_stays_too(tmp_path, monkeypatch, fails):
    def measure(model, sequences, *options):
        torch.rand(1, device="cuda")
        if fails:
            torch.empty(10**15, device="cuda")
        return last_token_states(model, sequences, *options)

    plain, _ = train(tmp_path / "a", arguments={"use_cpu": False})
    before = torch.cuda.get_rng_state()
    monkeypatch.setattr("reptrace.training.callback.last_token_states", measure)
    measured, _ = train(tmp_path / "b", arguments={"use_cpu": False}, every=1)
    assert_same_weights(plain, measured)
    assert torch.equal(torch.cuda.get_rng_state(), before) and bool(logged(measured)) is not fails


def raising(error):
    def measure(*arguments, **options):
        torch.rand(3)
        raise error

    return measure


ERRORS = [ValueError("the hidden state of sequence 3 holds NaN"), TypeError("no float16"), KeyError("hidden_states"),
          AttributeError("no attribute"), RuntimeError("sizes differ"), MemoryError(), AssertionError(),
          torch.OutOfMemoryError("CUDA out of memory"), NotImplementedError(), OSError(5, "input/output error"),
          UserWarning("a warning that is an error"), StopIteration()]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_goes_wrong_is_one_warning_and_the_trained_weights_are_the_same(tmp_path, monkeypatch, said, error):
    plain, _ = train(tmp_path / "a")
    before = generators()
    monkeypatch.setattr("reptrace.training.callback.last_token_states", raising(error))
    trainer, reporter = train(tmp_path / "b", every=2)
    assert_same_weights(plain, trainer)
    assert generators() == before and trainer.state.global_step == 6
    warned, end = said()
    reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    assert warned.startswith(f"no geometry at step 0, training goes on: {reason}. ")
    assert end.endswith(f"; 4 of 4 measurements failed: 4 {type(error).__name__} (first at step 0)")
    ours = [set(logs) for _, logs in reporter.seen if any(name.startswith("geometry") for name in logs)]
    assert [names - {"epoch"} for names in ours] == [{"geometry/time_share"}] * 4


def test_a_warning_says_where_an_unforeseen_error_came_from_and_what_to_try_without_memory(
        tmp_path, monkeypatch, said):
    monkeypatch.setattr("reptrace.training.callback.last_token_states", raising(KeyError("x")))
    train(tmp_path / "a", steps=[0])
    assert "raised in test_callback.py, line" in said()[0] and "last_token_states(model, sequences)" in said()[0]
    monkeypatch.setattr("reptrace.training.callback.last_token_states", raising(torch.OutOfMemoryError("no room")))
    train(tmp_path / "b", steps=[0])
    assert "OutOfMemoryError: no room. Try a smaller batch_size, or fewer or shorter sequences." in said()[2]


class Failing(torch.nn.Module):
    """Around an MLP: in evaluation, from the second sequence or batch on, memory runs out."""

    def __init__(self, mlp):
        super().__init__()
        self.mlp, self.seen = mlp, []

    def forward(self, hidden):
        if not self.training:
            self.seen.append(weakref.ref(hidden))
            if len(self.seen) > 4:  # these were the checks for causality and for what the batch does
                torch.rand(1)
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.mlp(hidden)


def test_memory_that_runs_out_in_the_middle_leaves_no_hook_no_mode_and_no_tensor(tmp_path, said):
    def failing():
        model = neox()
        model.base_model.layers[0].mlp = Failing(model.base_model.layers[0].mlp)
        model.base_model.final_layer_norm.eval()  # somebody's own choice, if an odd one
        return model

    plain, _ = train(tmp_path / "a", failing())
    model = failing()
    trainer, _ = train(tmp_path / "b", model, every=2, layers="all", batch_size=1)
    assert_same_weights(plain, trainer)
    warned, end = said()[-2:]
    assert "TooLittleMemoryError: not even one sequence" in warned and "Try a smaller batch_size" in warned
    assert "4 of 4 measurements failed: 4 TooLittleMemoryError (first at step 0)" in end
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
    gc.collect()
    seen = model.base_model.layers[0].mlp.seen
    assert len(seen) > 5 and not any(hidden() is not None for hidden in seen)


def test_gradients_and_what_needs_them_stay(tmp_path):
    trainer, _ = train(tmp_path, lora(neox()), every=6)
    model, (callback,) = trainer.model, (each for each in trainer.callback_handler.callbacks
                                         if isinstance(each, reptrace.GeometryCallback))
    batch = torch.ones(2, 8, dtype=int)
    model(batch, labels=batch).loss.backward()
    needed = [parameter.requires_grad for parameter in model.parameters()]
    gradients = {parameter: parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None}
    callback.on_step_end(trainer.args, trainer.state, trainer.control, model=model)
    assert needed == [parameter.requires_grad for parameter in model.parameters()] and any(needed) and not all(needed)
    assert {parameter for parameter in model.parameters() if parameter.grad is not None} == set(gradients)
    assert all(torch.equal(parameter.grad, gradient) for parameter, gradient in gradients.items())
    model(batch, labels=batch).loss.backward()


def test_what_was_held_is_free_before_the_next_step(tmp_path, monkeypatch):
    held, alive = [], []

    def measure(*arguments, **options):
        activations = [torch.ones(10)]
        activations.append(activations)  # a cycle, as hooks and closures make
        held.append(weakref.ref(activations[0]))
        raise torch.OutOfMemoryError

    class Look(TrainerCallback):
        def on_log(self, *arguments, **options):
            alive.extend(reference() is not None for reference in held)

    gc.disable()  # nothing is freed by chance
    try:
        monkeypatch.setattr("reptrace.training.callback.last_token_states", measure)
        train(tmp_path, beside=[Look()], every=2)
    finally:
        gc.enable()
    assert len(held) == 4 and alive and not any(alive)


class Poison(TrainerCallback):
    """NaN in a weight from a step on."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 3:
            with torch.no_grad():
                model.base_model.layers[0].mlp.dense_h_to_4h.weight[0] = torch.nan


def test_failures_of_one_kind_are_told_once_and_counted_at_the_end(tmp_path, said):
    trainer, _ = train(tmp_path, beside=[Poison()], every=1, arguments={"max_steps": 40})
    warned, end = said()
    assert "no geometry at step 3, training goes on: NonFiniteError: the hidden state of sequence " in warned
    assert "38 of 41 measurements failed: 38 NonFiniteError (first at step 3)" in end
    assert list(logged(trainer)) == [0, 1, 2] and trainer.state.global_step == 40


def test_failures_of_several_kinds_are_each_told_once(tmp_path, monkeypatch, said):
    errors = iter([KeyError(1), KeyError(2), ValueError("a"), None, KeyError(3), ValueError("b"), None])

    def measure(model, sequences, *options):
        if (error := next(errors)) is not None:
            raise error
        return last_token_states(model, sequences, *options)

    monkeypatch.setattr("reptrace.training.callback.last_token_states", measure)
    train(tmp_path, every=1)
    assert [re.search(r"at step (\d+), training goes on: (\w+)", each).groups() for each in said()[:-1]] == [
        ("0", "KeyError"), ("2", "ValueError")]
    assert said()[-1].endswith("5 of 7 measurements failed: 3 KeyError (first at step 0), "
                               "2 ValueError (first at step 2)")


def test_an_interruption_is_let_through_and_leaves_the_generators_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("reptrace.training.callback.last_token_states", raising(KeyboardInterrupt()))
    before = []

    class Look(TrainerCallback):
        def on_step_end(self, *arguments, **options):
            before.append(generators())

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, beside=[Look()], steps=[3])
    assert len(before) == 3 and generators() == before[-1]


def test_an_error_of_a_reporter_is_the_users_to_see(tmp_path):
    class Offline(Reporter):
        def on_log(self, args, state, control, logs=None, **kwargs):
            if "geometry/rankme" in logs:
                raise ConnectionError("W&B cannot be reached")

    with pytest.raises(ConnectionError, match="cannot be reached"):
        train(tmp_path, reporter=Offline(), every=2)


def test_a_second_training_counts_anew(tmp_path, monkeypatch, said):
    monkeypatch.setattr("reptrace.training.callback.last_token_states", raising(KeyError("x")))
    trainer, _ = train(tmp_path, every=6)
    monkeypatch.undo()
    trainer.train()
    assert "2 of 2 measurements failed" in said()[1] and "failed" not in said()[-1]


# Adapters


@pytest.mark.parametrize("make", [neox, llama])
def test_a_model_in_training_with_lora_is_measured_as_its_merged_model(tmp_path, make):
    arguments = {"learning_rate": 0.05}  # so that six steps show
    plain, _ = train(tmp_path / "a", lora(make()), arguments=arguments)
    trainer, _ = train(tmp_path / "b", lora(make()), arguments=arguments, every=2)
    assert_same_weights(plain, trainer)
    merged = copy.deepcopy(trainer.model).merge_and_unload()
    expected = rankme_by_numpy(last_states_by_transformers(merged))
    found = logged(trainer)
    assert found[6] == pytest.approx(expected, rel=1e-4)  # float32: the merged weights round differently
    assert abs(found[0] / found[6] - 1) > 1e-3 and trainer.model.training


def test_with_gradient_checkpointing_too(tmp_path):
    arguments = {"activation_checkpointing": True, "learning_rate": 0.05}
    plain, _ = train(tmp_path / "a", lora(llama()), arguments=arguments)
    trainer, _ = train(tmp_path / "b", lora(llama()), arguments=arguments, every=1)
    assert_same_weights(plain, trainer)
    merged = copy.deepcopy(trainer.model).merge_and_unload()
    assert logged(trainer)[6] == pytest.approx(rankme_by_numpy(last_states_by_transformers(merged)), rel=1e-4)


def test_learned_tokens_before_the_text_are_not_measured_and_train_on(tmp_path, said):
    def prompted():
        return peft.get_peft_model(llama(), peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))

    plain, _ = train(tmp_path / "a", prompted())
    trainer, _ = train(tmp_path / "b", prompted(), every=2)
    assert_same_weights(plain, trainer)
    assert "TypeError: the model has an adapter of the kind PROMPT_TUNING" in said()[0] and len(said()) == 2


# Other models in training


def test_weights_in_float16_are_a_warning_that_says_why_and_what_to_do(tmp_path, said):
    plain, _ = train(tmp_path / "a", llama().half())
    trainer, _ = train(tmp_path / "b", llama().half(), every=2)
    assert_same_weights(plain, trainer)
    assert "TypeError: the model is in float16, which overflows in Pythia and others: use bfloat16 or" in said()[0]


def test_a_decoder_that_it_does_not_know_is_a_warning(tmp_path, said):
    def t5():
        torch.manual_seed(0)
        return T5ForConditionalGeneration(T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=1,
                                                   num_heads=2, decoder_start_token_id=0))

    plain, _ = train(tmp_path / "a", t5())
    trainer, _ = train(tmp_path / "b", t5(), every=2)
    assert_same_weights(plain, trainer)
    assert "TypeError: T5ForConditionalGeneration has an encoder beside its decoder" in said()[0] and len(said()) == 2


def test_mixed_precision_is_measured_in_the_weights_own_dtype(tmp_path):
    plain, _ = train(tmp_path / "a", arguments={"bf16": True})
    trainer, _ = train(tmp_path / "b", arguments={"bf16": True}, every=2)
    assert_same_weights(plain, trainer)
    expected = rankme_by_numpy(last_states_by_transformers(copy.deepcopy(trainer.model.base_model)))
    # float32 throughout, batches round differently; in bfloat16 it would be a percent off
    assert logged(trainer)[6] == pytest.approx(expected, rel=1e-5)


class LastState(Trainer):
    """Trains a model without a head, so that accelerate's autocast sits in the decoder itself."""

    def compute_loss(self, model, inputs, *arguments, **options):
        return model(inputs["input_ids"]).last_hidden_state.float().pow(2).mean()


def test_also_where_autocast_is_on_or_in_the_decoder_itself(tmp_path):
    trainer, _ = train(tmp_path, llama().model, trainer_class=LastState, arguments={"bf16": True}, every=6)
    model = LlamaForCausalLM(trainer.model.config).model
    model.load_state_dict(trainer.model.state_dict())
    states, found = last_token_states(model, SEQUENCES)["final"], logged(trainer)[6]
    assert found == pytest.approx(rankme_by_numpy(states), rel=1e-6)
    assert trainer.model.forward.__wrapped__  # accelerate's is back in its place
    (callback,) = (each for each in trainer.callback_handler.callbacks if isinstance(each, reptrace.GeometryCallback))
    with torch.autocast("cpu", torch.bfloat16):
        callback.on_step_end(trainer.args, trainer.state, trainer.control, trainer.model)
        assert torch.is_autocast_enabled("cpu")
    assert trainer.state.log_history[-1]["geometry/rankme"] == found


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's own
def test_a_compiled_training_is_measured_and_compiled_no_more_than_without(tmp_path):
    torch._dynamo.reset()
    calls = []

    def backend(graph, inputs):
        calls.append(graph)
        return graph.forward

    def compiled():
        model = neox()
        model.base_model.layers[0].compile(backend=backend)
        return model

    plain, _ = train(tmp_path / "a", compiled())
    alone = len(calls)
    torch._dynamo.reset()
    trainer, _ = train(tmp_path / "b", compiled(), every=1)
    assert alone and len(calls) == 2 * alone
    assert_same_weights(plain, trainer)
    other = neox()
    other.load_state_dict(trainer.model.state_dict())
    states = last_token_states(other, SEQUENCES)["final"]
    assert logged(trainer)[6] == pytest.approx(rankme_by_numpy(states), rel=1e-6)


def test_rotations_that_follow_the_length_of_what_they_see_are_as_before(tmp_path):
    rope = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}
    plain, _ = train(tmp_path / "a", llama(**rope), tokens=40)  # longer than the context of 16
    trainer, _ = train(tmp_path / "b", llama(**rope), tokens=40, every=1)
    assert_same_weights(plain, trainer)
    rotary = [found.model.model.rotary_emb for found in (plain, trainer)]
    assert rotary[0].max_seq_len_cached == rotary[1].max_seq_len_cached == 40
    assert torch.equal(rotary[0].inv_freq, rotary[1].inv_freq)


# Models that one process does not hold


class FullyShardedDataParallel(torch.nn.Module):
    """Stands for FSDP's wrapper of that name, which cannot be made without a GPU."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def by_fully_shard(model):
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model)


def by_tensor_parallelism(model):
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    mesh = torch.distributed.init_device_mesh("cpu", (1,))
    return parallelize_module(model, mesh, {"model.layers.0.mlp.up_proj": ColwiseParallel()})


def by_zero_3(model):
    """As DeepSpeed leaves parameters between their turns (its own class is not in the lock)."""
    for number, parameter in enumerate(model.parameters()):
        parameter.ds_id, parameter.data = number, torch.empty(0)
    return model


def by_something_else(model):
    model.model.norm.weight.data = torch.empty(0)
    return model


@pytest.fixture
def group():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(("shard", "by"), [
    (FullyShardedDataParallel, "FSDP"), (by_fully_shard, "FSDP"), (by_tensor_parallelism, "tensor parallelism"),
    (by_zero_3, "DeepSpeed's ZeRO-3"), (by_something_else, "something that leaves empty tensors here")])
def test_a_model_that_is_spread_over_processes_is_not_run_by_one_of_them(tmp_path, group, said, shard, by):
    trainer = Trainer(llama(), TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))
    model = shard(trainer.model)
    trainer.model = model
    callback = reptrace.GeometryCallback(trainer, SEQUENCES, every=1)
    model.register_forward_pre_hook(lambda *_: pytest.fail("it was run"))
    for step in (0, 1):
        trainer.state.global_step = step
        callback.on_step_end(trainer.args, trainer.state, trainer.control, model=model)
    callback.on_train_end(trainer.args, trainer.state, trainer.control)
    assert f"ShardedModelError: the model is spread over processes by {by}, and one" in said()[0]
    assert "2 of 2 measurements failed: 2 ShardedModelError (first at step 0)" in said()[1]


def one_of_two(rank, port, folder):
    """What torchrun starts, forked from this process, in which all is imported."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    AcceleratorState._reset_state(reset_partial_state=True)
    plain, _ = train(folder, lora(llama()))
    measured, _ = train(folder, lora(llama()), every=2)
    assert_same_weights(plain, measured)
    assert type(measured.model_wrapped).__name__ == "DistributedDataParallel"
    assert list(logged(measured, "loss")) == list(logged(plain, "loss"))
    (folder / str(measured.args.process_index)).write_text(str(list(logged(measured))))


def test_two_processes_train_on_together_while_the_first_measures(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [beside(partial(one_of_two, rank, port, tmp_path)) for rank in (0, 1)]
    for process in both:
        process.join(2 * SOON)
    assert [process.exitcode for process in both] == [0, 0]
    assert [(tmp_path / process).read_text() for process in "01"] == ["[0, 2, 4, 6]", "[]"]


def test_only_the_first_process_measures_and_speaks(tmp_path, monkeypatch, said):
    class Second(Trainer):
        def is_world_process_zero(self):
            return False

    trainer, _ = train(tmp_path, trainer_class=Second, every=1)
    assert not logged(trainer) and not said()


# The call itself


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Trainer makes the folder that it is told of."""
    monkeypatch.chdir(tmp_path)


def made(options, model=None, sequences=SEQUENCES):
    trainer = None if model is None else Trainer(model, TrainingArguments("unused", use_cpu=True, report_to="none"))
    return reptrace.GeometryCallback(trainer, sequences, **options)


@pytest.mark.parametrize("options, message", [
    ({}, "say when"), ({"every": 1, "steps": [1]}, "one of the two"), ({"every": 0}, "positive"),
    ({"every": 2.5}, "positive"), ({"steps": []}, "at least one"), ({"steps": [-1]}, "0 or more"),
    ({"steps": [0.5]}, "whole numbers"), ({"every": 1, "batch_size": 0}, "batch_size must be"),
    ({"every": 1, "ranks": (100, 12)}, "ranks must be"), ({"every": 1, "ranks": (2, 3)}, "at least three ranks"),
    ({"every": 1, "ranks": (12,)}, "ranks must be")])
def test_when_and_how_to_measure_must_make_sense(options, message):
    with pytest.raises(ValueError, match=message):
        made(options)


def test_a_single_step_or_layer_counts_as_a_list_of_one(tmp_path):
    trainer, _ = train(tmp_path, steps=4, layers=1)
    assert [row["step"] for row in trainer.state.log_history if "geometry/rankme" in row] == [4]
    assert reptrace.GeometryCallback(trainer, Probe("x", SEQUENCES, 16, 1), every=1).probes[""] is SEQUENCES


def test_probes_of_several_names_are_logged_by_them(tmp_path):
    few = SEQUENCES[:20]
    trainer, _ = train(tmp_path, sequences={"text": SEQUENCES, "prompts": Probe("x", few, 16, 1)}, steps=6,
                       layers=[0, "final"])
    for name, sequences in (("text", SEQUENCES), ("prompts", few)):
        for layer, states in last_token_states(trainer.model, sequences, [0, "final"]).items():
            found = logged(trainer, f"geometry/{name}/{layer}/rankme")
            assert found == {6: pytest.approx(rankme_by_numpy(states), rel=1e-6)}  # same features, float64
    assert sum("geometry/time_share" in row for row in trainer.state.log_history) == 1


def test_what_a_tokenizer_gives_is_not_taken_for_probes_by_name():
    with pytest.raises(TypeError, match=r'of what a tokenizer gives, its \["input_ids"\]'):
        made({"every": 1}, sequences=BatchEncoding({"input_ids": SEQUENCES, "attention_mask": SEQUENCES}))
    with pytest.raises(TypeError, match="names of probes are texts, not empty, got 1"):
        made({"every": 1}, sequences={1: SEQUENCES})
    with pytest.raises(ValueError, match="at least one probe"):
        made({"every": 1}, sequences={})
    with pytest.raises(ValueError, match="sequence 1 holds token id 50"):
        made({"every": 1}, neox(), {"text": SEQUENCES, "prompts": [[1], [2, 50]]})


@pytest.mark.parametrize(("sequences", "steps", "told"), [
    ("some text", 3, "Of texts: probe"), (["one", "two"], 3, "Of texts: probe"),
    (SEQUENCES, "3", "steps are whole numbers, got '3'")])
def test_texts_and_names_of_steps_are_refused(sequences, steps, told):
    with pytest.raises(TypeError, match=told):
        reptrace.GeometryCallback(None, sequences, steps=steps)


def test_one_sequence_is_too_few():
    with pytest.raises(ValueError, match="at least 2 sequences"):
        made({"every": 1}, sequences=SEQUENCES[:1])


@pytest.mark.parametrize("sequences", [["a text", "another"], [[1, 2], []], [[1, 2], [0.5]], [[1, 2], [[1], [2]]],
                                       [1, 2]])
@pytest.mark.parametrize("model", [None, neox])
def test_what_are_no_lists_of_token_ids_is_an_error_at_once(model, sequences):
    with pytest.raises(TypeError, match=r"sequence [01] is not a list of token ids"):
        made({"every": 1}, model and model(), sequences)


@pytest.mark.parametrize(("sequences", "options", "message"), [
    ([[1], [2, 50]], {}, "sequence 1 holds token id 50, the model's vocabulary has 50"),
    ([[1], [2] * 17], {}, "sequence 1 has 17 tokens, the model's context is 16"),
    ([[1], [2]], {"layers": [3]}, "layers must be"), ([[1], [2]], {"layers": "last"}, "layers must be")])
@pytest.mark.parametrize("make", [neox, lambda: lora(neox()), lambda: torch.nn.DataParallel(neox())])
def test_sequences_that_do_not_fit_the_model_are_an_error_before_training_starts(make, sequences, options, message):
    with pytest.raises(ValueError, match=message):
        made({"every": 1, **options}, make(), sequences)


def test_sequences_may_be_arrays_and_tensors():
    for sequences in (np.ones((2, 3), int), torch.ones(2, 3, dtype=int), [torch.ones(2, dtype=int), np.ones(3, int)]):
        made({"every": 1}, neox(), sequences)

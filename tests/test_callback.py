"""Trusted: the Trainer's own log and reporters, and a training without the callback."""

import numpy as np
import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, Trainer, TrainerCallback, TrainingArguments

import reptrace
from reptrace.hidden_states import last_token_states
from reptrace.probes import Probe

SEQUENCES = [np.random.default_rng(k).integers(0, 50, 6 + k % 5).tolist() for k in range(40)]


class Reporter(TrainerCallback):
    """Stands where TensorBoard and W&B stand: among the callbacks that the Trainer is made with."""

    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen.append((state.global_step, dict(logs)))


def train(tmp_path, **options):
    torch.manual_seed(0)
    model = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=1,
                                             intermediate_size=32, max_position_embeddings=16))
    data = [{"input_ids": torch.arange(8) % (k + 2), "labels": torch.arange(8) % (k + 2)} for k in range(40)]
    arguments = TrainingArguments(str(tmp_path), max_steps=6, per_device_train_batch_size=4, use_cpu=True,
                                  report_to="none", save_strategy="no", disable_tqdm=True, logging_steps=2)
    reporter = Reporter()
    trainer = Trainer(model, arguments, train_dataset=data, callbacks=[reporter])
    if options:
        trainer.add_callback(reptrace.GeometryCallback(trainer, SEQUENCES, **options))
    trainer.train()
    return trainer, reporter


@pytest.mark.parametrize("when, expected", [({"every": 2}, [0, 2, 4, 6]), ({"steps": [0, 5]}, [0, 5])])
def test_reporters_and_log_show_the_geometry_at_the_steps_asked_for(tmp_path, when, expected):
    trainer, reporter = train(tmp_path, **when, ranks=(2, 10))
    logged = [row for row in trainer.state.log_history if "geometry/rankme" in row]
    assert [row["step"] for row in logged] == expected
    assert [step for step, logs in reporter.seen if "geometry/rankme" in logs] == expected
    for name in ("rankme_stderr", "alpha", "alpha_stderr"):
        assert all(np.isfinite(row[f"geometry/{name}"]) for row in logged)
    assert all(0 < row["geometry/time_share"] < 1 for row in logged)


def test_the_last_logged_value_is_that_of_the_trained_model_by_numpy(tmp_path):
    trainer, _ = train(tmp_path, every=6)
    states = last_token_states(trainer.model, SEQUENCES)["final"].double().numpy()
    s = np.linalg.eigvalsh(np.cov(states.T, bias=True))
    p = s[s > 1e-12 * s.max()] / s[s > 1e-12 * s.max()].sum()
    last = [row for row in trainer.state.log_history if "geometry/rankme" in row][-1]
    assert last["geometry/rankme"] == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-6)  # same features, float64


def test_training_itself_is_unchanged(tmp_path):
    plain, measured = train(tmp_path / "a")[0].model, train(tmp_path / "b", every=1)[0].model
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), measured.parameters(), strict=True))
    assert measured.training


def test_several_layers_are_named(tmp_path):
    trainer, _ = train(tmp_path, every=6, layers="all")
    assert {f"geometry/{layer}/rankme" for layer in (0, 1, "final")} <= set(trainer.state.log_history[-2])


@pytest.mark.parametrize("options, message", [
    ({}, "say when"), ({"every": 1, "steps": [1]}, "one of the two"), ({"every": 0}, "positive")])
def test_when_must_be_said_once(options, message):
    with pytest.raises(ValueError, match=message):
        reptrace.GeometryCallback(None, SEQUENCES, **options)


def test_a_single_step_or_layer_counts_as_a_list_of_one(tmp_path):
    trainer, _ = train(tmp_path, steps=4, layers=1)
    assert [row["step"] for row in trainer.state.log_history if "geometry/rankme" in row] == [4]
    assert reptrace.GeometryCallback(trainer, Probe("x", SEQUENCES, 16, 1), every=1).sequences is SEQUENCES


@pytest.mark.parametrize(("sequences", "steps", "told"), [
    ("some text", 3, "got text. Pass probe"), (["one", "two"], 3, "got text. Pass probe"),
    (SEQUENCES, "3", "steps are whole numbers, got '3'")])
def test_texts_and_names_of_steps_are_refused(sequences, steps, told):
    with pytest.raises(TypeError, match=told):
        reptrace.GeometryCallback(None, sequences, steps=steps)


def test_one_sequence_is_too_few():
    with pytest.raises(ValueError, match="at least 2 sequences"):
        reptrace.GeometryCallback(None, SEQUENCES[:1], every=1)


def test_a_measurement_that_fails_is_a_warning_and_training_goes_on(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise ValueError("the hidden state of sequence 3 holds NaN")

    monkeypatch.setattr("reptrace.callback.last_token_states", broken)
    trainer, _ = train(tmp_path, every=2)
    assert trainer.state.global_step == 6
    assert not any("geometry/rankme" in row for row in trainer.state.log_history)

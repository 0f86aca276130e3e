"""The lean training loop.

Trusted: transformers' Trainer on the same batches, an uninterrupted training, a plain mean of the weights as they were
after each step, and torch's own losses.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import weather
from transformers import GPTNeoXForCausalLM, Trainer, TrainingArguments, set_seed

from reptrace.training.lean import Averaging, Loop, head_loss, initial_model, squared_error
from reptrace.training.runs import block_order


def a_run(**changes):
    return weather.a_run(**{"layers": 2, "weight_decay": 0.1} | changes)


@pytest.fixture(scope="module")
def ids():
    return np.random.default_rng(0).zipf(1.5, 6000).clip(max=299).astype(np.uint16)


def trained_by_the_trainer(run, ids, folder):
    """Its log, a row a step, and its model."""
    blocks = torch.from_numpy(ids[: len(ids) // run.context * run.context].reshape(-1, run.context).astype(np.int64))
    order = block_order(len(blocks), run)
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=run.steps, per_device_train_batch_size=run.batch, seed=run.seed,
        learning_rate=run.learning_rate, warmup_steps=run.warmup_steps, lr_scheduler_type=run.schedule,
        lr_scheduler_kwargs={"num_decay_steps": run.decay_steps, "decay_type": "linear"} if run.decay_steps else None,
        weight_decay=run.weight_decay, adam_beta2=0.95, max_grad_norm=run.gradient_clip, optim="adamw_torch_fused",
        train_sampling_strategy="sequential", use_cpu=True, logging_steps=1, save_strategy="no", report_to="none",
        disable_tqdm=True, dataloader_pin_memory=False)
    set_seed(run.seed)
    trainer = Trainer(GPTNeoXForCausalLM(run.config), arguments,
                      train_dataset=[{"input_ids": blocks[k], "labels": blocks[k]} for k in order],
                      compute_loss_func=torch_s_squared_error if run.loss == "squared error" else None)
    trainer.train()
    return [row for row in trainer.state.log_history if "loss" in row], trainer.model


def torch_s_squared_error(outputs, labels, num_items_in_batch=None):
    one_hot = torch.nn.functional.one_hot(labels[:, 1:], outputs.logits.shape[-1]).to(outputs.logits.dtype)
    # summed over the vocabulary, not its mean
    return one_hot.shape[-1] * torch.nn.functional.mse_loss(outputs.logits[:, :-1], one_hot)


def weights(loop):
    return [each.detach().clone() for each in loop.model.parameters()]


@pytest.mark.parametrize("changes", [
    {}, {"loss": "squared error", "layers": 1, "steps": 8},
    {"schedule": "warmup_stable_decay", "decay_steps": 5, "rotary": 1.0, "width": 32, "steps": 12}],
    ids=["cosine", "squared error", "decay"])
def test_losses_gradients_rates_and_final_weights_are_the_trainer_s_to_float32_rounding(ids, tmp_path, changes):
    run = a_run(**changes)
    log, trained = trained_by_the_trainer(run, ids, tmp_path)
    loop = Loop(run, ids)
    rows = [loop.advance(1) for _ in range(run.steps)]
    for ours, theirs, tolerance in (("loss", "loss", 1e-5), ("gradient_norm", "grad_norm", 1e-4),
                                    ("learning_rate", "learning_rate", 1e-12)):
        # float32 (6e-8), whose sums are taken in another order: the differences grow with the steps
        np.testing.assert_allclose([row[ours] for row in rows], [row[theirs] for row in log], err_msg=ours,
                                   rtol=tolerance, atol=1e-12)
    initial = dict(initial_model(run).named_parameters())
    for (name, ours), theirs in zip(loop.model.named_parameters(), trained.parameters(), strict=True):
        moved = (theirs - initial[name]).abs().max()
        # Adam divides by the root of the gradient's square: where that is near zero, rounding shows
        assert (ours - theirs).abs().max() < 1e-3 * moved, name


def test_a_gradient_clip_of_0_clips_nothing_as_with_the_trainer(ids):
    none, large = (Loop(a_run(gradient_clip=clip), ids) for clip in (0.0, 1e9))
    for loop in (none, large):
        loop.advance(4)
    assert all(map(torch.equal, weights(none), weights(large)))


def test_a_loop_that_goes_on_from_its_state_ends_as_one_that_was_never_stopped_bit_for_bit(ids, tmp_path):
    averaging = Averaging(0.2, every=2)
    whole, first, second = (Loop(a_run(), ids, averaging) for _ in range(3))
    whole.advance(24)
    first.advance(11)
    first.save(tmp_path / "state", beside=[{"loss": 0.1}])
    torch.manual_seed(99)  # another process has another generator
    assert second.load(tmp_path / "state") == [{"loss": 0.1}]
    assert second.step == 11
    second.advance(24)
    for ours, theirs in zip(weights(second) + second.average, weights(whole) + whole.average, strict=True):
        assert torch.equal(ours, theirs)


# Branches: a run at its constant rate, and others that are the same until their decay begins

DECAY = {"schedule": "warmup_stable_decay", "steps": 18, "decay_steps": 6}


def test_the_rate_falls_linearly_to_nearly_0_in_the_last_steps(ids):
    loop = Loop(a_run(**DECAY), ids)
    rates = [loop.advance(1)["learning_rate"] / 4e-3 for _ in range(18)]
    np.testing.assert_allclose(rates, [0, 0.25, 0.5, 0.75, *[1] * 9, *np.arange(5, 0, -1) / 6], rtol=1e-12)


def test_the_averaged_weights_are_a_plain_mean_first_and_an_exponential_average_later(ids):
    loop, seen = Loop(a_run(), ids, Averaging(0.125, every=2)), []
    for _ in range(10):
        loop.advance(2)
        seen.append(weights(loop))
        if len(seen) == 8:  # as many as 1/8 is the mean of
            for k, average in enumerate(loop.average):
                mean = torch.stack([each[k] for each in seen]).double().mean(0)
                assert torch.allclose(average.double(), mean, rtol=1e-5, atol=1e-7)  # eight float32 roundings
    expected = torch.stack([each[0] for each in seen[:8]]).double().mean(0)
    for later in seen[8:]:
        expected = 0.875 * expected + 0.125 * later[0]
    assert torch.allclose(loop.average[0].double(), expected, rtol=1e-5, atol=1e-7)
    assert all(map(torch.equal, loop.averaged_model().parameters(), loop.average))


def test_the_loss_is_that_of_the_model_s_own_labels():
    model, ids = initial_model(a_run()), torch.randint(300, (3, 16))
    with torch.no_grad():
        expected = model(input_ids=ids, labels=ids).loss
        states = model.gpt_neox(ids).last_hidden_state
        found = head_loss(states, model.get_output_embeddings().weight, ids)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_squared_error_is_torch_s_own_against_the_one_hot_next_token():
    states, unembedding = torch.randn(3, 5, 4, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
    ids = torch.randint(7, (3, 5))
    for each in (states, unembedding):
        each.requires_grad_()
    expected = torch_s_squared_error(SimpleNamespace(logits=states @ unembedding.T), ids)
    found = squared_error(states, unembedding, ids)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)  # it sums in float32
    for ours, theirs in zip(*(torch.autograd.grad(loss, (states, unembedding)) for loss in (found, expected)),
                            strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_making_a_model_leaves_the_random_state_as_it_was():
    before = torch.get_rng_state()
    initial_model(a_run())
    assert torch.equal(before, torch.get_rng_state())


def test_token_ids_beyond_the_signed_16_bits_come_out_as_they_are():
    ids = np.arange(2**16, dtype=np.uint32).astype(np.uint16)
    run = a_run(width=8, vocabulary=2**16, context=64, batch=2)
    batch = Loop(run, ids)._batch(0)
    assert batch.max() < 2**16 and batch.min() >= 0 and (batch[:, 1:] - batch[:, :-1] == 1).all()


@pytest.mark.parametrize(("change", "named"), [({"learning_rate": 1e-3}, "learning_rate"), ({"corpus": "x"}, "corpus")])
def test_a_state_of_other_settings_is_refused_by_name(ids, tmp_path, change, named):
    Loop(a_run(), ids).save(tmp_path / "state")
    with pytest.raises(ValueError, match=f"other settings: {named}"):
        Loop(a_run(**change), ids).load(tmp_path / "state")


@pytest.mark.parametrize("spoil", [
    lambda content: content[: len(content) // 2], lambda content: b"PK", lambda content: b"",
    lambda content: content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 1])
    + content[len(content) // 2 + 1 :]], ids=["cut short", "two bytes", "empty", "a bit flipped"])
def test_a_damaged_state_is_an_error_that_says_what_to_do(ids, tmp_path, spoil):
    path = tmp_path / "state"
    Loop(a_run(), ids).save(path)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=r"is damaged .*: delete it, and its run begins anew"):
        Loop(a_run(), ids).load(path)


def test_what_cannot_be_trained_is_said(ids):
    with pytest.raises(ValueError, match="less than one context"):
        Loop(a_run(), ids[:10])
    loop = Loop(a_run(steps=1), ids)
    loop.advance(5)
    with pytest.raises(ValueError, match="nothing is left"):
        loop.advance(1)
    with pytest.raises(ValueError, match="weight in"):
        Averaging(0)

"""The lean training loop.

Trusted: transformers' Trainer on the same batches (through `Suite`), an uninterrupted training, a plain mean of the
weights as they were after each step, and torch's own cross-entropy through the model's `labels`.
"""

import numpy as np
import pytest
import torch
import weather
from weather import CORPUS

from reptrace.training.lean import Averaging, Loop, head_loss, initial_model
from reptrace.training.pretrain import Suite


def a_run(**changes):
    return weather.a_run(**{"layers": 2, "weight_decay": 0.1} | changes)


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    suite = Suite([a_run()], CORPUS, tmp_path_factory.mktemp("suite"))
    suite.train(progress=False)
    return suite


@pytest.fixture(scope="module")
def ids(suite):
    return np.fromfile(suite.tokens(300), dtype=np.uint16)


def weights(loop):
    return [each.detach().clone() for each in loop.model.parameters()]


def test_losses_gradients_and_rates_are_the_trainer_s_to_float32_rounding(suite, ids):
    loop, rows, log = Loop(a_run(), ids), [], suite.log(a_run())
    for step in log.step:
        rows.append(loop.advance(step - loop.step))
    for name, tolerance in (("loss", 1e-5), ("gradient_norm", 1e-4), ("learning_rate", 1e-12)):
        found, expected = [row[name] for row in rows], log[name]
        if name == "gradient_norm":  # the Trainer logs the last one, and here is the mean
            single = np.diff(log.step, prepend=0) == 1
            assert single.sum() >= 5
            found, expected = np.array(found)[single], expected[single]
        # 24 steps of float32 (6e-8), whose sums are taken in another order: the differences grow with the steps
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=1e-12, err_msg=name)


def test_the_final_weights_are_the_trainer_s_to_float32_rounding(suite, ids):
    from transformers import GPTNeoXForCausalLM

    from reptrace.models.loading import from_pretrained

    loop = Loop(a_run(), ids)
    loop.advance(24)
    trained = from_pretrained(GPTNeoXForCausalLM, a_run().repository, "main", suite.hub)
    for (name, ours), theirs in zip(loop.model.named_parameters(), trained.parameters(), strict=True):
        moved = (theirs - dict(initial_model(a_run()).named_parameters())[name]).abs().max()
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
    first.save(tmp_path / "state")
    torch.manual_seed(99)  # another process has another generator
    second.load(tmp_path / "state")
    assert second.step == 11
    second.advance(24)
    for ours, theirs in zip(weights(second) + second.average, weights(whole) + whole.average, strict=True):
        assert torch.equal(ours, theirs)


# Branches: a run at its constant rate, and others that are the same until their decay begins

TRUNK = {"schedule": "constant_with_warmup", "steps": 20}
DECAY = {"schedule": "warmup_stable_decay", "steps": 18, "decay_steps": 6}


@pytest.fixture
def trunk(ids, tmp_path):
    """State of a run at constant rate at step 12."""
    loop = Loop(a_run(**TRUNK), ids, Averaging(0.2, every=2))
    loop.advance(12)
    loop.save(tmp_path / "trunk")
    return tmp_path / "trunk"


@pytest.mark.parametrize("end", [DECAY, DECAY | {"decay_steps": 2}, TRUNK | {"steps": 16}])
def test_a_branch_ends_as_the_uninterrupted_run_of_its_own_settings_bit_for_bit(ids, trunk, end):
    branch, whole = (Loop(a_run(**end), ids, Averaging(0.2, every=2)) for _ in range(2))
    branch.branch(trunk, of=a_run(**TRUNK))
    assert branch.step == 12
    branch.advance(99)
    whole.advance(99)
    for ours, theirs in zip(weights(branch) + branch.average, weights(whole) + whole.average, strict=True):
        assert torch.equal(ours, theirs)


def test_the_rate_falls_linearly_to_nearly_0_in_the_last_steps(ids):
    loop = Loop(a_run(**DECAY), ids)
    rates = [loop.advance(1)["learning_rate"] / 4e-3 for _ in range(18)]
    np.testing.assert_allclose(rates, [0, 0.25, 0.5, 0.75, *[1] * 9, *np.arange(5, 0, -1) / 6], rtol=1e-12)


@pytest.mark.parametrize(("end", "of", "said"), [
    (DECAY | {"learning_rate": 1e-3}, TRUNK, "other settings: learning_rate 0.004, not 0.001"),
    (DECAY | {"decay_steps": 7}, TRUNK, r"step 12: a run of 18 .* \(decay_steps 7\) has its peak rate until step 11"),
    ({}, TRUNK, "schedule cosine .* until step 0"),
    (DECAY, TRUNK | {"seed": 1}, "seed 1, not 0"),
    (DECAY, TRUNK | {"steps": 21}, "the state in .* other settings: steps 20, not 21")])
def test_a_branch_of_a_run_that_was_not_the_same_until_then_is_refused(ids, trunk, end, of, said):
    with pytest.raises(ValueError, match=said):
        Loop(a_run(**end), ids, Averaging(0.2, every=2)).branch(trunk, of=a_run(**of))


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


def test_the_loss_is_that_of_the_model_s_own_labels():
    model, ids = initial_model(a_run()), torch.randint(300, (3, 16))
    with torch.no_grad():
        expected = model(input_ids=ids, labels=ids).loss
        states = model.gpt_neox(ids).last_hidden_state
        found = head_loss(states, model.get_output_embeddings().weight, ids)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


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


def test_what_cannot_be_trained_is_said(ids):
    with pytest.raises(ValueError, match="less than one context"):
        Loop(a_run(), ids[:10])
    with pytest.raises(ValueError, match="cross-entropy, not by squared error"):
        Loop(a_run(loss="squared error"), ids)
    loop = Loop(a_run(steps=1), ids)
    loop.advance(5)
    with pytest.raises(ValueError, match="nothing is left"):
        loop.advance(1)
    with pytest.raises(ValueError, match="weight in"):
        Averaging(0)

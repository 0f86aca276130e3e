"""Descent on features and classifier: its steps, its mini-batches, what it keeps, where it ends, and its divergence.

Trusted: torch's autograd and optimizers, the known end of a linear network (Eckart-Young), and identities that hold of
any gradient descent.
"""

import numpy as np
import pytest
import torch

from reptrace.theory import descent
from reptrace.theory.descent import descend
from reptrace.theory.losses import LOSSES
from reptrace.theory.phases import phases
from reptrace.theory.starts import start

COUNTS, WIDTH = (5, 3, 2, 1), 2
ROUNDING = {"rtol": 1e-10, "atol": 1e-12}  # some hundred sums and products in float64


def losses(features, classifier, labels, loss):
    """Sum over samples of one seed's loss, by torch's own functions."""
    logits = features @ classifier
    if loss == "cross-entropy":
        return torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    return 0.5 * (logits - torch.nn.functional.one_hot(labels, logits.shape[1])).square().sum()


def descend_by_torch(begun, seed, optimizer, steps, loss="cross-entropy", inputs=None):
    """Autograd and an optimizer of torch's, one seed; returns F and W after every step."""
    labels = torch.from_numpy(begun.labels)
    features = torch.from_numpy(begun.features[seed])
    inputs = torch.eye(len(labels), dtype=torch.float64) if inputs is None else inputs
    weights = torch.linalg.solve(inputs, features).requires_grad_()
    classifier = torch.from_numpy(begun.classifier[seed].copy()).requires_grad_()
    optimizer = optimizer([weights, classifier])
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        losses(inputs @ weights, classifier, labels, loss).backward()
        optimizer.step()
        found.append(((inputs @ weights).detach().numpy().copy(), classifier.detach().numpy().copy()))
    return found


OPTIMIZERS = {
    "plain": ({}, lambda p: torch.optim.SGD(p, lr=0.05)),
    "squared": ({"loss": "squared"}, lambda p: torch.optim.SGD(p, lr=0.05)),
    "momentum": ({"momentum": 0.8}, lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.8)),
    "weight decay": ({"weight_decay": 0.3}, lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=0.3)),
    "Adam": ({"adam": True, "weight_decay": 0.1}, lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_step_is_that_of_autograd_and_torchs_optimizers(name):
    options, optimizer = OPTIMIZERS[name]
    begun = start(COUNTS, WIDTH, scale=0.5, seeds=3)
    runs = descend(begun, rate=0.05, steps=30, record=range(31), keep_weights=True, **options)
    for seed in range(3):
        for k, (features, classifier) in enumerate(descend_by_torch(begun, seed, optimizer, 30,
                                                                    options.get("loss", "cross-entropy")), start=1):
            np.testing.assert_allclose(runs.features[seed, k], features, **ROUNDING)
            np.testing.assert_allclose(runs.classifier[seed, k], classifier, **ROUNDING)


def test_inputs_that_are_not_orthonormal_act_by_their_inner_products(rng):
    inputs = rng.standard_normal((sum(COUNTS), sum(COUNTS))) / 3 + np.eye(sum(COUNTS))
    begun = start(COUNTS, WIDTH, scale=0.5, seeds=2, gram=inputs @ inputs.T)
    runs = descend(begun, rate=0.02, steps=20, keep_weights=True)
    features, classifier = descend_by_torch(begun, 1, lambda p: torch.optim.SGD(p, lr=0.02), 20,
                                            inputs=torch.from_numpy(inputs))[-1]
    np.testing.assert_allclose(runs.features[1, -1], features, rtol=1e-8)  # the inputs are inverted on the way
    np.testing.assert_allclose(runs.classifier[1, -1], classifier, rtol=1e-8)


def test_seeds_together_do_what_each_does_alone(monkeypatch):
    options = {"rate": 0.05, "steps": 300, "momentum": 0.5, "batch": 4, "record": 20}
    together = descend(start(COUNTS, 3, seeds=130), **options)
    monkeypatch.setattr(descent, "CPU_NUMBERS", 1)  # three chunks
    chunked = descend(start(COUNTS, 3, seeds=130), **options)
    np.testing.assert_allclose(chunked.rankme_centred, together.rankme_centred, rtol=1e-9)
    for seed in (0, 77, 129):
        alone = descend(start(COUNTS, 3, seeds=[seed]), **options)
        for name in ("loss", "rankme_centred", "rankme_uncentred", "feature_values", "accuracy"):
            np.testing.assert_allclose(getattr(together, name)[seed], getattr(alone, name)[0], rtol=1e-8, err_msg=name)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_does_the_same():
    begun = start(COUNTS, WIDTH, seeds=70)
    here, there = (descend(begun, rate=0.05, steps=200, device=device) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(here.rankme_centred, there.rankme_centred, rtol=1e-8)


def test_a_mini_batch_of_all_samples_is_the_full_batch():
    begun = start(COUNTS, WIDTH, seeds=2)
    whole, batched = (descend(begun, rate=0.05, steps=50, batch=batch) for batch in (None, sum(COUNTS)))
    np.testing.assert_allclose(batched.loss, whole.loss, **ROUNDING)


def test_an_epoch_of_mini_batches_takes_every_sample_once():
    begun = start((5, 4, 3), WIDTH, scale=0.5, seeds=3)
    rate = 1e-7  # so small that the gradient does not change on the way: differences are of this order
    epoch = descend(begun, rate=rate, steps=4, batch=3, keep_weights=True)
    step = descend(begun, rate=rate, steps=1, keep_weights=True)
    np.testing.assert_allclose(epoch.features[:, -1] - begun.features, 4 * (step.features[:, -1] - begun.features),
                               rtol=1e-5, atol=1e-12)
    first = epoch.features[:, 1] - begun.features
    assert ((np.abs(first).sum(2) > 0).sum(1) == 3).all(), "three samples move in the first step"


@pytest.mark.parametrize("record", [2, 3, 10, 1000])
def test_recorded_steps_begin_with_the_start_end_with_the_last_and_are_log_spaced(record):
    steps = descend(start(COUNTS, WIDTH), rate=0.01, steps=300, record=record).steps
    assert steps[0] == 0 and steps[-1] == 300 and (np.diff(steps) > 0).all() and len(steps) <= record
    if record == 10:  # nine from 1 to 300 by the factor 300^(1/8), rounded
        np.testing.assert_array_equal(steps[1:], [round(300 ** (k / 8)) for k in range(9)])


# The theorems


def imbalance(features, classifier):
    return features.swapaxes(-1, -2) @ features - classifier @ classifier.swapaxes(-1, -2)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_conserved_difference_drifts_in_proportion_to_the_rate(loss):
    begun = start(COUNTS, WIDTH, scale=0.3, seeds=4)
    drift = []
    for rate, steps in ((0.01, 300), (0.001, 3000)):  # the same time of gradient flow
        runs = descend(begun, rate=rate, steps=steps, loss=loss, keep_weights=True)
        change = imbalance(runs.features[:, -1], runs.classifier[:, -1]) - imbalance(begun.features, begun.classifier)
        drift.append(np.linalg.norm(change, axis=(1, 2)))
    # Euler's error is the rate times a constant, up to a relative error of the order of the rate times curvature
    np.testing.assert_allclose(drift[0] / drift[1], 10, rtol=0.15)
    assert drift[1].max() < 0.02


def test_singular_values_grow_in_proportion_to_themselves_when_balanced():
    """d sigma / dt along the flow, by a difference over 2e-6, is g sigma with g = u^T (Y - P) v."""
    begun = start(COUNTS, WIDTH, scale=0.6, balanced=True, seeds=6)
    rate = 1e-6
    after = descend(begun, rate=rate, steps=1, record=[0, 1])
    growth = np.diff(after.feature_values, axis=1)[:, 0] / rate
    u, sigma, vt = np.linalg.svd(begun.features @ begun.classifier, full_matrices=False)
    logits = torch.from_numpy(begun.features @ begun.classifier)
    error = np.eye(len(COUNTS))[begun.labels] - torch.softmax(logits, -1).numpy()
    g = np.einsum("sbi,sbv,siv->si", u, error, vt)[:, :WIDTH]
    np.testing.assert_allclose(growth, g * np.sqrt(sigma[:, :WIDTH]), rtol=1e-4)  # the logits' values are the squares


def test_at_small_logits_growth_is_bounded_by_the_root_of_the_largest_class():
    begun = start(COUNTS, WIDTH, scale=1e-4, balanced=True, seeds=200)
    runs = descend(begun, rate=0.01, steps=1, record=[0, 1])
    g = (runs.feature_values[:, 1] / runs.feature_values[:, 0] - 1) / 0.01
    assert np.abs(g).max() <= np.sqrt(max(COUNTS)) * (1 + 1e-6)
    assert np.abs(g).max() > 0.5, "the bound is not empty"


# The controls


@pytest.mark.parametrize("width", [2, 4, 5])
def test_squared_error_ends_at_the_best_product_of_that_rank(width):
    """Balanced, F ends with F^T F = W W^T and F W the best approximation of Y, whose values are roots of counts."""
    begun = start((9, 4, 2, 1), width, scale=0.1, balanced=True, seeds=4)
    runs = descend(begun, rate=0.01, steps=10_000, loss="squared")
    roots = np.sqrt([9, 4, 2, 1])
    r = min(width, 4)
    np.testing.assert_allclose(runs.loss[:, -1], 0.5 * (roots[r:] ** 2).sum(), atol=1e-6)
    # balance is off by the order of the rate, so the values are too
    np.testing.assert_allclose(runs.feature_values[:, -1, :r] ** 2, np.tile(roots[:r], (4, 1)), rtol=0.02)


def test_uniform_classes_without_a_bottleneck_expand_and_do_not_fall_from_balanced_starts():
    begun = start((2, 2, 2, 2), 3, scale=0.1, balanced=True, seeds=16)
    runs = descend(begun, rate=0.1, steps=5000)
    found = phases(runs.steps, runs.rankme_centred)
    assert found.shows_expansion.all() and not found.shows_fall.any()
    assert (runs.accuracy[:, -1] == 1).all() and (np.diff(runs.loss) < 1e-9).all()


# Divergence and bad input


def test_a_descent_that_diverges_reports_its_step():
    begun = start(COUNTS, WIDTH, scale=0.3, seeds=3)
    runs = descend(begun, rate=1.5, steps=40, loss="squared", record=range(41))
    target = np.eye(len(COUNTS))[begun.labels]
    for seed in range(3):
        f, w, step = begun.features[seed], begun.classifier[seed], 0
        with np.errstate(over="ignore", invalid="ignore"):
            while np.isfinite((w**2).sum()):
                error, step = f @ w - target, step + 1
                f, w = f - 1.5 * error @ w.T, w - 1.5 * f.T @ error
        assert runs.diverged[seed] == step
        assert np.isfinite(runs.rankme_centred[seed, : step - 2]).all()
        assert np.isnan(runs.rankme_centred[seed, step:]).all()
    assert not phases(runs.steps, runs.rankme_centred).shows_expansion.any()


def test_a_rate_that_does_not_diverge_reports_none():
    assert (descend(start(COUNTS, WIDTH, seeds=3), rate=0.05, steps=100).diverged == -1).all()


@pytest.mark.parametrize(("change", "said"), [
    ({"rate": 0.0}, "rate must be positive"), ({"rate": -0.1}, "rate must be positive"),
    ({"rate": float("inf")}, "rate must be positive"), ({"steps": 0}, "at least 1, got 0"),
    ({"loss": "hinge"}, "cross-entropy, squared"), ({"momentum": 1.0}, "momentum must lie"),
    ({"weight_decay": -1}, "weight_decay"), ({"weight_decay": 11}, "weight_decay"),
    ({"adam": True, "momentum": 0.9}, "adam goes without"), ({"batch": 0}, "batch must lie in 1..11"),
    ({"batch": 12}, "batch must lie in 1..11"), ({"record": 1}, "at least 2 steps"), ({"record": [7]}, "lie in 0..5")])
def test_bad_descents_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        descend(start(COUNTS, WIDTH), **{"rate": 0.1, "steps": 5, **change})

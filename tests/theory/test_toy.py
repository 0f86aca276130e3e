"""The toy model: descent on features and classifier, its theorems, its controls, and the phases of noise-free curves.

Trusted: torch's autograd and optimizers, scipy's matrix exponential, Wilson's formula, `spectra` for the spectrum of
one matrix, the known end of a linear network (Eckart-Young), and identities that hold of any gradient descent.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.linalg import expm

from reptrace.measures import spectra
from reptrace.theory import toy

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
    begun = toy.start(COUNTS, WIDTH, scale=0.5, seeds=3)
    runs = toy.descend(begun, rate=0.05, steps=30, record=range(31), keep_weights=True, **options)
    for seed in range(3):
        for k, (features, classifier) in enumerate(descend_by_torch(begun, seed, optimizer, 30,
                                                                    options.get("loss", "cross-entropy")), start=1):
            np.testing.assert_allclose(runs.features[seed, k], features, **ROUNDING)
            np.testing.assert_allclose(runs.classifier[seed, k], classifier, **ROUNDING)


def test_inputs_that_are_not_orthonormal_act_by_their_inner_products(rng):
    inputs = rng.standard_normal((sum(COUNTS), sum(COUNTS))) / 3 + np.eye(sum(COUNTS))
    begun = toy.start(COUNTS, WIDTH, scale=0.5, seeds=2, gram=inputs @ inputs.T)
    runs = toy.descend(begun, rate=0.02, steps=20, keep_weights=True)
    features, classifier = descend_by_torch(begun, 1, lambda p: torch.optim.SGD(p, lr=0.02), 20,
                                            inputs=torch.from_numpy(inputs))[-1]
    np.testing.assert_allclose(runs.features[1, -1], features, rtol=1e-8)  # the inputs are inverted on the way
    np.testing.assert_allclose(runs.classifier[1, -1], classifier, rtol=1e-8)


def test_features_of_correlated_inputs_start_correlated():
    gram = np.full((4, 4), 0.9) + 0.1 * np.eye(4)
    begun = toy.start((2, 2), 3, scale=1.0, seeds=2000, gram=gram)
    found = np.einsum("sid,sjd->ij", begun.features, begun.features) / 6000
    np.testing.assert_allclose(found, gram, atol=5 * np.sqrt(2 / 6000))  # five standard errors


@pytest.mark.parametrize("loss", toy.LOSSES)
def test_loss_is_torchs(loss):
    begun = toy.start(COUNTS, WIDTH, scale=0.7, seeds=2)
    found = toy.measure(begun.features, begun.classifier, begun.labels, loss)["loss"]
    tensors = [[torch.from_numpy(m[k]) for m in (begun.features, begun.classifier)] for k in range(2)]
    expected = [float(losses(*pair, torch.from_numpy(begun.labels), loss)) for pair in tensors]
    np.testing.assert_allclose(found, expected, **ROUNDING)


def test_spectra_are_those_of_the_spectra_module(rng):
    features, classifier = rng.standard_normal((2, 3, 11, 4)), rng.standard_normal((2, 3, 4, 5))
    found = toy.measure(features, classifier, np.repeat(range(5), (5, 3, 1, 1, 1)))
    for i, j in np.ndindex(2, 3):
        f, w = features[i, j], classifier[i, j]
        assert found["rankme_centred"][i, j] == pytest.approx(spectra.rankme(spectra.eigenspectrum(f)), rel=1e-10)
        values = spectra.singular_values(f)
        assert found["rankme_uncentred"][i, j] == pytest.approx(spectra.rankme(values**2), rel=1e-10)
        np.testing.assert_allclose(found["feature_values"][i, j], values, **ROUNDING)
        np.testing.assert_allclose(found["classifier_values"][i, j], spectra.singular_values(w), **ROUNDING)


def test_accuracy_is_by_class():
    features = np.eye(3)[None]  # sample k has its largest logit at class k
    found = toy.measure(features, np.eye(3)[None, :, :2], np.array([0, 0, 1]))["accuracy"]  # at class 0, the third
    np.testing.assert_array_equal(found, [[0.5, 0.0]])


def test_seeds_together_do_what_each_does_alone(monkeypatch):
    options = {"rate": 0.05, "steps": 300, "momentum": 0.5, "batch": 4, "record": 20}
    together = toy.descend(toy.start(COUNTS, 3, seeds=130), **options)
    monkeypatch.setattr(toy, "CPU_NUMBERS", 1)  # three chunks
    chunked = toy.descend(toy.start(COUNTS, 3, seeds=130), **options)
    np.testing.assert_allclose(chunked.rankme_centred, together.rankme_centred, rtol=1e-9)
    for seed in (0, 77, 129):
        alone = toy.descend(toy.start(COUNTS, 3, seeds=[seed]), **options)
        for name in ("loss", "rankme_centred", "rankme_uncentred", "feature_values", "accuracy"):
            np.testing.assert_allclose(getattr(together, name)[seed], getattr(alone, name)[0], rtol=1e-8, err_msg=name)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_does_the_same():
    begun = toy.start(COUNTS, WIDTH, seeds=70)
    here, there = (toy.descend(begun, rate=0.05, steps=200, device=device) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(here.rankme_centred, there.rankme_centred, rtol=1e-8)


def test_a_mini_batch_of_all_samples_is_the_full_batch():
    begun = toy.start(COUNTS, WIDTH, seeds=2)
    whole, batched = (toy.descend(begun, rate=0.05, steps=50, batch=batch) for batch in (None, sum(COUNTS)))
    np.testing.assert_allclose(batched.loss, whole.loss, **ROUNDING)


def test_an_epoch_of_mini_batches_takes_every_sample_once():
    begun = toy.start((5, 4, 3), WIDTH, scale=0.5, seeds=3)
    rate = 1e-7  # so small that the gradient does not change on the way: differences are of this order
    epoch = toy.descend(begun, rate=rate, steps=4, batch=3, keep_weights=True)
    step = toy.descend(begun, rate=rate, steps=1, keep_weights=True)
    np.testing.assert_allclose(epoch.features[:, -1] - begun.features, 4 * (step.features[:, -1] - begun.features),
                               rtol=1e-5, atol=1e-12)
    first = epoch.features[:, 1] - begun.features
    assert ((np.abs(first).sum(2) > 0).sum(1) == 3).all(), "three samples move in the first step"


@pytest.mark.parametrize("record", [2, 3, 10, 1000])
def test_recorded_steps_begin_with_the_start_end_with_the_last_and_are_log_spaced(record):
    steps = toy.descend(toy.start(COUNTS, WIDTH), rate=0.01, steps=300, record=record).steps
    assert steps[0] == 0 and steps[-1] == 300 and (np.diff(steps) > 0).all() and len(steps) <= record
    if record == 10:  # nine from 1 to 300 by the factor 300^(1/8), rounded
        np.testing.assert_array_equal(steps[1:], [round(300 ** (k / 8)) for k in range(9)])


def test_zipf_counts_follow_the_power_of_the_rank():
    assert toy.zipf_counts(4, 0, 8) == (2, 2, 2, 2)
    assert toy.zipf_counts(4, 1, 25) == (12, 6, 4, 3)  # 12, 12/2, 12/3, 12/4
    assert toy.zipf_counts(8, 2, 32)[-1] == 1


def test_inputs_alike_within_a_class_have_that_cosine():
    gram = toy.alike_inputs((2, 1), 0.5)
    np.testing.assert_array_equal(gram, [[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1]])
    np.testing.assert_array_equal(toy.alike_inputs((2, 1), 0.5, "all"), 0.5 + 0.5 * np.eye(3))
    for arguments in ((1.0, "class"), (-0.1, "class"), (0.5, "some")):
        with pytest.raises(ValueError, match="the cosine in"):
            toy.alike_inputs((2, 1), *arguments)


# The theorems


def imbalance(features, classifier):
    return features.swapaxes(-1, -2) @ features - classifier @ classifier.swapaxes(-1, -2)


@pytest.mark.parametrize("loss", toy.LOSSES)
def test_the_conserved_difference_drifts_in_proportion_to_the_rate(loss):
    begun = toy.start(COUNTS, WIDTH, scale=0.3, seeds=4)
    drift = []
    for rate, steps in ((0.01, 300), (0.001, 3000)):  # the same time of gradient flow
        runs = toy.descend(begun, rate=rate, steps=steps, loss=loss, keep_weights=True)
        change = imbalance(runs.features[:, -1], runs.classifier[:, -1]) - imbalance(begun.features, begun.classifier)
        drift.append(np.linalg.norm(change, axis=(1, 2)))
    # Euler's error is the rate times a constant, up to a relative error of the order of the rate times curvature
    np.testing.assert_allclose(drift[0] / drift[1], 10, rtol=0.15)
    assert drift[1].max() < 0.02


@pytest.mark.parametrize(("counts", "width"), [(COUNTS, 2), (COUNTS, 4), (COUNTS, 6), ((2, 2), 2)])
def test_a_balanced_start_is_balanced_and_aligned_to_rounding(counts, width):
    begun = toy.start(counts, width, scale=0.7, balanced=True, seeds=5)
    assert np.abs(imbalance(begun.features, begun.classifier)).max() < 1e-14 * 20  # some twenty sums of order one
    found = toy.measure(begun.features, begun.classifier, begun.labels)
    r = min(width, len(counts))
    np.testing.assert_allclose(found["alignment"][:, :r], 1, rtol=1e-10)
    np.testing.assert_allclose(found["feature_values"][:, :r], found["classifier_values"], rtol=1e-10)


def test_singular_values_grow_in_proportion_to_themselves_when_balanced():
    """d sigma / dt along the flow, by a difference over 2e-6, is g sigma with g = u^T (Y - P) v."""
    begun = toy.start(COUNTS, WIDTH, scale=0.6, balanced=True, seeds=6)
    rate = 1e-6
    after = toy.descend(begun, rate=rate, steps=1, record=[0, 1])
    growth = np.diff(after.feature_values, axis=1)[:, 0] / rate
    u, sigma, vt = np.linalg.svd(begun.features @ begun.classifier, full_matrices=False)
    logits = torch.from_numpy(begun.features @ begun.classifier)
    error = np.eye(len(COUNTS))[begun.labels] - torch.softmax(logits, -1).numpy()
    g = np.einsum("sbi,sbv,siv->si", u, error, vt)[:, :WIDTH]
    np.testing.assert_allclose(growth, g * np.sqrt(sigma[:, :WIDTH]), rtol=1e-4)  # the logits' values are the squares


def test_at_small_logits_growth_is_bounded_by_the_root_of_the_largest_class():
    begun = toy.start(COUNTS, WIDTH, scale=1e-4, balanced=True, seeds=200)
    runs = toy.descend(begun, rate=0.01, steps=1, record=[0, 1])
    g = (runs.feature_values[:, 1] / runs.feature_values[:, 0] - 1) / 0.01
    assert np.abs(g).max() <= np.sqrt(max(COUNTS)) * (1 + 1e-6)
    assert np.abs(g).max() > 0.5, "the bound is not empty"


def test_linearized_dynamics_are_the_matrix_exponential():
    begun = toy.start(COUNTS, 3, scale=0.5, seeds=2)
    b, classes = sum(COUNTS), len(COUNTS)
    drive = np.eye(classes)[begun.labels] - 1 / classes
    generator = np.block([[np.zeros((b, b)), drive], [drive.T, np.zeros((classes, classes))]])
    features, classifier = toy.linearized(begun, [0.0, 0.3, 1.2])
    for k, time in enumerate((0.0, 0.3, 1.2)):
        both = expm(generator * time) @ np.vstack([begun.features[1], begun.classifier[1].T])
        np.testing.assert_allclose(features[1, k], both[:b], **ROUNDING)
        np.testing.assert_allclose(classifier[1, k], both[b:].T, **ROUNDING)


@pytest.mark.parametrize("loss", toy.LOSSES)
def test_linearized_dynamics_are_those_of_a_small_start(loss):
    begun = toy.start(COUNTS, WIDTH, scale=1e-5, seeds=3)
    rate, steps = 1e-3, 2000
    runs = toy.descend(begun, rate=rate, steps=steps, loss=loss, record=6, keep_weights=True)
    features, classifier = toy.linearized(begun, runs.steps * rate, loss)
    # Euler: a relative error of rate * s^2 * time / 2 = 5e-3 at s^2 = 5; the logits stay below 1e-6
    for found, expected in ((runs.features, features), (runs.classifier, classifier)):
        scale = np.abs(expected).max(axis=(2, 3), keepdims=True)
        assert (np.abs(found - expected) / scale).max() < 1e-2


# The controls


@pytest.mark.parametrize("width", [2, 4, 5])
def test_squared_error_ends_at_the_best_product_of_that_rank(width):
    """Balanced, F ends with F^T F = W W^T and F W the best approximation of Y, whose values are roots of counts."""
    begun = toy.start((9, 4, 2, 1), width, scale=0.1, balanced=True, seeds=4)
    runs = toy.descend(begun, rate=0.01, steps=10_000, loss="squared")
    roots = np.sqrt([9, 4, 2, 1])
    r = min(width, 4)
    np.testing.assert_allclose(runs.loss[:, -1], 0.5 * (roots[r:] ** 2).sum(), atol=1e-6)
    # balance is off by the order of the rate, so the values are too
    np.testing.assert_allclose(runs.feature_values[:, -1, :r] ** 2, np.tile(roots[:r], (4, 1)), rtol=0.02)


def test_uniform_classes_without_a_bottleneck_expand_and_do_not_fall_from_balanced_starts():
    begun = toy.start((2, 2, 2, 2), 3, scale=0.1, balanced=True, seeds=16)
    runs = toy.descend(begun, rate=0.1, steps=5000)
    found = toy.phases(runs.steps, runs.rankme_centred)
    assert found.shows_expansion.all() and not found.shows_fall.any()
    assert (runs.accuracy[:, -1] == 1).all() and (np.diff(runs.loss) < 1e-9).all()


# Phases


def curve(*corners):
    return np.concatenate([np.linspace(a, b, 10, endpoint=False) for a, b in pairwise(corners)]
                          + [[corners[-1]]])


@pytest.mark.parametrize(("corners", "shown", "ends"), [
    ((3, 2, 4, 3), (True, True, True), (10, 20)),
    ((3, 2, 4), (True, True, False), (10, 20)),
    ((3, 3.5, 2, 4, 3), (True, True, True), (20, 30)),  # a rise before the collapse
    ((2, 4, 3), (False, True, True), (0, 10)),
    ((2, 4), (False, True, False), (0, 10)),
    ((4, 2), (True, False, False), (-1, -1)),
    ((3, 2, 4, 3, 5), (True, True, False), (10, 40)),  # a dip that is outgrown
    ((3, 2.95, 3.0), (False, False, False), (-1, -1)),
    ((2, 2), (False, False, False), (-1, -1))])
def test_phases_of_known_curves(corners, shown, ends):
    values = curve(*corners)
    found = toy.phases(np.arange(len(values)), values)
    assert (found.shows_collapse, found.shows_expansion, found.shows_fall) == shown
    assert (found.collapse_end, found.turn) == ends
    assert found.all_three == all(shown)


@pytest.mark.parametrize(("corners", "spans"), [
    ((3, 2, 4, 3), [("warmup", 0, 10), ("entropy-seeking", 10, 20), ("compression-seeking", 20, 30)]),
    ((3, 2, 4, 3.99), [("warmup", 0, 10), ("entropy-seeking", 10, 30)]),
    ((2, 4, 3, 2.5), [("entropy-seeking", 0, 10), ("compression-seeking", 10, 30)]),
    ((3, 2.5, 2.2, 2), [("warmup", 0, 30)]), ((2, 2, 2, 2), [])])
def test_spans_of_known_curves(corners, spans):
    found = toy.phases(range(31), curve(*corners)[None])
    assert found.spans(0, 30) == spans


def test_sizes_of_phases():
    found = toy.phases(range(31), curve(3, 2, 4, 3))
    assert (found.collapse, found.expansion, found.fall) == pytest.approx((1 / 3, 1.0, 0.25))
    assert not toy.phases(range(31), curve(3, 2, 4, 3), size=0.3).shows_fall


def test_phases_of_many_trajectories_are_those_of_each(rng):
    many = np.exp(0.05 * rng.standard_normal((4, 50, 30)).cumsum(-1))
    many[0, 0, -1] = np.nan
    together = toy.phases(range(30), many)
    for i, j in np.ndindex(4, 50):
        alone = toy.phases(range(30), many[i, j])
        for name in ("collapse_end", "turn", "collapse", "expansion", "fall", "shows_collapse", "all_three"):
            np.testing.assert_equal(getattr(together, name)[i, j], getattr(alone, name))
    assert not together.shows_collapse[0, 0] and np.isnan(together.fall[0, 0])


def test_a_turn_is_late_once_half_of_the_loss_is_lost():
    values = np.stack([curve(3, 2, 4, 3)] * 3 + [curve(4, 3, 2, 1)])
    loss = np.stack([np.linspace(9, 1, 31), np.r_[np.full(20, 9.0), np.linspace(9, 1, 11)],
                     np.r_[np.linspace(9, 5, 21), np.linspace(5, 1, 10)], np.linspace(9, 1, 31)])
    found = toy.phases(range(31), values)
    np.testing.assert_array_equal(toy.turns_late(found, loss), [True, False, True, False])  # at 3.67, 9, 5 of 9 to 1
    assert toy.turns_late(toy.phases(range(31), values[0]), loss[0])


def test_prevalence_is_a_share_with_wilsons_interval():
    share, low, high = toy.prevalence([True] * 6 + [False] * 58)
    assert share == 6 / 64
    z = 1.959964  # Wilson 1927: roots of (p - share)^2 = z^2 p (1 - p) / n
    for p in (low, high):
        assert (p - share) ** 2 == pytest.approx(z**2 * p * (1 - p) / 64, rel=1e-5)


# Divergence and bad input


def test_divergence_is_reported_with_its_step():
    begun = toy.start(COUNTS, WIDTH, scale=0.3, seeds=3)
    runs = toy.descend(begun, rate=1.5, steps=40, loss="squared", record=range(41))
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
    assert not toy.phases(runs.steps, runs.rankme_centred).shows_expansion.any()


def test_a_rate_that_does_not_diverge_reports_none():
    assert (toy.descend(toy.start(COUNTS, WIDTH, seeds=3), rate=0.05, steps=100).diverged == -1).all()


@pytest.mark.parametrize(("change", "said"), [
    ({"counts": (3, -1)}, "positive whole numbers"), ({"counts": (3, 0)}, "positive whole numbers"),
    ({"counts": (3, 1.5)}, "positive whole numbers"), ({"counts": (3,)}, "at least two classes"),
    ({"counts": ()}, "at least two classes"), ({"width": 0}, "at least 1, got 0"), ({"width": 1.5}, "whole number"),
    ({"scale": 0.0}, "scale must be positive"), ({"scale": float("nan")}, "scale must be positive"),
    ({"seeds": 0}, "seeds must be"), ({"seeds": [-1]}, "seeds must be"), ({"gram": np.eye(2)}, "positive definite"),
    ({"gram": np.ones((3, 3)), "counts": (2, 1)}, "positive definite"),
    ({"balanced": True, "gram": np.eye(11)}, "balanced start needs"),
    ({"balanced": True, "counts": (1, 1), "width": 2, "gram": np.eye(2)}, "balanced start needs")])
def test_bad_starts_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        toy.start(**{"counts": COUNTS, "width": WIDTH, **change})


@pytest.mark.parametrize(("change", "said"), [
    ({"rate": 0.0}, "rate must be positive"), ({"rate": -0.1}, "rate must be positive"),
    ({"rate": float("inf")}, "rate must be positive"), ({"steps": 0}, "at least 1, got 0"),
    ({"loss": "hinge"}, "cross-entropy, squared"), ({"momentum": 1.0}, "momentum must lie"),
    ({"weight_decay": -1}, "weight_decay"), ({"weight_decay": 11}, "weight_decay"),
    ({"adam": True, "momentum": 0.9}, "adam goes without"), ({"batch": 0}, "batch must lie in 1..11"),
    ({"batch": 12}, "batch must lie in 1..11"), ({"record": 1}, "at least 2 steps"), ({"record": [7]}, "lie in 0..5")])
def test_bad_descents_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        toy.descend(toy.start(COUNTS, WIDTH), **{"rate": 0.1, "steps": 5, **change})


def test_bad_curves_are_refused():
    with pytest.raises(ValueError, match="steps must increase"):
        toy.phases([0, 2, 1], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="shapes"):
        toy.phases([0, 1, 2], [1.0, 2.0])
    with pytest.raises(ValueError, match="share between 0 and 1"):
        toy.phases([0, 1], [1.0, 2.0], size=2)


# The study


@pytest.fixture(scope="module")
def study():
    path = Path(__file__).parents[2] / "studies/toy_prevalence.py"
    spec = importlib.util.spec_from_file_location("toy_prevalence", path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "toy_prevalence", module)  # dataclasses look their module up
        spec.loader.exec_module(module)
        yield module


def test_no_setting_is_studied_twice_in_one_group_and_the_paper_is_among_them(study):
    plan = study.settings()
    assert len(set(plan)) == len(plan)
    paper = [s for s in plan if s.group == "control" and s.counts == (2, 2, 2, 2) and s.width == 3]
    assert {s.loss for s in paper} == set(toy.LOSSES)


def test_a_row_of_the_study_has_the_tables_columns_and_shares_that_belong_together(study, monkeypatch):
    monkeypatch.setattr(study, "SEEDS", 8)
    (setting,) = [s for s in study.settings() if s.cause == "squared error" and s.width == 2]
    row = study.row(replace(setting, steps=400))
    table = pd.read_csv(study.OUT)
    assert list(row) == [column for column in table.columns if column not in {"code", "packages", "python", "machine"}]
    assert 0 <= row["large_fall"] <= row["late"] <= row["all_three"] <= min(row["collapse"], row["expansion"], 1)
    assert (table.late <= table.all_three + 1e-3).all() and (table.late_low <= table.late).all()
    assert len(table) == len(study.settings())

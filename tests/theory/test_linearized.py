"""The model solved near zero logits. Trusted: scipy's matrix exponential, and descents from small starts."""

import numpy as np
import pytest
from scipy.linalg import expm

from reptrace.theory.descent import descend
from reptrace.theory.linearized import linearized
from reptrace.theory.losses import LOSSES
from reptrace.theory.starts import start

COUNTS, WIDTH = (5, 3, 2, 1), 2
ROUNDING = {"rtol": 1e-10, "atol": 1e-12}  # some hundred sums and products in float64


def test_linearized_dynamics_are_the_matrix_exponential():
    begun = start(COUNTS, 3, scale=0.5, seeds=2)
    b, classes = sum(COUNTS), len(COUNTS)
    drive = np.eye(classes)[begun.labels] - 1 / classes
    generator = np.block([[np.zeros((b, b)), drive], [drive.T, np.zeros((classes, classes))]])
    features, classifier = linearized(begun, [0.0, 0.3, 1.2])
    for k, time in enumerate((0.0, 0.3, 1.2)):
        both = expm(generator * time) @ np.vstack([begun.features[1], begun.classifier[1].T])
        np.testing.assert_allclose(features[1, k], both[:b], **ROUNDING)
        np.testing.assert_allclose(classifier[1, k], both[b:].T, **ROUNDING)


@pytest.mark.parametrize("loss", LOSSES)
def test_linearized_dynamics_are_those_of_a_small_start(loss):
    begun = start(COUNTS, WIDTH, scale=1e-5, seeds=3)
    rate, steps = 1e-3, 2000
    runs = descend(begun, rate=rate, steps=steps, loss=loss, record=6, keep_weights=True)
    features, classifier = linearized(begun, runs.steps * rate, loss)
    # Euler: a relative error of rate * s^2 * time / 2 = 5e-3 at s^2 = 5; the logits stay below 1e-6
    for found, expected in ((runs.features, features), (runs.classifier, classifier)):
        scale = np.abs(expected).max(axis=(2, 3), keepdims=True)
        assert (np.abs(found - expected) / scale).max() < 1e-2

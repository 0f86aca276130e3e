"""What is measured of weights: loss, spectra, accuracy.

Trusted: torch's losses, and `spectra` for the spectrum of one matrix.
"""

import numpy as np
import pytest
import torch

from reptrace.measures import spectra
from reptrace.theory.losses import LOSSES
from reptrace.theory.starts import start
from reptrace.theory.trajectories import measure

COUNTS, WIDTH = (5, 3, 2, 1), 2
ROUNDING = {"rtol": 1e-10, "atol": 1e-12}  # some hundred sums and products in float64
TORCHS = {"cross-entropy": lambda logits, labels: torch.nn.functional.cross_entropy(logits, labels, reduction="sum"),
          "squared": lambda logits, labels: 0.5 * (logits - torch.eye(logits.shape[1])[labels]).square().sum()}


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_is_torchs(loss):
    begun = start(COUNTS, WIDTH, scale=0.7, seeds=2)
    found = measure(begun.features, begun.classifier, begun.labels, loss)["loss"]
    logits, labels = torch.from_numpy(begun.features @ begun.classifier), torch.from_numpy(begun.labels)
    expected = [float(TORCHS[loss](logits[k], labels)) for k in range(2)]
    np.testing.assert_allclose(found, expected, **ROUNDING)


def test_spectra_are_those_of_the_spectra_module(rng):
    features, classifier = rng.standard_normal((2, 3, 11, 4)), rng.standard_normal((2, 3, 4, 5))
    found = measure(features, classifier, np.repeat(range(5), (5, 3, 1, 1, 1)))
    for i, j in np.ndindex(2, 3):
        f, w = features[i, j], classifier[i, j]
        assert found["rankme_centred"][i, j] == pytest.approx(spectra.rankme(spectra.eigenspectrum(f)), rel=1e-10)
        values = spectra.singular_values(f)
        assert found["rankme_uncentred"][i, j] == pytest.approx(spectra.rankme(values**2), rel=1e-10)
        np.testing.assert_allclose(found["feature_values"][i, j], values, **ROUNDING)
        np.testing.assert_allclose(found["classifier_values"][i, j], spectra.singular_values(w), **ROUNDING)


def test_accuracy_is_by_class():
    features = np.eye(3)[None]  # sample k has its largest logit at class k
    found = measure(features, np.eye(3)[None, :, :2], np.array([0, 0, 1]))["accuracy"]  # at class 0, the third
    np.testing.assert_array_equal(found, [[0.5, 0.0]])

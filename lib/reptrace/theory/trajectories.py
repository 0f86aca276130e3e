"""What is recorded of descents: loss, RankMe, singular values, alignment and accuracy of their weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import xlogy

from reptrace.theory.losses import loss_of

MEASURED_AT_ONCE = 20_000  # matrices


@dataclass(frozen=True)
class Trajectories:
    """S descents at T recorded steps; from the step of divergence on, nan.

    Attributes
    ----------
    steps : array of int, shape (T,)
        The first is 0, the start.
    loss : array, shape (S, T)
        Sum over the samples; nats where it is cross-entropy.
    rankme_centred, rankme_uncentred : array, shape (S, T)
        exp(entropy) of the shares of the eigenvalues of F_c^T F_c (rows centred) and of F^T F.
    feature_values : array, shape (S, T, min(b, d))
        Singular values of F, largest first.
    classifier_values : array, shape (S, T, min(d, V))
        Singular values of W, largest first.
    alignment : array, shape (S, T, min(b, d, V))
        |cosine| of the i-th right singular vector of F with the i-th left one of W: 1 where balanced.
    accuracy : array, shape (S, T, V)
        Share of each class's samples that have their largest logit there.
    diverged : array of int, shape (S,)
        First step after which a squared norm of the weights is not finite in float64; -1: none.
    features, classifier : array, shapes (S, T, b, d) and (S, T, d, V), or None
        The weights, if they were to be kept.
    """

    steps: np.ndarray
    loss: np.ndarray
    rankme_centred: np.ndarray
    rankme_uncentred: np.ndarray
    feature_values: np.ndarray
    classifier_values: np.ndarray
    alignment: np.ndarray
    accuracy: np.ndarray
    diverged: np.ndarray
    features: np.ndarray | None = None
    classifier: np.ndarray | None = None


def measure(features, classifier, labels, loss: str = "cross-entropy") -> dict[str, np.ndarray]:
    """Loss, RankMe, singular values, alignment and accuracy of weights of shapes (..., b, d) and (..., d, V).

    Returns the fields of `Trajectories` of those names, with the leading axes of the weights. Where a weight is not
    finite, or so large that its square is not, all are nan.
    """
    leading = features.shape[:-2]
    features = features.reshape(-1, *features.shape[-2:])
    classifier = classifier.reshape(-1, *classifier.shape[-2:])
    parts = [_measure(features[k : k + MEASURED_AT_ONCE], classifier[k : k + MEASURED_AT_ONCE], labels, loss)
             for k in range(0, len(features), MEASURED_AT_ONCE)]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {name: values.reshape(*leading, *values.shape[1:]) for name, values in joined.items()}


@np.errstate(over="ignore", invalid="ignore")  # shortly before weights diverge
def _measure(features, classifier, labels, loss: str) -> dict[str, np.ndarray]:
    finite = np.isfinite((features**2).sum((1, 2)) + (classifier**2).sum((1, 2)))
    features, classifier = (np.where(finite[:, None, None], m, 0.0) for m in (features, classifier))
    logits = features @ classifier
    hit = logits.argmax(-1) == labels
    _, feature_values, right = np.linalg.svd(features, full_matrices=False)
    left, classifier_values, _ = np.linalg.svd(classifier, full_matrices=False)
    r = min(right.shape[1], left.shape[2])
    centred = features - features.mean(1, keepdims=True)
    found = {"loss": loss_of(logits, labels, loss),
             "rankme_centred": _effective_rank(np.linalg.svd(centred, compute_uv=False) ** 2),
             "rankme_uncentred": _effective_rank(feature_values**2),
             "feature_values": feature_values, "classifier_values": classifier_values,
             "alignment": np.abs(np.einsum("nid,ndi->ni", right[:, :r], left[:, :, :r])),
             "accuracy": np.stack([hit[:, labels == c].mean(1) for c in range(logits.shape[-1])], -1)}
    return {name: np.where(finite.reshape(-1, *[1] * (v.ndim - 1)), v, np.nan) for name, v in found.items()}


def _effective_rank(eigenvalues) -> np.ndarray:
    """As `spectra.rankme`, over the last axis; nan where all are 0."""
    largest = eigenvalues[..., :1]
    s = np.divide(eigenvalues, largest, out=np.full_like(eigenvalues, np.nan), where=largest > 0)
    p = s / s.sum(-1, keepdims=True)
    return np.exp(-xlogy(p, p).sum(-1))

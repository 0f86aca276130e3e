"""Where descents begin: random features and classifiers, the classes' counts, inputs that are alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Start:
    """Where S descents begin.

    Attributes
    ----------
    features : array, shape (S, b, d), float64
    classifier : array, shape (S, d, V), float64
    labels : array of int, shape (b,)
        Class of each sample, 0 to V - 1.
    seeds : tuple of int
        Of each draw; they also set the order of mini-batches.
    gram : array, shape (b, b), or None
        Inner products of the inputs; None: orthonormal inputs.
    """

    features: np.ndarray
    classifier: np.ndarray
    labels: np.ndarray
    seeds: tuple[int, ...]
    gram: np.ndarray | None = None


def start(counts: Sequence[int], width: int, *, scale: float = 0.1, balanced: bool = False,
          seeds: int | Sequence[int] = 1, gram=None) -> Start:
    """Random features and classifiers, one of each a seed; a seed gives the same draw whichever others come with it.

    Parameters
    ----------
    counts : sequence of int, length V
        Samples of each class, all positive; b is their sum.
    width : int
        d.
    scale : float, default 0.1
        Standard deviation of the independent normal entries of F and W.
    balanced : bool, default False
        Draw W alone and choose F with F^T F = W W^T: W's singular values, its left singular vectors as right ones, and
        b x min(d, V) random orthonormal columns.
    seeds : int n, for 0..n-1, or a sequence
    gram : array, shape (b, b), default None
        Inner products of the inputs, positive definite. F is then L times the normal draw, L the Cholesky factor, as it
        would be were a normal matrix of input weights multiplied by such inputs.

    Raises
    ------
    ValueError
        Says which of them was wrong.
    """
    counts, seeds = _counts(counts), _seeds(seeds)
    b, classes = sum(counts), len(counts)
    if int(width) != width or width < 1:
        raise ValueError(f"width (d) must be a whole number of at least 1, got {width}.")
    if not (np.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be positive and finite, got {scale}: from 0 nothing moves.")
    if balanced and (gram is not None or b < min(width, classes)):
        raise ValueError("a balanced start needs orthonormal inputs (gram=None) and at least min(width, classes) "
                         f"samples, got {b} samples, width {width}, {classes} classes.")
    draws = [np.random.default_rng(seed) for seed in seeds]
    features = scale * np.stack([rng.standard_normal((b, width)) for rng in draws])
    classifier = scale * np.stack([rng.standard_normal((width, classes)) for rng in draws])
    if balanced:
        u, s, _ = np.linalg.svd(classifier, full_matrices=False)
        columns = np.linalg.qr(np.stack([rng.standard_normal((b, s.shape[-1])) for rng in draws]))[0]
        features = columns * s[:, None, :] @ u.swapaxes(1, 2)
    if gram is not None:
        gram = _gram(gram, b)
        features = np.linalg.cholesky(gram) @ features
    return Start(features, classifier, np.repeat(np.arange(classes), counts), seeds, gram)


def zipf_counts(classes: int, exponent: float, samples: int) -> tuple[int, ...]:
    """Samples of each class in proportion to rank^-exponent, rounded, each at least 1; their sum is near `samples`."""
    shares = np.arange(1, classes + 1) ** -float(exponent)
    return tuple(np.maximum(1, np.round(samples * shares / shares.sum())).astype(int).tolist())


def alike_inputs(counts: Sequence[int], cosine: float, among: str = "class") -> np.ndarray:
    """`gram` of unit inputs with this cosine (0 to below 1) between any two of one class, or, among="all", any two."""
    if among not in ("class", "all") or not 0 <= cosine < 1:
        raise ValueError(f'among must be "class" or "all" and the cosine in 0..1 and below 1, got {among!r}, {cosine}.')
    labels = np.repeat(np.arange(len(counts)), _counts(counts))
    same = (labels[:, None] == labels) if among == "class" else np.ones((len(labels), len(labels)))
    return (1 - cosine) * np.eye(len(labels)) + cosine * same


def _counts(counts) -> list[int]:
    counts = list(np.asarray(counts).ravel().tolist())
    if len(counts) < 2:
        raise ValueError(f"counts needs at least two classes, got {counts}: with one there is nothing to learn.")
    if any(count != int(count) or count < 1 for count in counts):
        raise ValueError(f"counts must be positive whole numbers, samples of each class, got {counts}.")
    return [int(count) for count in counts]


def _seeds(seeds) -> tuple[int, ...]:
    chosen = tuple(range(seeds)) if isinstance(seeds, (int, np.integer)) else tuple(int(seed) for seed in seeds)
    if not chosen or min(chosen) < 0:
        raise ValueError(f"seeds must be a positive number of them, or a sequence of numbers from 0 up, got {seeds}.")
    return chosen


def _gram(gram, b: int) -> np.ndarray:
    gram = np.asarray(gram, dtype=float)
    if gram.shape != (b, b) or not np.allclose(gram, gram.T) or np.linalg.eigvalsh(gram)[0] <= 0:
        raise ValueError(f"gram must be a positive definite matrix of shape ({b}, {b}), the inner products of the "
                         f"inputs; got shape {gram.shape}.")
    return gram

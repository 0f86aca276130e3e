"""Where descents begin: random features and classifiers, the start of the paper's Fig 4, the classes' counts, inputs
that are alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

# Fig 4's start, in degrees: where its first class points, from there to the next, and how much less its weights turn
FIRST, GAP, LAG = 100.0, 98.3, 10.0


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
    counts, seeds, width = _counts(counts), _seeds(seeds), _width(width)
    b, classes = sum(counts), len(counts)
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


def constructed(counts: Sequence[int], width: int = 2, *, directions: str = "figure",
                lengths: Sequence[float] = (0.6, 0.75), spread: float = 0.05, jitter: float = 1e-3,
                seeds: int | Sequence[int] = 1) -> Start:
    """The start that the paper's Fig 4 seems to have: its frequent classes are there already, its two last are not.

    The paper does not describe its start. Others read this one off the markers in its figure
    (fragmential/training-time-entropy-circuits): the samples of each frequent class lie side by side in one direction
    of the plane, with the class's weights; the two last classes, the rare ones, have their features at the origin and
    no weights, so that nothing but the jitter tells them from each other. The figure has counts (2, 2, 1, 1).

    Parameters
    ----------
    counts : sequence of int, length V, at least 3
    width : int, default 2
        d. The directions lie in the plane of the first two coordinates.
    directions : "figure" or "random"
        As in the figure (for more than three frequent classes, spread evenly), or drawn for each class and seed, with
        weights along them.
    lengths : sequence of float, default (0.6, 0.75)
        Of the features and weights of each frequent class, from the first on, over again if there are more classes.
    spread : float, default 0.05
        The samples of a frequent class lie evenly from so far on one side of its direction to so far on the other.
    jitter : float, default 1e-3
        Standard deviation of the normal numbers added to every entry of F and W.
    seeds : int n, for 0..n-1, or a sequence

    Raises
    ------
    ValueError
        Says which of them was wrong.
    """
    counts, seeds, width = _counts(counts), _seeds(seeds), _width(width)
    frequent = len(counts) - 2
    if frequent < 1:
        raise ValueError(f"a constructed start needs a frequent class beside the two rare ones, got counts {counts}.")
    if directions not in ("figure", "random") or not jitter >= 0:
        raise ValueError(f'directions must be "figure" or "random", and jitter not negative, got {directions!r}, '
                         f"{jitter}.")
    draws = [np.random.default_rng(seed) for seed in seeds]
    angles = np.tile(FIRST - min(GAP, 360 / frequent) * np.arange(frequent), (len(seeds), 1))
    lag = np.where(np.arange(frequent) == 0, LAG, 0.0)
    if directions == "random":
        angles, lag = np.stack([rng.uniform(0, 360, frequent) for rng in draws]), 0.0
    lengths = np.resize(np.asarray(lengths, dtype=float), frequent)[:, None]
    labels, plane = np.repeat(np.arange(len(counts)), counts), min(width, 2)
    aside = np.concatenate([np.linspace(spread, -spread, n) if n > 1 else [0.0] for n in counts[:frequent]])[:, None]
    features, classifier = np.zeros((len(seeds), len(labels), width)), np.zeros((len(seeds), width, len(counts)))
    of = labels[labels < frequent]
    placed = (lengths * _along(angles))[:, of] + aside * _along(angles + 90)[:, of]
    features[:, : len(of), :plane] = placed[..., :plane]
    classifier[:, :plane, :frequent] = (lengths * _along(angles - lag)).swapaxes(1, 2)[:, :plane]
    features += jitter * np.stack([rng.standard_normal(features.shape[1:]) for rng in draws])
    classifier += jitter * np.stack([rng.standard_normal(classifier.shape[1:]) for rng in draws])
    return Start(features, classifier, labels, seeds)


def coincident(begun: Start, jitter: float = 1e-3) -> Start:
    """The same start with its two last classes, features and weights, at the origin, told apart by a normal jitter."""
    rare = begun.labels >= begun.classifier.shape[2] - 2
    features, classifier = begun.features.copy(), begun.classifier.copy()
    for k, seed in enumerate(begun.seeds):
        rng = np.random.default_rng([seed, 2])  # 1 orders mini-batches
        features[k, rare] = jitter * rng.standard_normal((rare.sum(), features.shape[2]))
        classifier[k, :, -2:] = jitter * rng.standard_normal((features.shape[2], 2))
    return replace(begun, features=features, classifier=classifier)


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


def _width(width) -> int:
    if int(width) != width or width < 1:
        raise ValueError(f"width (d) must be a whole number of at least 1, got {width}.")
    return int(width)


def _along(degrees) -> np.ndarray:
    """Unit vectors of the plane in these directions, on a new last axis."""
    return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], -1)


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

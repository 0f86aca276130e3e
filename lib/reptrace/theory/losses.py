"""The two losses that the model can be trained on, summed over the samples."""

from __future__ import annotations

import numpy as np
from scipy.special import log_softmax

LOSSES = ("cross-entropy", "squared")


def check_loss(loss: str) -> None:
    """Raises ValueError unless it is one of `LOSSES`."""
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}.")


def loss_of(logits, labels, loss: str) -> np.ndarray:
    """Of n models, shape (n,), from their logits (n, b, V) and the labels (b,); nats where it is cross-entropy."""
    if loss == "squared":
        return 0.5 * ((logits - np.eye(logits.shape[-1])[labels]) ** 2).sum((1, 2))
    return -log_softmax(logits, axis=-1)[:, np.arange(len(labels)), labels].sum(1)

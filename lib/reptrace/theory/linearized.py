"""The model solved while its logits are near zero."""

from __future__ import annotations

import numpy as np

from reptrace.theory.losses import check_loss
from reptrace.theory.starts import Start


def linearized(start: Start, times, loss: str = "cross-entropy") -> tuple[np.ndarray, np.ndarray]:
    """Gradient flow with the error fixed at its value for zero logits: features (S, T, b, d), classifier (S, T, d, V).

    Near F W = 0 the error is -D, D = Y - 1/V (cross-entropy, P = 1/V) or D = Y (squared). Then dF/dt = D W^T and
    dW/dt = F^T D are linear, and D = A diag(s) B^T takes them apart: X = A^T F and Z = B^T W^T follow dX/dt = s Z,
    dZ/dt = s X, hence X(t) = cosh(s t) X(0) + sinh(s t) Z(0) and the same with X and Z exchanged; what lies outside the
    columns of A and B stays. This is not Theorem 2, which needs balance and holds all along; this needs small logits.

    Parameters
    ----------
    start : Start, with orthonormal inputs
    times : array, shape (T,)
        Time of gradient flow: steps times rate.
    """
    if start.gram is not None:
        raise ValueError("the linearized dynamics are for orthonormal inputs, gram=None.")
    check_loss(loss)
    classes = start.classifier.shape[-1]
    drive = np.eye(classes)[start.labels] - (1 / classes if loss == "cross-entropy" else 0.0)
    a, s, bt = np.linalg.svd(drive, full_matrices=False)
    angle = s[:, None] * np.asarray(times, dtype=float)[:, None, None]
    x = (a.T @ start.features)[:, None]
    z = (bt @ start.classifier.swapaxes(1, 2))[:, None]
    moved_x = (np.cosh(angle) - 1) * x + np.sinh(angle) * z
    moved_z = (np.cosh(angle) - 1) * z + np.sinh(angle) * x
    return start.features[:, None] + a @ moved_x, start.classifier[:, None] + (bt.T @ moved_z).swapaxes(2, 3)

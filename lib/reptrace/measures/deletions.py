"""RankMe without one of the sequences, exactly, for each of them: what the delete-one jackknife is made of.

Without row z (from the mean, in the eigenbasis) a covariance S of M rows is (S - c z z^T) M / (M - 1), c = 1 / (M - 1),
and RankMe needs two traces of it. tr S falls by c |z|^2. For tr S ln S take s ln s as the integral over t > 0 of
s / (1 + t) - s / (s + t), and the change of tr t (S + t)^-1 by Sherman and Morrison's formula: with R = (S + t)^-1

    q(t) = c t z^T R^2 z / (1 - c z^T R z),  between 0 and 1 since the eigenvalues interlace,

tr S ln S changes by the integral of q(t) - w_0 / (1 + t), w_k = c z^T S^k z. So a few products of the squared
coordinates with 1 / (s + t) do for all rows what would take a spectrum for each. On the logarithm of t the
trapezoidal rule converges exponentially (Trefethen & Weideman, SIAM Review 56, 2014). w_0 / (tau + t), with
tau = (2 w_1 - w_0^2) / w_0, is taken out, whose integral is known and which falls off as q does, to second order in
1 / t.
"""

from __future__ import annotations

import numpy as np
import torch

# An eigenvalue below this share of the largest is rounding: float32 features carry noise of relative variance
# (6e-8)^2 = 4e-15 a direction, and the final norm removes one direction exactly.
NEGLIGIBLE = 1e-12
# Nodes of t, in shares of the largest eigenvalue: from far below what is rounding, as one row may have nearly all of
# the variance, to where the rest has fallen off. A standard error is right to 1e-4.
STEP = 1.25
NODES = np.exp(np.arange(-21 - 10 * STEP, 9 + STEP, STEP))


def rankme_without(z_squares: torch.Tensor, eigenvalues: np.ndarray, samples: int) -> torch.Tensor:
    """RankMe of all rows but one, shape (rows,), float64; 1 where the others do not vary.

    Parameters
    ----------
    z_squares : tensor, shape (rows, d), float64
        Squared coordinates, from the mean, on the eigenvectors; of some of the rows, or of all.
    eigenvalues : array, shape (d,), float64, largest first
        Of the centred covariance of all rows, divided by M.
    samples : int
        M, three or more.
    """
    kept = int((eigenvalues > NEGLIGIBLE * eigenvalues[0]).sum())
    s, nodes = (torch.as_tensor(each, device=z_squares.device) for each in (eigenvalues[:kept], NODES))
    s, parts = s / s[0], z_squares[:, :kept] / (s[0] * (samples - 1))
    inverse = 1 / (s[:, None] + nodes)
    left = 1 - parts @ inverse
    q = torch.where(left > 0, (nodes * (parts @ inverse.square()) / left).clamp(max=1), 1.0)  # by rounding it may stray
    first, second = parts.sum(1), parts @ s
    tau = ((2 * second - first.square()) / first).nan_to_num(nan=1.0).clamp(min=NODES[0])
    known = first[:, None] / (tau[:, None] + nodes)
    change = STEP * ((q - known) @ nodes) - first * tau.log()
    total = s.sum() - first
    logarithm = total.log() - ((s * s.log()).sum() + change) / total
    return torch.where(total > NEGLIGIBLE, logarithm.exp(), 1.0)

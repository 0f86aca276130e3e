"""How RankMe and alpha differ between two checkpoints that read the same sequences, with the paired standard error.

The draw of sequences moves both checkpoints alike, so most of each one's own error cancels in their difference. With
phi the influence of a sequence on a statistic (`influences`), the infinitesimal jackknife of the difference is

    SE(T_after - T_before) = sqrt(sum (phi_after - phi_before)^2) / M.

It says how far the change would move with other sequences from the same source, not with another seed of training.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from reptrace.measures.influences import of_rows
from reptrace.measures.spectra import Decomposed, decompose


@dataclass(frozen=True)
class Change:
    """Of RankMe and of alpha, after less before, with paired standard errors; alpha's are nan where it has no window.

    Attributes
    ----------
    rankme, rankme_stderr, alpha, alpha_stderr : float
    """

    rankme: float
    rankme_stderr: float
    alpha: float
    alpha_stderr: float


def paired_change(before, after, ranks: tuple[int, int] | None = (12, 100)) -> Change:
    """From one feature matrix to another whose row i is of the same sequence.

    Parameters
    ----------
    before, after : array or tensor, shape (M, d) and (M, d'), floating point
        Widths may differ. All rows are taken, which costs M d^2 beside `geometry`'s covariance.
    ranks : (int, int) or None, default (12, 100)
        Window of both fits of alpha, see `spectra.alpha_req`; None leaves alpha out.

    Raises
    ------
    TypeError, ValueError
        As of `spectra.geometry`; and where the numbers of rows differ.
    """
    if len(before) != len(after):
        raise ValueError(f"a paired change takes the same sequences of both, in one order; got {len(before)} rows "
                         f"before and {len(after)} after.")
    first, last = decompose(before, ranks), decompose(after, ranks)
    apart = _influences(after, last) - _influences(before, first)
    rankme_stderr, alpha_stderr = (float(each) for each in np.sqrt(np.square(apart).sum(0)) / len(apart))
    change = last.rankme - first.rankme
    if first.alpha is None or last.alpha is None:
        return Change(change, rankme_stderr, float("nan"), float("nan"))
    return Change(change, rankme_stderr, last.alpha.alpha - first.alpha.alpha, alpha_stderr)


def _influences(features, read: Decomposed) -> np.ndarray:
    """phi of each row on RankMe and alpha, shape (M, 2), in float64 whatever the width: differences are small."""
    features = torch.as_tensor(features).detach()
    return of_rows(features, read.mean, read.vectors, read.eigenvalues, read.gradients)

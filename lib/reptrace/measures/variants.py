"""RankMe and alpha as others define them: without centring, of singular values; with standard errors.

`spectra` reads eigenvalues of the centred covariance, as Li et al. 2025 do. Garrido et al. 2023 (arXiv 2210.02885), who
coined the name RankMe, read the singular values of the features as they are. These are two choices, and each can be
made without the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from reptrace.measures.influences import of_rows
from reptrace.measures.spectra import NEGLIGIBLE, alpha_req, derivatives, geometry, rankme


@dataclass(frozen=True)
class Variant:
    """RankMe and alpha by some choice, with standard errors over the draw of sequences.

    Attributes
    ----------
    rankme, rankme_stderr, alpha, alpha_stderr : float
        alpha's are nan where fewer than three ranks can be fitted.
    """

    rankme: float
    rankme_stderr: float
    alpha: float
    alpha_stderr: float


def variant(features: torch.Tensor, ranks: tuple[int, int] = (12, 100), centred: bool = True,
            singular: bool = False) -> Variant:
    """One reading of a feature matrix.

    The paper's choice is read by `spectra.geometry`. The standard errors of the others are those of the infinitesimal
    jackknife alone: a row x with coordinates z_i on eigenvector i moves eigenvalue s_i by z_i^2 - s_i, of the second
    moment as of the covariance, and a singular value sigma_i = sqrt(s_i) by half of that over sigma_i.

    Parameters
    ----------
    features : tensor, shape (M, d), floating point and finite
    ranks : (int, int), default (12, 100)
        alpha's window, cut where the spectrum ends sooner, see `spectra.alpha_req`.
    centred : bool, default True
        False: of the second moment F^T F / M, in which the mean counts as a direction.
    singular : bool, default False
        True: RankMe and alpha of singular values, the roots of the eigenvalues. Without centring this is Garrido et
        al.'s RankMe, but for their epsilon of 1e-7 (`spectra.singular_value_rankme`).
    """
    if centred and not singular:
        known = geometry(features, ranks, shorten=True)
        return Variant(known.rankme, known.rankme_stderr, known.alpha.alpha if known.alpha else float("nan"),
                       known.alpha_stderr)
    rows = features.double()
    mean = rows.mean(0) if centred else torch.zeros_like(rows[0])
    ascending, vectors = torch.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
    s, vectors = ascending.flip(0).numpy(), vectors.flip(1)
    s = np.where(s > NEGLIGIBLE * s[0], s, 0)
    values = np.sqrt(s) if singular else s
    found = rankme(values)
    first, last = ranks
    fit = alpha_req(values, ranks, shorten=True) if min(last, np.count_nonzero(s)) >= first + 2 else None
    gradients = derivatives(values, found, fit)
    if singular:
        gradients[s > 0] /= 2 * values[s > 0, None]
    influences = of_rows(rows, mean, vectors, s, gradients)
    rankme_stderr, alpha_stderr = (float(each) for each in np.sqrt(np.square(influences).sum(0)) / len(rows))
    return (Variant(found, rankme_stderr, fit.alpha, alpha_stderr) if fit else
            Variant(found, rankme_stderr, float("nan"), float("nan")))

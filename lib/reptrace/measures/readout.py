"""What the states share with what reads them: the leading directions of both, and the direction of token frequency.

The unembedding is centred over the vocabulary first: a vector that is added to all its rows moves every logit alike,
which the softmax doesn't see.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from reptrace.measures.measure import measure
from reptrace.measures.moments import BLOCK_ROWS, Moments, products_dtype
from reptrace.measures.spectra import NEGLIGIBLE, Decomposed, decompose, rankme

OF_K = ("share", "overlap")


@dataclass(frozen=True)
class Head:
    """An unembedding's directions.

    Attributes
    ----------
    directions : tensor, shape (d, d), float64
        Its right singular vectors (centred), a column each, the largest singular value first.
    rank : float
        exp(entropy) of the eigenvalues of its centred covariance over the vocabulary: RankMe of its rows, as
        `spectra.rankme` of states.
    tied : bool
        Whether its weights are those of the embeddings.
    """

    directions: torch.Tensor
    rank: float
    tied: bool

    @classmethod
    def of(cls, unembedding: torch.Tensor, tied: bool) -> Head:
        """From the weights, shape (V, d), V >= 2; on their device. V d^2 operations, and the eigenvectors' d^3."""
        found = Moments(unembedding.shape[1], unembedding.device).update(unembedding.detach())
        values, vectors = torch.linalg.eigh(found.covariance())
        return cls(vectors.flip(1), rankme(values.flip(0).clamp(min=0).cpu().numpy()), tied)


def compared(head: Head, samples: int) -> dict[str, int]:
    """How many leading directions are compared, by what stands before `share` and `overlap` in the columns' names.

    ValueError where so many sequences do not settle as many directions of the states.
    """
    width = len(head.directions)
    ks = {"": max(1, min(width - 1, round(head.rank))), "quarter_": max(1, round(width / 4))}
    if samples < (least := max(ks.values()) + 2):
        raise ValueError(f"readout compares {max(ks.values())} leading directions of the states: that needs {least} "
                         f"sequences at least, got {samples}: measure more (--sequences), or leave readout out.")
    return ks


@measure(needs=["features", "head"], least=3, check=lambda given, samples: compared(given["head"], samples),
         operations=lambda samples, width: 8.0 * samples * width**2,
         columns={"readout_rank": None, "readout_k": None,
                  **{f"readout_{what}": f"readout_{what}_stderr" for what in OF_K}, "readout_chance": None,
                  **{f"readout_quarter_{what}": f"readout_quarter_{what}_stderr" for what in OF_K},
                  "readout_quarter_chance": None, "unembedding_tied": None})
def readout(features: torch.Tensor, head: Head) -> dict:
    """How much of the states the unembedding reads along its leading directions; shares, 0 to 1.

    `share`: of the states' total variance, what lies inside the unembedding's k leading directions. `overlap`: mean
    squared cosine of the principal angles between these and the states' own k leading ones. Random directions hold
    k / d of both on average (`chance`). k is the unembedding's effective rank (`readout_rank`, see `Head`), rounded;
    and d / 4, rounded, in the columns with `quarter`. arXiv 2605.17084 reports that small Pythias lose this alignment
    late in training. Where the weights are tied (`unembedding_tied`) the same directions also enter the model.

    Standard errors over the draw of sequences: the infinitesimal jackknife, that of a ratio for the share, and through
    the first-order change of the states' leading directions for the overlap. The latter grows without bound where the
    k-th and the next eigenvalue come close, and then means that these directions are not settled. nan for both where
    the states vary along fewer than k directions: the rest of their leading ones would be anybody's.

    Parameters
    ----------
    features : tensor, shape (M, d), M > k + 1

    Raises
    ------
    ValueError
        The width is not the unembedding's, as of a layer of another width; or fewer sequences than k + 2.
    """
    count, width = features.shape
    if width != len(head.directions):
        raise ValueError(f"states of width {width} are not what an unembedding of width {len(head.directions)} reads.")
    ks = compared(head, count)
    read, found = decompose(features, None), {"readout_rank": head.rank, "readout_k": ks[""]}
    for name, k in ks.items():
        directions = head.directions[:, :k].to(features.device)
        for what, (value, stderr) in zip(OF_K, _aligned(features, read, directions), strict=True):
            found |= {f"readout_{name}{what}": value, f"readout_{name}{what}_stderr": stderr}
        found[f"readout_{name}chance"] = k / width
    return {**found, "unembedding_tied": head.tied}


def _aligned(features: torch.Tensor, read: Decomposed, directions: torch.Tensor) -> list[tuple[float, float]]:
    """Share of the variance in the span of orthonormal columns, shape (d, k), and overlap with the leading k
    eigenvectors, each with its standard error."""
    k, values = directions.shape[1], torch.as_tensor(read.eigenvalues, device=features.device)
    cosines = read.vectors.T @ directions  # (d, k)
    inside, total = float(values @ cosines.square().sum(1)), float(values.sum())
    share, overlap = inside / total, float(cosines[:k].square().sum() / k)
    gaps = values[:k, None] - values[k:]
    # An infinitesimal dC turns eigenvector a towards b by b'dC a / (s_a - s_b); equal ones may be turned at no price.
    turns = torch.where(gaps > 0, 2 / k * (cosines[:k] @ cosines[k:].T) / gaps, 0.0)
    dtype = products_dtype(features.dtype, features.shape[1])
    mean, vectors, cosines, turns = (each.to(dtype) for each in (read.mean, read.vectors, cosines, turns))
    of_share = of_overlap = 0.0
    for block in features.split(BLOCK_ROWS):
        z = (block.to(dtype) - mean) @ vectors
        influence = (z @ cosines).double().square().sum(1) - share * z.double().square().sum(1)
        of_share += float(influence.square().sum())
        of_overlap += float(((z[:, :k] @ turns) * z[:, k:]).double().sum(1).square().sum())
    if (values > NEGLIGIBLE * values[0]).sum() < k:
        overlap = of_overlap = math.nan
    return [(share, of_share**0.5 / total / len(features)), (overlap, of_overlap**0.5 / len(features))]


@dataclass(frozen=True)
class Readout:
    """An unembedding, as far as directions of the states go.

    Attributes
    ----------
    directions : array, shape (d, d), float64
        Its right singular vectors (centred), a column each, the largest singular value first.
    frequency : array, shape (d,), float64, of length 1
        Along this direction of the states the logits change as the log frequencies of the tokens do, as nearly as they
        can: the least-squares solution w of W_c w = log f - mean.
    frequency_r2 : float
        Share of the variance of the log frequencies, over the tokens that occur, which that solution accounts for.
    """

    directions: np.ndarray
    frequency: np.ndarray
    frequency_r2: float

    @classmethod
    def of(cls, unembedding, counts) -> Readout:
        """From the weights, shape (V, d), and how often each token occurs in the training text, shape (V,).

        Tokens that never occur have no log frequency and are left out of its fit.

        Raises
        ------
        ValueError
            The shapes don't fit, or fewer tokens occur than there are dimensions.
        """
        weights, counts = np.asarray(unembedding, float), np.asarray(counts, float)
        if weights.ndim != 2 or counts.shape != weights.shape[:1]:
            raise ValueError(f"expected weights (V, d) and counts (V,), got {weights.shape} and {counts.shape}.")
        seen = counts > 0
        if seen.sum() <= weights.shape[1]:
            raise ValueError(f"{seen.sum()} tokens occur, which does not settle a direction of {weights.shape[1]} "
                             "dimensions.")
        directions = np.linalg.svd(weights - weights.mean(0), full_matrices=False)[2].T
        rows, logs = weights[seen] - weights[seen].mean(0), np.log(counts[seen])
        logs = logs - logs.mean()
        solution = np.linalg.lstsq(rows, logs, rcond=None)[0]
        rest = logs - rows @ solution
        return cls(directions, solution / np.linalg.norm(solution), 1 - rest @ rest / (logs @ logs))


def overlap(first, second) -> float:
    """Mean squared cosine of the principal angles between two subspaces: 1 where the smaller lies in the larger.

    Parameters
    ----------
    first, second : array, shape (d, k) and (d, m); orthonormal columns

    Two random subspaces of the same space share max(k, m) / d on average.
    """
    first, second = np.asarray(first, float), np.asarray(second, float)
    return float(np.square(first.T @ second).sum() / min(first.shape[1], second.shape[1]))


def share_along(covariance, directions) -> np.ndarray:
    """Share of the total variance along each of some unit directions, shape (d, k) or (d,): v' C v / trace C."""
    covariance, directions = np.asarray(covariance, float), np.asarray(directions, float)
    return np.einsum("i...,ij,j...->...", directions, covariance, directions) / np.trace(covariance)

"""What the states share with what reads them: the leading directions of both, and the direction of token frequency.

The unembedding is centred over the vocabulary first: a vector that is added to all its rows moves every logit alike,
which the softmax doesn't see.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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

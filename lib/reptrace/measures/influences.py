"""How far each sequence moves RankMe and alpha: what the standard errors are summed from.

A row x with coordinates z_i on eigenvector i moves a statistic T by phi(x) = sum_i dT/ds_i (z_i^2 - s_i) to first
order, and RankMe without it is known exactly (`deletions`). All coordinates of all rows take an M x d x d product,
twice the price of the covariance. Where that is long (products in float32, that is from a width of 1024 on, and many
rows), less is computed:

- The leading coordinates of every row, LEADING or as many as alpha's window needs, and its squared distance from the
  mean. They give alpha's influences whole, and a guess of RankMe's: the variance beyond the leading directions enters
  with the mean gradient there.
- All coordinates of a part of the rows: the SURE farthest from the mean, the SURE whose guess is largest, and CHANCE of
  the others at random (always the same for the same number of rows). The sum over the others is that of their guesses
  squared, and what these were wrong by on those at random, times others / CHANCE (the difference estimator, Cochran,
  Sampling Techniques, 1977, section 7.3, with slope 1).

Of RankMe without a row the same is summed, (M - 1) times what it differs by in place of phi.

An outlier is among the rows taken for sure. For the others, were all guesses alike, RankMe's standard error would be
off by sqrt((kurtosis - 1) / CHANCE) / 2, 2.2 % for normal influences; see `geometry` for what was measured. So many
rows are a tenth of 15,000: with fewer little would be gained, as the eigenvectors take ten times as long.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from reptrace.measures.deletions import rankme_without
from reptrace.measures.moments import BLOCK_ROWS, products_dtype

LEADING, SURE, CHANCE = 128, 256, 1024


@dataclass(frozen=True)
class Influences:
    """Sums over the rows of squared influences on RankMe and on alpha, the largest of the former, and distances.

    Attributes
    ----------
    squares : array, shape (2,), float64
        Sum of phi^2 for RankMe and for alpha.
    deleted : float
        Sum of the squares of what RankMe without a row differs by from their mean, times (M - 1)^2: as `squares` to
        first order. nan of two rows.
    largest : float
        The largest phi^2 for RankMe.
    distances : array, shape (M,), float64
        Squared, from the mean.
    """

    squares: np.ndarray
    deleted: float
    largest: float
    distances: np.ndarray


def influences(features: torch.Tensor, mean: torch.Tensor, vectors: torch.Tensor, s: np.ndarray,
               gradients: np.ndarray) -> Influences:
    """Of every row, or told from a part of them where that saves much.

    Parameters
    ----------
    features : tensor, shape (M, d)
    mean, vectors : tensor, shape (d,) and (d, d), float64, on the features' device
        Eigenvectors are columns, that of the largest eigenvalue first.
    s, gradients : array, shape (d,) and (d, 2), float64
        Eigenvalues, and by them the derivatives of RankMe and alpha.
    """
    dtype = products_dtype(features.dtype, features.shape[1])
    mean, vectors = mean.to(dtype), vectors.to(dtype)
    if dtype == torch.float64 or len(features) <= 2 * (2 * SURE + CHANCE):
        phi, deleted, distances = _whole(features, mean, vectors, s, gradients, len(features))
        found = np.square(phi)
        return Influences(found.sum(0), float(np.square(deleted - deleted.mean()).sum()), float(found[:, 0].max()),
                          distances)
    return _from_a_part(features, mean, vectors, s, gradients)


def of_rows(features: torch.Tensor, mean: torch.Tensor, vectors: torch.Tensor, s: np.ndarray,
            gradients: np.ndarray) -> np.ndarray:
    """phi of each row, shape (rows, 2), float64; products are of the mean's dtype. Parameters as of `influences`."""
    return np.concatenate([_phi(each, s, gradients) for each in _squares(features, mean, vectors)])


def _squares(features: torch.Tensor, mean: torch.Tensor, vectors: torch.Tensor) -> Iterator[torch.Tensor]:
    """Squared coordinates on these vectors, shape (rows, vectors), float64, block by block."""
    for block in features.split(BLOCK_ROWS):
        yield ((block.to(mean.dtype) - mean) @ vectors).double().square()


def _phi(z_squares: torch.Tensor, s: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    on_device, expected = (torch.as_tensor(array, device=z_squares.device) for array in (gradients, s @ gradients))
    return (z_squares @ on_device - expected).cpu().numpy()


def _whole(features, mean, vectors, s, gradients, samples: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of these rows, of `samples` in all: phi, shape (rows, 2), RankMe without each of them times 1 - samples, and
    squared distances, shape (rows,)."""
    phi, deleted, distances = [], [], []
    for z_squares in _squares(features, mean, vectors):
        phi.append(_phi(z_squares, s, gradients))
        distances.append(z_squares.sum(1).cpu().numpy())
        deleted.append((1 - samples) * rankme_without(z_squares, s, samples).cpu().numpy() if samples > 2
                       else np.full(len(z_squares), np.nan))
    return np.concatenate(phi), np.concatenate(deleted), np.concatenate(distances)


def _from_a_part(features, mean, vectors, s, gradients) -> Influences:
    last = int(np.flatnonzero(gradients[:, 1]).max(initial=-1)) + 1  # alpha needs no further coordinate
    guesses, distances = _guessed(features, mean, vectors, s, gradients, max(LEADING, last))
    far = np.square(guesses[:, 0])
    sure = np.union1d(np.argsort(distances)[-SURE:], np.argsort(far)[-SURE:])
    others = np.setdiff1d(np.arange(len(features)), sure)
    chance = np.random.default_rng(0).choice(others, CHANCE, replace=False)
    part = np.concatenate([sure, chance])
    phi, deleted, _ = _whole(features[torch.as_tensor(part, device=features.device)], mean, vectors, s, gradients,
                             len(features))

    def of_all(known: np.ndarray, guessed: np.ndarray) -> float:
        """The sum over all rows of what is known of the part."""
        wrong = known[len(sure) :] - guessed[chance]
        return known[: len(sure)].sum() + guessed[others].sum() + len(others) * wrong.mean()

    middle = of_all(deleted, guesses[:, 0]) / len(features)
    squares, apart = np.square(phi[:, 0]), np.square(deleted - middle)
    # Never less than what was seen, however bad the guesses.
    return Influences(np.array([max(of_all(squares, far), squares.sum()), np.square(guesses[:, 1]).sum()]),
                      max(of_all(apart, far), apart.sum()), float(squares.max()), distances)


def _guessed(features, mean, vectors, s, gradients, leading: int) -> tuple[np.ndarray, np.ndarray]:
    """phi as the leading coordinates tell it, shape (M, 2), and whole squared distances, shape (M,)."""
    rest = s[leading:].sum()
    beyond = s[leading:] @ gradients[leading:] / rest if rest else np.zeros(2)
    vectors = vectors[:, :leading].contiguous()
    slopes, beyond, expected = (torch.as_tensor(array, device=features.device)
                                for array in (gradients[:leading] - beyond, beyond, s @ gradients))
    phi, distances = [], []
    for block in features.split(BLOCK_ROWS):
        centred = block.to(mean.dtype) - mean
        distance = centred.square().sum(1).double()
        z_squares = (centred @ vectors).double().square()
        phi.append((z_squares @ slopes + distance[:, None] * beyond - expected).cpu())
        distances.append(distance.cpu())
    return torch.cat(phi).numpy(), torch.cat(distances).numpy()

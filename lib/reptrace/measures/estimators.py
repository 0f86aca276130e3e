"""What a spectrum would be with many more sequences: estimators that correct for there being few.

From N sequences the largest eigenvalues come out too large and the smallest too small, so that RankMe is too low and a
flat spectrum too steep. Of the corrections in the literature, these are here to be compared (notebook `estimators`):

- `linear`: all eigenvalues drawn to their mean, as much as is best for the covariance's mean squared error (Ledoit &
  Wolf, J. Multivariate Analysis 88, 2004; scikit-learn's).
- `nonlinear`: each by itself, best for the same error in the sample's own directions (Ledoit & Wolf, Annals of
  Statistics 48, 2020, the analytical formula; no package that is kept up has it).
- `cross_validated`: the variance of held-out sequences along directions found without them (cross-validated PCA,
  Stringer et al., Nature 571, 2019; there the two parts are repeats of the same stimuli, and noise is taken out, which
  states of a model do not have: here they are other sequences).
- `extrapolated`: RankMe and alpha themselves, from N and N/2 sequences to infinitely many (Richardson; the generalized
  jackknife of Gray & Schucany, 1972).

The first three answer another question: the variance along the *sample's* directions, which are not those of the
text, is more even than the spectrum of the text, so that RankMe of normal rows comes out too high. The last one is the
sound one of the four, from `ENOUGH` sequences a dimension on. Its reason is RankMe's logarithm, an entropy, whose bias
goes with 1/N nearly exactly down to N = d for normal rows (d / 2N for a flat spectrum: Page, Physical Review Letters
71, 1993). Heavy tails have a bias that falls more slowly, and where rows are wide their scatter is small enough for
this to show. So what the same extrapolation from N/2 and N/4 differs by is added to the interval's half width, as
squares.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from reptrace.measures.influences import of_rows
from reptrace.measures.spectra import alpha_req, decompose, eigenspectrum, rankme

ENOUGH = 2  # sequences a dimension, so that half of them are still as many as the width
SPLITS = 2  # into halves; with more, little is gained, as the noise of the whole sample stays


@dataclass(frozen=True)
class Extrapolated:
    """RankMe and alpha as they would be with infinitely many sequences of the same kind.

    Attributes
    ----------
    rankme, alpha : float
        Extrapolated; alpha is nan without one, and RankMe where it would be below 1, as one row far out can make it.
        Where a half's spectrum ends inside the window, `shorten` fits fewer ranks of the half than of the whole: that
        alpha mixes the two, and has no interval.
    rankme_stderr, alpha_stderr : float
        Over the draw of sequences; nan where `sound` is false, and alpha's where its window reaches beyond rank N / 8.
    rankme_bias, alpha_bias : float
        What it is that few sequences do: the plain value minus the extrapolated one.
    rankme_rest, alpha_rest : float
        What may be left of it: the extrapolated value less the one extrapolated from N/2 and N/4 sequences. Of a bias
        that goes with N^-p, 1 / (2^p - 1) times as much is left: about as much where p is near 1, as RankMe's is, 2.4
        times where it is 1/2, a third where it is 2. nan, and no interval, where the sequences of a quarter are alike.
    samples, width : int
        N and d.
    """

    rankme: float
    rankme_stderr: float
    rankme_bias: float
    rankme_rest: float
    alpha: float
    alpha_stderr: float
    alpha_bias: float
    alpha_rest: float
    samples: int
    width: int

    @property
    def sound(self) -> bool:
        """Whether there are `ENOUGH` sequences a dimension; with fewer, no interval is given."""
        return self.samples >= ENOUGH * self.width

    @property
    def rankme_interval(self) -> tuple[float, float]:
        """95 % interval of RankMe of infinitely many sequences, even on a logarithmic scale: of 1.96 standard errors
        and what may be left of the bias, added up as squares."""
        factor = float(np.exp(np.hypot(1.96 * self.rankme_stderr, self.rankme_rest) / self.rankme))
        return self.rankme / factor, self.rankme * factor

    @property
    def alpha_interval(self) -> tuple[float, float]:
        """The same of alpha, of the same ranks, even as it is."""
        half = float(np.hypot(1.96 * self.alpha_stderr, self.alpha_rest))
        return self.alpha - half, self.alpha + half


def extrapolated(features, ranks: tuple[int, int] | None = (12, 100), shorten: bool = False,
                 seed: int = 0) -> Extrapolated:
    """ln RankMe and alpha, extrapolated in 1/N: twice that of all sequences minus the mean of those of halves.

    The standard errors are the infinitesimal jackknife's of this very difference: a sequence's influence is twice that
    on the whole, minus the mean of those on the halves it is in. alpha's is too large, up to twice, where eigenvalues
    lie close together: a first order does not know that they keep apart.

    Parameters
    ----------
    features : array or tensor, shape (N, d)
    ranks, shorten : see `spectra.geometry`
    seed : int, default 0; of the `SPLITS` random splits into halves

    Raises
    ------
    ValueError
        Fewer than eight sequences; otherwise as `geometry`. Halves have shorter spectra where N < 2 d.

    Notes
    -----
    It costs `SPLITS` times two spectra with their vectors, of half as many rows, and four without, of a quarter, beside
    that of all rows.
    """
    features = (features.detach() if isinstance(features, torch.Tensor) else
                torch.from_numpy(np.require(features, requirements=["C", "W"])))
    whole, influence, last = _values(features, ranks, shorten)  # refuses what is no feature matrix
    samples, width = features.shape
    if samples < 8:
        raise ValueError(f"quarters need two sequences each, so eight in all, got {samples}.")
    influence, halves, quarters = 2 * influence, [], []
    rng = np.random.default_rng(seed)
    for _ in range(SPLITS):
        for part in np.array_split(rng.permutation(samples), 2):
            half, of_half, _ = _values(features[torch.as_tensor(part, device=features.device)], ranks, shorten)
            halves.append(half)
            for quarter in np.array_split(part, 2):
                s = eigenspectrum(features[torch.as_tensor(quarter, device=features.device)])
                quarters.append((np.log(rankme(s)) if s[0] else np.nan, _alpha(s, ranks, shorten)))  # all rows alike
            influence[part] -= of_half * (samples / len(part) / 2 / SPLITS)  # a row has more weight in a half
    half, quarter = np.mean(halves, 0), np.mean(quarters, 0)
    found = 2 * whole - half
    rest = found - (2 * half - quarter)
    stderr = np.sqrt(np.square(influence).sum(0)) / samples
    if samples < ENOUGH * width:
        stderr[:] = np.nan
    if samples < 8 * last:  # of a half the last eigenvalues of the window would be too far from where they belong
        stderr[1] = np.nan
    value = float(np.exp(found[0])) if found[0] >= 0 else float("nan")
    return Extrapolated(value, value * stderr[0], float(np.exp(whole[0])) - value, value * float(rest[0]),
                        float(found[1]), float(stderr[1]), float(whole[1] - found[1]), float(rest[1]), samples, width)


def _values(features: torch.Tensor, ranks, shorten: bool) -> tuple[np.ndarray, np.ndarray, int]:
    """ln RankMe and alpha, shape (2,), every row's influence on them, shape (N, 2), and the last rank fitted."""
    read = decompose(features, ranks, shorten)
    influence = of_rows(features, read.mean, read.vectors, read.eigenvalues, read.gradients)
    alpha, last = (read.alpha.alpha, read.alpha.ranks[1]) if read.alpha else (np.nan, 0)
    return np.array([np.log(read.rankme), alpha]), influence / [read.rankme, 1 if read.alpha else np.nan], last


def _alpha(s: np.ndarray, ranks, shorten: bool) -> float:
    """alpha, or nan where these ranks cannot be fitted."""
    try:
        return alpha_req(s, ranks, shorten).alpha if ranks else float("nan")
    except ValueError:
        return float("nan")


def linear(features) -> np.ndarray:
    """Eigenvalues of Ledoit and Wolf's linear shrinkage (2004), shape (d,), float64, largest first."""
    from sklearn.covariance import ledoit_wolf

    shrunk, _ = ledoit_wolf(np.asarray(features, dtype=np.float64))
    return np.linalg.eigvalsh(shrunk)[::-1].clip(min=0)


def nonlinear(eigenvalues, samples: int) -> np.ndarray:
    """Ledoit and Wolf's analytical nonlinear shrinkage (2020), shape (d,), float64, largest first.

    The sample's spectral density f and its Hilbert transform H are estimated with Epanechnikov's kernel of bandwidth
    h lambda_i, h = n^(-1/3); an eigenvalue then becomes lambda / ((pi c lambda f)^2 + (1 - c - pi c lambda H)^2), with
    c = d / n. Where d > n, those that differ from zero become 1 / (pi^2 lambda (f^2 + H^2)), and the others all alike.

    Parameters
    ----------
    eigenvalues : array, shape (d,)
        Of the centred covariance, divided by N as everywhere here.
    samples : int
        N. One of them goes into the mean: n = N - 1.
    """
    width, n = len(eigenvalues), samples - 1
    if samples < 12:
        raise ValueError(f"the kernel needs at least 12 sequences, got {samples}.")
    s = np.sort(np.asarray(eigenvalues, np.float64))[max(0, width - n) :] * samples / n
    if not s[0] > 0:
        raise ValueError("the covariance is singular beyond what few sequences explain: leave out the directions "
                         "without variance.")
    h, root5 = n ** (-1 / 3), np.sqrt(5)
    scale = h * s
    x = (s[:, None] - s) / scale
    density = (3 / 4 / root5 * np.maximum(1 - x**2 / 5, 0) / scale).mean(1)
    edge = np.isclose(np.abs(x), root5, rtol=0, atol=1e-14)
    inside = np.where(edge, 0, x)  # at the kernel's edge the second term vanishes
    hilbert = -3 / 10 / np.pi * x + np.where(edge, 0, 3 / 4 / root5 / np.pi * (1 - inside**2 / 5) * np.log(
        np.abs((root5 - inside) / (root5 + inside))))
    hilbert = (hilbert / scale).mean(1)
    c = width / n
    if width <= n:
        found = s / ((np.pi * c * s * density) ** 2 + (1 - c - np.pi * c * s * hilbert) ** 2)
        return np.sort(found)[::-1]
    at_zero = (3 / 10 / h**2 + 3 / 4 / root5 / h * (1 - 1 / 5 / h**2) * np.log((1 + root5 * h) / (1 - root5 * h))
               ) / np.pi * (1 / s).mean()
    null = 1 / (np.pi * (width - n) / n * at_zero)
    found = s / (np.pi**2 * s**2 * (density**2 + hilbert**2))
    return np.sort(np.concatenate([np.full(width - n, null), found]))[::-1]


def cross_validated(features, folds: int = 5, seed: int = 0) -> np.ndarray:
    """Variance of held-out sequences along principal directions of the others, mean over folds, sorted; shape (d,)."""
    features = np.asarray(features, dtype=np.float64)
    parts = np.array_split(np.random.default_rng(seed).permutation(len(features)), folds)
    if len(features) < 2 * folds:
        raise ValueError(f"{folds} folds need at least {2 * folds} sequences, got {len(features)}.")
    found = np.zeros(features.shape[1])
    for part in parts:
        others = np.delete(features, part, axis=0)
        vectors = np.linalg.eigh(np.cov(others.T))[1][:, ::-1]
        found += ((features[part] - others.mean(0)) @ vectors).var(0, ddof=1) / folds
    return np.sort(found)[::-1]

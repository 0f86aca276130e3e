"""Effective rank and power-law exponent of a covariance spectrum.

The default quantity everywhere is the list of *eigenvalues of the centred covariance* (divided by M), all of them, in
float64, largest first, as in Li et al. 2025 (arXiv 2509.23024). Singular values of the uncentred features, which
Garrido et al. 2023 use, give a different number by a large factor and live here under their own names.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

import numpy as np
import scipy.linalg
import torch
from scipy.special import xlogy

from reptrace.measures.deletions import NEGLIGIBLE
from reptrace.measures.influences import influences
from reptrace.measures.moments import WIDE, Moments

# Share of the sequences (where they vary alike, a third to a half of them make up half of the variance), and of the
# influence. In SmolLM2-135M, 1,500 passages, RankMe falls from 124 to 12 where they are 0.01 and 0.2, and is back at
# 140 where they are 0.3 and 0.007.
FEW, TOO_MUCH = 0.02, 0.1
SMALL_STDERR, LARGE_STDERR = 0.03, 0.1  # relative to RankMe
SLIGHT = 0.5  # standard errors: a 95 % interval off by so much still covers 92 %
MANY = 4  # sequences a dimension from which on the bias is told well enough
FEWEST = 30  # sequences: the standard error that 16 of them tell was seen to scatter by 40 % of itself


@dataclass(frozen=True)
class AlphaFit:
    """A power law s_i = exp(intercept) i^(-alpha), fitted over the 1-based ranks first..last, both included.

    Attributes
    ----------
    alpha : float
        Exponent. Small: flat spectrum. Large: few directions carry the variance.
    stderr : float
        Standard error of the fit (residual scatter about the line), not of resampling; see `geometry` for that.
    r2 : float
        Weighted R2, over the same ranks and with the same weights as the fit; nan where ln s does not vary.
    intercept : float
        ln s at rank 1 on the fitted line.
    ranks : tuple of int
        The window fitted, (first, last).
    """

    alpha: float
    stderr: float
    r2: float
    intercept: float
    ranks: tuple[int, int]


@dataclass(frozen=True)
class Geometry:
    """The spectrum of one feature matrix and what is read off it.

    Attributes
    ----------
    eigenvalues : array, shape (d,), float64, largest first
    rankme, alpha : float, AlphaFit or None
    rankme_stderr, alpha_stderr : float
        Standard errors over the draw of sequences (jackknife, see `geometry`).
    samples : int
        M.
    largest_influence : float
        Share, 0 to 1, that one sequence has in the sum of squared influences on RankMe, to first order; at least
        1/M. Of a part of the rows, as for `rankme_stderr`; outliers are always among them.
    half_variance : int
        How many sequences, those farthest from the mean, make up half of the total variance; up to M/2.
    """

    eigenvalues: np.ndarray
    rankme: float
    rankme_stderr: float
    alpha: AlphaFit | None
    alpha_stderr: float
    samples: int
    largest_influence: float
    half_variance: int

    @property
    def dominated(self) -> bool:
        """Whether RankMe describes a few sequences rather than the text, see `dominated`."""
        return bool(dominated(self.half_variance, self.largest_influence, self.samples,
                              self.rankme_stderr / self.rankme))

    @property
    def few(self) -> str:
        """How few they are, in words."""
        return few_in_words(self.half_variance, self.largest_influence, self.samples)

    @property
    def settled(self) -> bool:
        """Whether `rankme_interval` is one for RankMe of infinitely many sequences, too: there is one, of `MANY`
        sequences a dimension, and the bias is at most `SLIGHT` standard errors. Where it is not,
        `estimators.extrapolated` has one from `estimators.ENOUGH` a dimension on.

        The bias is that of normal rows, `rankme_bias`, as many times as large as the square of `rankme_stderr` is
        against that of normal rows. In heavy tails this is a bound, and no estimate: they raise both, but the square by
        more (with rows of a multivariate t of 5 degrees of freedom, d = 128 and N = 4 d, twice too much at s_i ~ 1/i,
        and over ten times at i^-0.5).
        """
        if self.samples < max(FEWEST, MANY * len(self.eigenvalues)):
            return False
        p = _shares(self.eigenvalues)
        normal = 2 * np.square(xlogy(p, p) + p * np.log(self.rankme)).sum() / self.samples
        tails = max(1.0, (self.rankme_stderr / self.rankme) ** 2 / normal) if normal else 1.0
        return bool(tails * abs(rankme_bias(self.eigenvalues, self.samples)) <= SLIGHT * self.rankme_stderr)

    @property
    def rankme_interval(self) -> tuple[float, float]:
        """95 % interval of what RankMe is on average over draws of as many sequences (1.96 standard errors either way).

        Not of RankMe of infinitely many, which is higher, unless `settled`. Cut off at 1, below which there is no
        RankMe; nan with fewer than `FEWEST` sequences.
        """
        half = 1.96 * self.rankme_stderr if self.samples >= FEWEST else float("nan")
        return float(np.maximum(1.0, self.rankme - half)), self.rankme + half  # where nan stays nan

    @property
    def alpha_interval(self) -> tuple[float, float]:
        """95 % interval of what alpha is on average over draws of as many sequences.

        nan without alpha, and where its window reaches beyond rank M / 2: the last eigenvalues of so few sequences are
        all but zero, and their logarithms move by more than any first order tells.
        """
        given = self.alpha is not None and self.samples >= 2 * self.alpha.ranks[1]
        alpha = self.alpha.alpha if given else float("nan")
        return alpha - 1.96 * self.alpha_stderr, alpha + 1.96 * self.alpha_stderr


def few_in_words(half_variance: float, largest_influence: float, samples: int) -> str:
    """What `dominated` is about, for a message."""
    return (f"RankMe is that of a few sequences ({half_variance:.0f} of {samples:.0f} make up half of the variance, "
            f"one has {largest_influence:.0%} of the influence)")


def dominated(half_variance, largest_influence, samples, relative_stderr):
    """Whether RankMe is that of a few sequences: elementwise, bool.

    It is where at most FEW of them, or one, make up half of the total variance; where one has more than TOO_MUCH of the
    influence, and more than twice what chance gives to one of M (an influence goes with the square of a coordinate z,
    the largest z^2 of M normal ones is about 2 ln M, and the squares of z^2 - 1 add up to 2 M), while the standard
    error is not small; or where the standard error alone says so, being far above 1 / sqrt(M), that of sequences alike.

    So it is in middle layers of many trained models, where the last token of a few sequences is a massive activation
    (Sun et al. 2024, arXiv 2402.17762). alpha, a slope of logarithms over ranks beyond the first, hardly moves.

    Parameters
    ----------
    half_variance, largest_influence, samples : of `Geometry`
    relative_stderr : `rankme_stderr` over `rankme`
    """
    half, share, samples, stderr = (np.asarray(each, float) for each in (half_variance, largest_influence, samples,
                                                                         relative_stderr))
    by_chance = (2 * np.log(samples)) ** 2 / (2 * samples)
    one_of_them = (share > np.maximum(TOO_MUCH, 2 * by_chance)) & (stderr > SMALL_STDERR)
    unsure = stderr > np.maximum(LARGE_STDERR, 3 / np.sqrt(samples))
    return (half <= np.maximum(1, FEW * samples)) | one_of_them | unsure


def eigenspectrum(features) -> np.ndarray:
    """Eigenvalues of the centred covariance F_c^T F_c / M, all d of them, largest first.

    Parameters
    ----------
    features : array or tensor, shape (M, d), floating point
        One row a sequence. Left unchanged. Tensors are reduced on their own device.

    Returns
    -------
    numpy.ndarray, shape (d,), float64
        Never negative; at most min(M - 1, d) differ from zero by more than rounding.

    Raises
    ------
    TypeError, ValueError
        Not floating point; not two-dimensional; fewer than two rows; NaN or infinity (the first such row is named).

    Notes
    -----
    Cost: M d^2 operations for the covariance and 4/3 d^3 for the eigenvalues, in float64; where M < d, the M x M Gram
    matrix, which has the same nonzero eigenvalues, is used instead.
    """
    features = _as_tensor(features)
    samples, width = features.shape
    eigenvalues = np.zeros(width)
    if samples < width:
        centred = _centred(features)
        matrix = centred @ centred.T
    else:
        matrix = Moments(width, features.device).update(features).comoment
    found = _symmetric_eigenvalues(matrix) / samples
    eigenvalues[: len(found)] = found[::-1].clip(min=0)
    return eigenvalues


def rankme(eigenvalues) -> float:
    """Effective rank exp(-sum p_i ln p_i), p_i = s_i / sum s, of covariance eigenvalues (Roy & Vetterli 2007).

    No epsilon is added and no eigenvalue left out. Between 1 and the number of nonzero eigenvalues; scale-free. This is
    the RankMe of Li et al. 2025. Garrido et al.'s, on singular values of uncentred features: `singular_value_rankme`.
    """
    p = _shares(eigenvalues)
    return float(np.exp(-xlogy(p, p).sum()))


def alpha_req(eigenvalues, ranks: tuple[int, int] = (12, 100), shorten: bool = False) -> AlphaFit:
    """Exponent of the power law s_i ~ i^(-alpha) (alpha-ReQ, Agrawal et al. 2022), by weighted least squares.

    ln s_i is regressed on ln i with weights 1/i over an inclusive window of 1-based ranks. The default window, 12 to
    100, is what the authors' indices arange(11, 100) select.

    Parameters
    ----------
    eigenvalues : array, shape (d,)
        Covariance eigenvalues, largest first.
    ranks : (int, int), default (12, 100)
        First and last rank fitted.
    shorten : bool, default False
        Where the spectrum ends inside the window, fit up to its end instead of raising; `.ranks` says what was fitted.

    Raises
    ------
    ValueError
        The window is not 1 <= first < last, or is longer than the spectrum (rounding, below 1e-12 of the largest
        eigenvalue, does not count as spectrum), or fewer than three ranks are left.
    """
    s = _spectrum(eigenvalues)
    first, last = _window(s, ranks, shorten)
    c, x, weights = alpha_coefficients(first, last)
    y = np.log(s[first - 1 : last])
    alpha = float(c @ y)
    y_mean = np.average(y, weights=weights)
    intercept = y_mean + alpha * np.average(x, weights=weights)
    residual = float(weights @ (y - intercept + alpha * x) ** 2)
    total = float(weights @ (y - y_mean) ** 2)
    slope_variance = residual / (len(x) - 2) / (weights @ (x - np.average(x, weights=weights)) ** 2)
    varies = total > 1e-24 * len(x) * max(1.0, float(np.abs(y).max())) ** 2  # above the rounding of ln s
    return AlphaFit(alpha, float(np.sqrt(slope_variance)), 1 - residual / total if varies else float("nan"),
                    float(intercept), (first, last))


def geometry(features, ranks: tuple[int, int] = (12, 100), shorten: bool = False) -> Geometry:
    """Spectrum, RankMe and alpha of a feature matrix, with standard errors over the draw of sequences.

    alpha's standard error is the infinitesimal jackknife's (Efron 1982; delete-one resampling to first order): if row x
    has coordinates z_i on eigenvector i, its weight moves eigenvalue i by z_i^2 - s_i, hence a statistic T by
    phi(x) = sum_i dT/ds_i (z_i^2 - s_i), and SE(T) = sqrt(sum phi^2) / M. RankMe's is the larger one of that and of
    the delete-one jackknife's, sqrt((M - 1) / M sum (T_-x - mean)^2), exact for every row (`deletions`). Either is too
    small somewhere: the first on trained models' states where M is not many times d, since a row turns the spectrum
    towards itself, and where one sequence has all of the variance; the second in heavy tails, since leaving out what
    there is tells little of what may come. From a width of about 1,000 on they cost one more spectrum, at 64
    about three, where a bootstrap would cost hundreds.

    From a width of 1024 on and of more than 3,072 rows (unless in float64), a part of the rows, 1,280 to 1,536, tells
    RankMe's (see `influences`). Of 15,000 rows that puts it off by 0.2 % (standard deviation over draws of the part)
    where s_i ~ i^-0.7 or steeper, heavy tails and clusters included, by 0.6 % at i^-0.5 and 0.8 % at i^-0.4; by 1.7 %
    where the spectrum is flat. alpha's is always that of all rows.

    They say how far the numbers would move with as many other sequences from the same source: the intervals are for
    the average over such draws. How often they hold it, and how often the value of infinitely many sequences, stands
    in data/results/estimator_coverage.csv (the notebook `estimators`). They do not cover the bias of few samples, for
    which see `Geometry.settled` and `estimators.extrapolated`, nor the scatter between training seeds.

    Parameters
    ----------
    features : array or tensor, shape (M, d)
    ranks, shorten : see `alpha_req`
        Where `shorten` leaves fewer than three ranks, or with `ranks=None`, RankMe alone is measured and alpha is None.
    """
    features = _as_tensor(features)
    samples, read = len(features), decompose(features, ranks, shorten)
    found = influences(features, read.mean, read.vectors, read.eigenvalues, read.gradients)
    rankme_stderr, alpha_stderr = np.sqrt(found.squares) / samples
    if samples > 2:
        rankme_stderr = max(rankme_stderr, np.sqrt(found.deleted / samples / (samples - 1)))
    return Geometry(read.eigenvalues, read.rankme, float(rankme_stderr), read.alpha,
                    float(alpha_stderr) if read.alpha else float("nan"), samples,
                    float(found.largest / found.squares[0]) if found.squares[0] else 1 / samples,
                    _half(found.distances))


@dataclass(frozen=True)
class Decomposed:
    """A feature matrix's mean and spectrum, what is read off it, and how that responds to an eigenvalue.

    Attributes
    ----------
    mean, vectors : tensor, shape (d,) and (d, d), float64, on the features' device; eigenvectors are columns
    eigenvalues : array, shape (d,), float64, largest first
    rankme, alpha : float, AlphaFit or None
    gradients : array, shape (d, 2), float64
        Derivatives of RankMe and of alpha by the eigenvalues; zeros where there is no alpha.
    """

    mean: torch.Tensor
    vectors: torch.Tensor
    eigenvalues: np.ndarray
    rankme: float
    alpha: AlphaFit | None
    gradients: np.ndarray


def decompose(features, ranks: tuple[int, int] | None = (12, 100), shorten: bool = False) -> Decomposed:
    """What `geometry` and `paired.paired_change` begin with; parameters and errors of the former."""
    features = _as_tensor(features)
    samples, width = features.shape
    moments = Moments(width, features.device).update(features)
    ascending, vectors = torch.linalg.eigh(moments.comoment / samples)  # of the lower triangle
    s, vectors = ascending.flip(0).clamp(min=0).cpu().numpy(), vectors.flip(1)

    value = rankme(s)
    hopeless = ranks is None or (shorten and _rank(s) < _two_ranks(ranks)[0] + 2)
    fit = None if hopeless else alpha_req(s, ranks, shorten)
    return Decomposed(moments.mean, vectors, s, value, fit, derivatives(s, value, fit))


def derivatives(s: np.ndarray, value: float, fit: AlphaFit | None) -> np.ndarray:
    """Of RankMe, which is `value`, and of alpha by each of these values, shape (d, 2); 0 for alpha where it has no fit.

    d RankMe / d s_i = -RankMe (ln p_i + entropy) / sum s; directions of pure rounding carry no weight.
    """
    kept = s > NEGLIGIBLE * s[0]
    log_shares = np.log(s, where=kept, out=np.zeros(len(s))) - np.log(s.sum())
    gradients = np.zeros((len(s), 2))
    gradients[kept, 0] = -value * (log_shares[kept] + np.log(value)) / s.sum()
    if fit is not None:
        window = slice(fit.ranks[0] - 1, fit.ranks[1])
        gradients[window, 1] = alpha_coefficients(*fit.ranks)[0] / s[window]
    return gradients


def _half(parts: np.ndarray) -> int:
    """How many of the largest parts make up half of their sum."""
    running = np.cumsum(np.sort(parts)[::-1])
    return int(np.searchsorted(running, running[-1] / 2 * (1 - 1e-12)) + 1)  # sums of equal parts round apart


def rankme_bias(eigenvalues, samples: int) -> float:
    """How far RankMe of so many normal sequences lies from that of infinitely many, on average: below 0.

    To first order in 1/M, in ln RankMe = ln T - sum s ln s / T, T = sum s. A sample's covariance is off by E with
    E[E_ij^2] = s_i s_j (1 + [i = j]) / M in the eigenbasis, which moves sum s ln s by a half of
    sum_ij E_ij^2 (ln s_i - ln s_j) / (s_i - s_j), the quotient being 1 / s_i where the two are equal. For a flat
    spectrum that is (d + 1) / 2M, as in Page (1993). The eigenvalues themselves are taken for the true ones: where M
    is below 3 d it is too small, by a quarter at 2 d. Rows of heavier tails have more.

    Parameters
    ----------
    eigenvalues : array, shape (d,); covariance eigenvalues of `samples` sequences
    """
    p = _shares(eigenvalues)
    p = p[p > NEGLIGIBLE * p[0]]
    logs = np.log(p)
    apart, gap = logs[:, None] - logs, p[:, None] - p
    near = np.abs(apart) < 1e-6
    quotient = np.where(near, 1 / p[:, None], apart / np.where(near, 1, gap))
    of_sum = (p @ quotient @ p + p.sum()) / 2
    total, together, entropy = 2 * p @ p, 2 * (p * p) @ (1 + logs), -p @ logs
    log_bias = (-of_sum - total / 2 + together + entropy * total) / samples
    return float(np.exp(entropy) * (1 - np.exp(-log_bias)))


def participation_ratio(eigenvalues) -> float:
    """(sum s)^2 / sum s^2 of covariance eigenvalues: the effective rank of order 2. Between 1 and d."""
    p = _shares(eigenvalues)
    return float(1 / (p @ p))


def stable_rank(eigenvalues) -> float:
    """sum s / s_1 of covariance eigenvalues, that is ||F_c||_F^2 / ||F_c||_2^2. Between 1 and d."""
    return float(1 / _shares(eigenvalues)[0])


def variance_share(eigenvalues, k: int) -> float:
    """Share of the total variance in the k largest covariance eigenvalues, between 0 and 1."""
    p = _shares(eigenvalues)
    if not 1 <= k <= len(p):
        raise ValueError(f"k must lie in 1..{len(p)}, the number of eigenvalues, got {k}.")
    return float(p[:k].sum())


def singular_values(features) -> np.ndarray:
    """Singular values of the *uncentred* features, largest first, shape (min(M, d),), float64."""
    features = _as_tensor(features).to(torch.float64)
    try:
        found = torch.linalg.svdvals(features)
    except torch.linalg.LinAlgError:  # seen on GPUs, pytorch issue 120912; numpy's driver converges there
        found = torch.as_tensor(np.linalg.svd(features.cpu().numpy(), compute_uv=False))
    return found.cpu().numpy()


def singular_value_rankme(values, epsilon: float = 1e-7) -> float:
    """RankMe as Garrido et al. 2023 define it: exp(entropy) of p_k = sigma_k / ||sigma||_1 + epsilon.

    For singular values of the uncentred features (`singular_values`). Not comparable with `rankme`: at d = 2048 a
    covariance spectrum s_i ~ 1/i has 281 by eigenvalues and 1587 by singular values. With the paper's epsilon the
    value can exceed d by a little; pass `epsilon=0` for the plain effective rank.
    """
    p = _shares(values) + epsilon
    return float(np.exp(-xlogy(p, p).sum()))


def _as_tensor(features) -> torch.Tensor:
    if not isinstance(features, torch.Tensor):
        array = np.asarray(features)
        if array.dtype.kind != "f":
            raise TypeError(f"features must be floating point, got dtype {array.dtype}: convert them first.")
        features = torch.from_numpy(np.require(array, requirements=["C", "W"]))
    features = features.detach()
    if not features.is_floating_point():
        raise TypeError(f"features must be floating point, got {features.dtype}: convert them first.")
    if features.ndim != 2:
        raise ValueError(f"features must have shape (sequences, width), got {tuple(features.shape)}.")
    if len(features) < 2 or features.shape[1] < 1:
        raise ValueError(f"a covariance needs at least 2 sequences and 1 dimension, got {tuple(features.shape)}.")
    if torch.isfinite(features.sum()):  # NaN and infinity survive a sum, so one quick pass clears nearly all matrices
        return features
    finite = torch.isfinite(features).all(1)
    if not finite.all():
        bad = (~finite).nonzero().flatten()
        raise ValueError(f"features hold NaN or infinity in {len(bad)} of {len(features)} rows, the first is row "
                         f"{int(bad[0])}: check the model's weights and the dtype of the forward pass.")
    return features


def _symmetric_eigenvalues(matrix: torch.Tensor) -> np.ndarray:
    """Ascending eigenvalues of a symmetric matrix given by its lower triangle; a second solver where one gives up."""
    try:
        if matrix.device.type == "cpu" and len(matrix) < WIDE:
            return np.linalg.eigvalsh(matrix.numpy())  # torch's takes two thirds of the time where that is long
        return torch.linalg.eigvalsh(matrix).cpu().numpy()
    except (np.linalg.LinAlgError, torch.linalg.LinAlgError):
        return scipy.linalg.eigvalsh(matrix.cpu().numpy(), driver="ev")


def _centred(features: torch.Tensor) -> torch.Tensor:
    shifted = features.to(torch.float64) - features[0].to(torch.float64)
    return shifted - shifted.mean(0)


def _spectrum(values) -> np.ndarray:
    s = np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values, dtype=np.float64)
    if s.ndim != 1 or len(s) == 0:
        raise ValueError(f"expected a list of eigenvalues, shape (d,), got shape {s.shape}. From features, shape "
                         "(sequences, width), call eigenspectrum first.")
    if not np.isfinite(s).all():
        raise ValueError("the eigenvalues hold NaN or infinity.")
    if s.min() < -1e-9 * np.abs(s).max():
        raise ValueError(f"a covariance has no negative eigenvalues, got {s.min():.3g}.")
    if (np.diff(s) > 1e-9 * np.abs(s).max()).any():
        raise ValueError("the eigenvalues must be in descending order, largest first.")
    return np.clip(s, 0, None)


def _shares(values) -> np.ndarray:
    s = _spectrum(values)
    _rank(s)
    s = s / s[0]  # first, so that neither tiny nor huge spectra leave the range of float64
    return s / s.sum()


def _rank(s: np.ndarray) -> int:
    """Number of eigenvalues above rounding."""
    if s[0] == 0:
        raise ValueError("all eigenvalues are zero: the features do not vary from one sequence to the next.")
    return int((s > NEGLIGIBLE * s[0]).sum())


def _two_ranks(ranks) -> tuple[int, int]:
    given = tuple(ranks) if isinstance(ranks, (tuple, list, np.ndarray)) else ()
    if len(given) != 2 or not all(isinstance(rank, Integral) for rank in given) or not 1 <= given[0] < given[1]:
        raise ValueError(f"ranks must be two whole numbers, 1 <= first < last (1-based, both fitted), got {ranks!r}.")
    return int(given[0]), int(given[1])


def _window(s: np.ndarray, ranks: tuple[int, int], shorten: bool) -> tuple[int, int]:
    first, last = _two_ranks(ranks)
    available = _rank(s)
    if shorten:
        last = min(last, available)
    if last > available:
        raise ValueError(f"ranks {first}..{last} were to be fitted, but the spectrum has {available} eigenvalues above "
                         "rounding (width or number of sequences too small): choose other ranks, or shorten=True.")
    if last - first < 2:
        raise ValueError(f"a fit needs at least three ranks; from rank {first} on the spectrum has "
                         f"{max(last - first + 1, 0)}: choose a lower first rank.")
    return first, last


def alpha_coefficients(first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """c with alpha = c @ ln s[first..last], the abscissa ln i, and the weights 1/i."""
    i = np.arange(first, last + 1, dtype=np.float64)
    x, weights = np.log(i), 1 / i
    centred = x - np.average(x, weights=weights)
    return -weights * centred / (weights @ centred**2), x, weights

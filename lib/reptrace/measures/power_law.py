"""Is a spectrum a power law, over which ranks, and with which exponent?

A straight line can be put through any spectrum; `alpha_req` gives its slope and R2, which is high for curved spectra
too, because they all descend. Here is what judges the line:

- `power_law_judgement`: does the spectrum depart from its line by more than N sequences of a true power law would?
- `likelihood_alpha`: the slope by maximum likelihood in place of weighted least squares.
- `cross_validated_window`: the longest window whose line predicts the spectrum of other sequences.

Tests made for samples of a power-law distribution (Clauset, Shalizi & Newman, SIAM Review 51, 2009; the `powerlaw`
package, Alstott et al., PLoS ONE 9, 2014) do not do it. Eigenvalues by rank, s_i ~ i^-alpha, are spread as a density of
exponent 1 + 1/alpha would be, so such a fit's exponent can be read as alpha; but they are no independent draws from it:
they keep apart from each other, and how well they are known hangs on N, not on how many there are. So its standard
error and its goodness of fit say nothing here. What is kept of their method is the judgement by simulation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from reptrace.measures.spectra import NEGLIGIBLE, alpha_coefficients, alpha_req, eigenspectrum

ENOUGH = 2  # sequences a dimension: with fewer the spectrum outside of the window can't be told
# Of the summed squared radii, for one sequence: it makes an eigenvalue of its own, and no search finds the others' law.
# Rows of a t distribution, of which the level was checked, have less; of one normal row 10 or 30 times as far out as
# 239 others, 22 to 80 % of true power laws were rejected at a level of 10 %.
TOO_FAR = 0.25
ROUNDS, TUNING = 4, 40  # of the search for the power law that these eigenvalues would come from, and draws in each


@dataclass(frozen=True)
class Judgement:
    """Whether a spectrum's window is a power law.

    Attributes
    ----------
    rejected : bool
        It is not one: `p_value` is below the level. False says that no departure is seen: with 2 sequences a dimension
        most slight ones are missed (data/results/estimator_judged.csv).
    p_value : float
        Share of samples of the power law that depart from their line as far or farther.
    departure : float
        Root mean square over the window, in ln s, of the residuals beyond those that the sample of a power law has on
        average; 0.1 is a departure of 10 %. With many sequences a small one is rejected, too.
    alpha : float
        Exponent of the power law that gives this alpha in samples of this size: corrected for few sequences.
    ranks : (int, int)
    level : float
    """

    rejected: bool
    p_value: float
    departure: float
    alpha: float
    ranks: tuple[int, int]
    level: float


def power_law_judgement(eigenvalues, samples: int, ranks: tuple[int, int] = (12, 100), shorten: bool = False,
                        radii: np.ndarray | None = None, level: float = 0.05, draws: int = 199,
                        seed: int = 0) -> Judgement:
    """Judge a window of a spectrum by simulated samples of a population that is a power law there.

    The population is searched for that gives, in samples of this size, the alpha of the window and the eigenvalues
    outside of it, on average. Of each draw from it the line is fitted as `alpha_req` does; residuals are measured in
    their standard deviation over draws, rank by rank, and their squares added up.

    Parameters
    ----------
    eigenvalues : array, shape (d,)
        Of the centred covariance of `samples` rows, largest first.
    samples : int
        N, at least `ENOUGH` a dimension.
    ranks, shorten : see `alpha_req`
    radii : array, shape (N,), default None
        `squared_radii` of the rows: the simulated ones are normal rows as far out as these are, in random order, since
        in heavy tails eigenvalues scatter more and are biased more. None: of normal rows. Where one of them has more
        than a tenth of their sum, as in some samples of heavy tails, true power laws may be rejected too often.
    level : float, default 0.05
        Share of true power laws that are rejected.
    draws : int, default 199
        Each takes the eigenvalues of a d x d matrix, and with `radii` N x d random numbers; a p-value has a resolution
        of 1 / (draws + 1).

    Raises
    ------
    ValueError
        Fewer sequences than that, radii that are not theirs, one that has more than `TOO_FAR` of their sum; otherwise
        as `alpha_req`.
    """
    s = np.asarray(eigenvalues, np.float64)
    fit = alpha_req(s, ranks, shorten)
    s = s[s > NEGLIGIBLE * s[0]]
    if samples < ENOUGH * len(s):
        raise ValueError(f"a spectrum of {len(s)} eigenvalues is judged from {ENOUGH * len(s)} sequences on, got "
                         f"{samples}.")
    if radii is not None and len(radii) != samples:
        raise ValueError(f"radii are those of the {samples} sequences, got {len(radii)}.")
    if radii is not None and not np.max(radii) <= TOO_FAR * np.sum(radii):
        raise ValueError(f"one sequence has {np.max(radii) / np.sum(radii):.0%} of the squared radii, so the spectrum "
                         "is in part its own and no law of the text's: leave it out.")
    rng = np.random.default_rng(seed)
    simulate = partial(_of_normal, rng, samples) if radii is None else partial(_of_radii, rng, np.asarray(radii))
    population, alpha = _population(simulate, s, fit.ranks)
    own, drawn = (_residuals(each, *_lines(each, fit.ranks), fit.ranks)
                  for each in (np.log(s), simulate(population, draws)))
    mean, scatter = drawn.mean(0), drawn.std(0)
    far, theirs = (np.square((each - mean) / scatter).sum(-1) for each in (own, drawn))
    p_value = float((1 + (theirs >= far).sum()) / (draws + 1))
    return Judgement(p_value < level, p_value, float(np.sqrt(np.square(own - mean).mean())), alpha, fit.ranks, level)


def squared_radii(features) -> np.ndarray:
    """How far out each row lies: its squared Mahalanobis distance from the others, over the mean; shape (N,), float64.

    By the covariance of the others, since a row's own draws that towards itself (Sherman and Morrison's formula).
    ValueError where rows do not vary, or are fewer than `ENOUGH` a dimension: all of few are equally far.
    """
    features = np.asarray(features, np.float64)
    centred = features - features.mean(0)
    s, vectors = np.linalg.eigh(centred.T @ centred)
    kept = s > NEGLIGIBLE * s[-1]
    if not 0 < ENOUGH * kept.sum() <= len(features):
        raise ValueError(f"distances in {kept.sum()} dimensions are told from {ENOUGH * kept.sum()} sequences on that "
                         f"vary, got {len(features)}.")
    share = (np.square(centred @ vectors[:, kept]) / s[kept]).sum(1)
    far = share / (1 - share * len(share) / (len(share) - 1)).clip(min=NEGLIGIBLE)
    return far / far.mean()


def _population(simulate: Callable, s: np.ndarray, ranks: tuple[int, int]) -> tuple[np.ndarray, float]:
    """Logarithms of the eigenvalues of a population that is a power law in the window, and its exponent."""
    goal = np.log(s)
    wanted = np.array(_lines(goal, ranks))
    line, logs, window = wanted.copy(), goal.copy(), slice(ranks[0] - 1, ranks[1])
    for _ in range(ROUNDS):
        logs[window] = -_residuals(np.zeros_like(goal), *line, ranks)
        found = simulate(logs, TUNING)
        line += wanted - np.mean(_lines(found, ranks), axis=1)
        logs += goal - found.mean(0)
    logs[window] = -_residuals(np.zeros_like(goal), *line, ranks)
    return logs, float(line[0])


def _of_normal(rng, samples: int, population: np.ndarray, draws: int) -> np.ndarray:
    """ln s, shape (draws, d), of covariances of so many normal rows of these ln s, by Bartlett's decomposition."""
    width = len(population)
    root = np.tril(rng.standard_normal((draws, width, width)), -1)
    root[:, range(width), range(width)] = np.sqrt(rng.chisquare(samples - 1 - np.arange(width), (draws, width)))
    root *= np.exp(population / 2)[:, None] / np.sqrt(samples)
    return _logs(np.linalg.eigvalsh(root @ root.transpose(0, 2, 1)))


def _of_radii(rng, radii: np.ndarray, population: np.ndarray, draws: int) -> np.ndarray:
    """The same of normal rows stretched to these squared radii."""
    found = np.empty((draws, len(population)))
    for draw in found:
        rows = rng.standard_normal((len(radii), len(population))) * np.exp(population / 2)
        rows *= np.sqrt(rng.permutation(radii))[:, None]
        rows -= rows.mean(0)
        draw[:] = np.linalg.eigvalsh(rows.T @ rows / len(rows))
    return _logs(found)


def _logs(ascending: np.ndarray) -> np.ndarray:
    """ln s, largest first, of eigenvalues, shape (draws, d); rounding is cut off."""
    found = ascending[:, ::-1]
    return np.log(found.clip(min=found[:, :1] * NEGLIGIBLE))


def _lines(logs: np.ndarray, ranks: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """alpha and intercept of `alpha_req` of ln s, shape (..., d)."""
    coefficients, x, weights = alpha_coefficients(*ranks)
    y = logs[..., ranks[0] - 1 : ranks[1]]
    alpha = y @ coefficients
    return alpha, y @ (weights / weights.sum()) + alpha * np.average(x, weights=weights)


def _residuals(logs: np.ndarray, alpha, intercept, ranks: tuple[int, int]) -> np.ndarray:
    """ln s of the window about a line; of several, shape (..., ranks), about one each."""
    x = np.log(np.arange(ranks[0], ranks[1] + 1))
    return logs[..., ranks[0] - 1 : ranks[1]] - np.expand_dims(intercept, -1) + np.expand_dims(alpha, -1) * x


def likelihood_alpha(eigenvalues, samples: int, ranks: tuple[int, int] = (12, 100)) -> tuple[float, float]:
    """Exponent by maximum likelihood, and its standard error, as if eigenvalues were independent.

    Each is taken for s_i times a chi-square of N over N, s_i = c i^-alpha, as variances of normal coordinates along
    fixed directions are: a gamma regression with a logarithmic link (McCullagh & Nelder, 1989), in which all ranks
    weigh the same, where `alpha_req` weighs them with 1 / i.
    """
    first, last = alpha_req(eigenvalues, ranks).ranks
    s = np.asarray(eigenvalues, np.float64)[first - 1 : last]
    x = np.log(np.arange(first, last + 1))
    design = np.column_stack([np.ones_like(x), -x])
    found = np.linalg.lstsq(design, np.log(s), rcond=None)[0]
    inverse = np.linalg.inv(design.T @ design)  # Fisher's scoring: the weights of a gamma's logarithm are equal
    for _ in range(100):
        step = inverse @ design.T @ (s * np.exp(-design @ found) - 1)
        found = found + step
        if np.abs(step).max() < 1e-12:
            break
    return float(found[1]), float(np.sqrt(2 / samples * inverse[1, 1]))


def cross_validated_window(features, windows: Sequence[tuple[int, int]], splits: int = 5,
                           seed: int = 0) -> tuple[int, int] | None:
    """The longest window (by last / first) whose line predicts other sequences' spectrum no worse than a spectrum does.

    Of two halves of the sequences, one predicts ln s of the other: by its line, and by its own ln s. A line has less
    noise, and is off where there is no power law; squared errors decide, summed over the window and the splits.

    Parameters
    ----------
    features : array, shape (N, d)
    windows : list of (int, int); 1-based ranks, both included

    Returns
    -------
    (int, int), or None where no window's line is as good.
    """
    features, rng = np.asarray(features), np.random.default_rng(seed)
    pairs = [[np.log(eigenspectrum(features[part])) for part in np.array_split(rng.permutation(len(features)), 2)]
             for _ in range(splits)]

    def excess(ranks: tuple[int, int]) -> float:
        """Squared error of the line beyond that of the spectrum itself."""
        window = slice(ranks[0] - 1, ranks[1])
        return sum(np.square(_residuals(other, *_lines(one, ranks), ranks)).sum()
                   - np.square((one - other)[window]).sum() for a, b in pairs for one, other in ((a, b), (b, a)))

    for ranks in sorted(windows, key=lambda ranks: ranks[1] / ranks[0], reverse=True):
        if excess(ranks) <= 0:
            return ranks
    return None

"""How many directions the states of similar sequences differ along: TwoNN, from the two nearest neighbours.

Neither scikit-dimension (0.5) nor DADApy (0.3) is used: the one brings numba and llvmlite, 210 MB that tie the versions
of numpy and Python, the other must be compiled where it is installed, and neither gives an error over the draw. The
published estimator is a few lines over torch's distances; it agrees with scikit-dimension's to 15 digits.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from reptrace.measures.anisotropy import jackknife
from reptrace.measures.measure import measure

POINTS = 4096  # at most: distances take their square
NEIGHBOURS = 24  # of each point, so that two of them are in its half
BLOCKS, KEPT = 20, 0.9  # of the jackknife; of the ratios, the smallest, as in the paper
DUPLICATES, SCALES = 0.01, 0.1  # beyond which there is doubt, as shares
LILLIEFORS = 1.25  # over sqrt(N): 1 % point of the greatest distance from a fitted exponential (Lilliefors 1969)


def _operations(samples: int, width: int) -> float:
    return 2.0 * min(samples, POINTS) ** 2 * width


@measure(needs=["features"], least=100, operations=_operations,
         columns={"intrinsic_dimension": "intrinsic_dimension_stderr", "intrinsic_dimension_halved": None,
                  "intrinsic_dimension_misfit": None, "intrinsic_dimension_duplicates": None,
                  "intrinsic_dimension_doubt": None})
def intrinsic_dimension(features: torch.Tensor) -> dict:
    """TwoNN (Facco et al. 2017, arXiv 1803.06992): dimension, no unit, on the scale of the nearest neighbours.

    Where the density is the same out to a point's second neighbour, the ratio mu of its two distances has
    P(mu > m) = m^-d. d is the slope through the origin of -ln(1 - F) against ln mu over the smallest 90 % of them.
    Of the first 4,096 sequences (a probe has them in random order), since all distances are taken. The estimate falls
    short in high dimension (of 20 or more, by tenths): the scale of neighbours grows as points become few.

    The standard error leaves out each of 20 blocks of the ratios in turn; a sequence and its nearest one are in one
    block, since their ratios go together; nan where more than a quarter of all hang together so, as in high dimension
    where a few sequences are the nearest of many. (With ratios taken one by one it is a fifth too small, with
    neighbours looked for anew among those left nearly twice too large; so it is within a tenth, on flat, normal and
    heavy-tailed samples of 300 to 1,500 in 1 to 30 dimensions.) `halved` is the dimension with half of the sequences
    (mean of both halves), where neighbours lie farther apart; `misfit` the largest distance between F and the fitted 1
    - m^-d; `duplicates` the share of states that equal another one, which have no ratio and are left out. `doubt` names
    what tells that the assumption fails, "" if nothing:

    - "duplicates": more than 1 %;
    - "scale": halving moves the dimension by more than 10 %, and by more than two standard errors;
    - "fit": misfit beyond the 1 % point of Lilliefors' test (1.25 / sqrt(N)).
    """
    near, distances = nearest(features[:POINTS])
    count = len(near)
    dimension, misfit = _twonn(_ratios(distances))
    blocks = _blocks(near[:, 0])
    without = np.array([_twonn(_ratios(distances[blocks != b]))[0] for b in range(BLOCKS)])
    stderr = jackknife(torch.from_numpy(without))
    if np.bincount(blocks).max() > count / 4:
        stderr = math.nan
    half = np.arange(count) % 2
    halved = float(np.mean([_twonn(_ratios(distances[half == h], (half[near] == h)[half == h]))[0] for h in (0, 1)]))
    twice = float((distances[:, 0] == 0).mean())
    moved = abs(halved - dimension)
    doubt = {"duplicates": twice > DUPLICATES, "scale": moved > max(SCALES * dimension, 2 * stderr),
             "fit": misfit > LILLIEFORS / math.sqrt(count)}
    return {"intrinsic_dimension": dimension, "intrinsic_dimension_stderr": stderr,
            "intrinsic_dimension_halved": halved, "intrinsic_dimension_misfit": misfit,
            "intrinsic_dimension_duplicates": twice,
            "intrinsic_dimension_doubt": ", ".join(name for name, yes in doubt.items() if yes)}


def nearest(features: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Of each row its NEIGHBOURS nearest others, the nearest first: their numbers and distances, shape (N, 24)."""
    rows = features.double() - features.double().mean(0)  # distances by products: nothing is lost to a large mean
    rows = rows[:, rows.abs().amax(0) > 0]
    near, distances = [], []
    for start in range(0, len(rows), 512):
        block = rows[start : start + 512]
        found = torch.cdist(block, rows, compute_mode="use_mm_for_euclid_dist")
        found[torch.arange(len(block)), start + torch.arange(len(block))] = math.inf
        numbers = found.topk(NEIGHBOURS, largest=False).indices
        exact = (rows[numbers] - block[:, None]).norm(dim=2)  # by differences: equal rows are at 0
        order = exact.argsort(1)
        near.append(numbers.gather(1, order).cpu())
        distances.append(exact.gather(1, order).cpu())
    return torch.cat(near).numpy(), torch.cat(distances).numpy()


def _blocks(nearest_one: np.ndarray) -> np.ndarray:
    """A block's number for each point; a point and its nearest one are in the same block."""
    count = len(nearest_one)
    links = coo_array((np.ones(count), (np.arange(count), nearest_one)), shape=(count, count))
    return connected_components(links, directed=False)[1] % BLOCKS


def _ratios(distances: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
    """Second distance over first, ascending; `counts`: which neighbours are there. Without those of equal rows."""
    if counts is None:
        first, second = distances[:, 0], distances[:, 1]
    else:
        number = counts.cumsum(1)
        left = number[:, -1] >= 2
        number, counts, distances = number[left], counts[left], distances[left]
        first, second = (distances[np.arange(len(number)), ((number == k) & counts).argmax(1)] for k in (1, 2))
    return np.sort(second[first > 0] / first[first > 0])


def _twonn(ratios: np.ndarray) -> tuple[float, float]:
    """The fitted dimension, and how far the distribution is from the fitted one at most; nan without ratios above 1."""
    count = len(ratios)
    kept = int(KEPT * count)
    logs, shares = np.log(ratios), np.arange(1, count + 1) / max(count, 1)
    x, y = logs[:kept], -np.log(1 - shares[:kept])
    if not x @ x > 0:
        return math.nan, math.nan
    dimension = float(x @ y / (x @ x))
    fitted = -np.expm1(-dimension * logs)
    return dimension, float(np.maximum(shares - fitted, fitted - shares + 1 / count).max())

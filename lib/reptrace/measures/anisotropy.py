"""Whether states point one way: the cosine between those of different sequences, and the mean's share."""

from __future__ import annotations

import torch

from reptrace.measures.measure import measure


@measure(needs=["features"], columns={"mean_cosine": "mean_cosine_stderr", "mean_share": "mean_share_stderr"},
         least=3, operations=lambda samples, width: 8.0 * samples * width)
def anisotropy(features: torch.Tensor) -> dict:
    """Mean cosine between the states of two different sequences, and |mean|^2 / E|x|^2; both without a unit.

    The cosine is that of Ethayarajh 2019 (arXiv 1909.00512), over all M (M - 1) / 2 pairs: with S the sum of the unit
    vectors, (|S|^2 - M) / (M (M - 1)), which takes M d operations. Without bias, and below 0 at chance as often as
    above. The mean's share of the second moment is what centring takes away (Mu & Viswanath 2018, arXiv 1702.01417);
    it lies (1 - share) / M too high on average.

    Standard errors: the delete-one jackknife over sequences, in closed form.

    Parameters
    ----------
    features : tensor, shape (M, d), M >= 3

    Raises
    ------
    ValueError
        A state of length zero, which has no direction.
    """
    rows = features.double()
    squares = rows.square().sum(1)
    if not squares.all():
        raise ValueError(f"{int((squares == 0).sum())} states are zero: they have no direction, and no cosine.")
    count, units = len(rows), rows / squares.sqrt()[:, None]
    whole, total = units.sum(0), rows.sum(0)
    cosine = (whole @ whole - count) / (count * (count - 1))
    less = whole @ whole - 2 * units @ whole + 1  # |S - u_i|^2
    cosines = (less - (count - 1)) / ((count - 1) * (count - 2))
    share = total @ total / count / squares.sum()
    shares = (total @ total - 2 * rows @ total + squares) / (count - 1) / (squares.sum() - squares)
    return {"mean_cosine": float(cosine), "mean_cosine_stderr": jackknife(cosines),
            "mean_share": float(share), "mean_share_stderr": jackknife(shares)}


def jackknife(left_out: torch.Tensor) -> float:
    """Standard error from what a statistic is without each of the rows, or of as many equal blocks, in turn."""
    count = len(left_out)
    return float(((count - 1) / count * (left_out - left_out.mean()).square().sum()).sqrt())

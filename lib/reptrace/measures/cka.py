"""Whether a checkpoint lays out the sequences as others of its run do: linear CKA with the first, last and previous.

Rank can stay the same while the subspace turns; CKA sees that, and nothing of a rotation or of the scale.
"""

from __future__ import annotations

import math

import torch

from reptrace.measures.anisotropy import jackknife
from reptrace.measures.measure import OF_THE_RUN, measure
from reptrace.measures.moments import products_dtype

PAIRS = 1 + 2 * len(OF_THE_RUN)  # each takes two products of M x d x d


@measure(needs=["features", *OF_THE_RUN], columns={f"cka_{name}": f"cka_{name}_stderr" for name in OF_THE_RUN},
         least=5, operations=lambda samples, width: PAIRS * 4.0 * samples * width**2)
def cka(features: torch.Tensor, **references: torch.Tensor | None) -> dict:
    """Linear CKA with the run's first, last and previous checkpoint; 1 where the two differ by rotation and scale.

    Kornblith et al. 2019 (arXiv 1905.00414), with the unbiased estimator of HSIC (Song et al. 2012, JMLR 13, equation
    5), as Nguyen et al. 2021 (arXiv 2010.15327) use it: about 0 where the two share nothing, also where M is near d.

    One sequence may decide it: where its state is massive in one checkpoint and not in the other (`spikes` counts such
    states), its products outweigh all others', and CKA falls nearly to nothing though the rest agrees as before. The
    standard error then grows beyond the value.

    Parameters
    ----------
    features : tensor, shape (M, d), M >= 5
    references : tensor, shape (M, d'), of the same sequences; None: that column is nan (the first has no previous)

    See `linear_cka` for the estimator, its error and its cost.
    """
    own, found = None, {}
    for name, other in references.items():
        value, stderr = math.nan, math.nan
        if other is not None:
            _check_rows(features, other, name)
            own = own or Kernel.of(features)
            value, stderr = _cka(own, Kernel.of(other))
        found |= {f"cka_{name}": value, f"cka_{name}_stderr": stderr}
    return found


def linear_cka(first: torch.Tensor, second: torch.Tensor) -> tuple[float, float]:
    """CKA of two feature matrices, shape (M, d) and (M, d'), and its standard error by the delete-one jackknife.

    In feature space: what the M x M kernels X X^T, their diagonals put to zero, enter the estimator with is sums over
    X^T Y and over rows, and so are these sums without one row. (The error is 1.4 times too large where nothing is
    shared, as of any such statistic: Efron & Stein 1981.) That takes M d d' operations, in the precision of
    `moments.products_dtype`, and nothing of M x M. nan where one of them has no structure beyond chance (HSIC <= 0).
    """
    _check_rows(first, second, "second")
    return _cka(Kernel.of(first), Kernel.of(second))


class Kernel:
    """Linear kernel K = X X^T of centred rows, its diagonal put to zero: the sums of it that HSIC takes.

    Attributes
    ----------
    rows : tensor, shape (M, d), centred, in `products_dtype`
    diagonal : tensor, shape (M,), float64; what was the diagonal
    sums : tensor, shape (M,), float64; K 1
    own : HSIC of K with itself, and without each row, see `_hsic`
    """

    def __init__(self, rows: torch.Tensor, diagonal: torch.Tensor, sums: torch.Tensor):
        self.rows, self.diagonal, self.sums = rows, diagonal, sums
        self.own = _hsic(self, self)

    @classmethod
    def of(cls, features: torch.Tensor) -> Kernel:
        centred = features.double() - features.double().mean(0)  # HSIC stays the same, and less is lost to rounding
        rows = centred.to(products_dtype(features.dtype, features.shape[1]))
        diagonal = rows.double().square().sum(1)
        return cls(rows, diagonal, (rows @ rows.sum(0)).double() - diagonal)


def _cka(first: Kernel, second: Kernel) -> tuple[float, float]:
    (cross, crosses), (one, ones), (two, twos) = _hsic(first, second), first.own, second.own
    if one <= 0 or two <= 0 or (ones <= 0).any() or (twos <= 0).any():
        return math.nan, math.nan
    return float(cross / (one * two).sqrt()), jackknife(crosses / (ones * twos).sqrt())


def _hsic(first: Kernel, second: Kernel) -> tuple[torch.Tensor, torch.Tensor]:
    """Song et al.'s unbiased HSIC of two kernels, and without each of the rows in turn, shape (M,)."""
    x, y, r, q = first.rows, second.rows, first.sums, second.sums
    both = first.diagonal * second.diagonal
    along = ((x @ (x.T @ y)) * y).sum(1).double() - both  # sum over j of K_ij L_ij
    crossed = (x @ (x.T @ q.to(x.dtype))).double() - first.diagonal * q  # (K L 1)_i
    crossed += (y @ (y.T @ r.to(y.dtype))).double() - second.diagonal * r  # + (L K 1)_i
    product, count = r @ q, len(x)
    return (_estimate(along.sum(), r.sum() * q.sum(), product, count),
            _estimate(along.sum() - 2 * along, (r.sum() - 2 * r) * (q.sum() - 2 * q),
                      product - r * q - crossed + along, count - 1))


def _estimate(trace, sums, product, count: int):
    """tr(K L), 1'K 1 1'L 1 and 1'K L 1, all with zero diagonals, of so many rows."""
    return (trace + sums / ((count - 1) * (count - 2)) - 2 * product / (count - 2)) / (count * (count - 3))


def _check_rows(first, second, name: str) -> None:
    if len(first) != len(second):
        raise ValueError(f"CKA takes the same sequences of both, in one order: got {len(first)} rows, and "
                         f"{len(second)} of {name}.")

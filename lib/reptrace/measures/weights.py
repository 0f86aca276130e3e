"""Spectra of a model's own weights: the unembedding, and the matrices of attention and MLPs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from reptrace.measures.measure import measure
from reptrace.measures.spectra import singular_value_rankme

KINDS = ("attention", "mlp", "unembedding")
READ = ("effective_rank", "stable_rank", "condition")


@dataclass(frozen=True)
class Spectra:
    """Singular values of weight matrices, largest first: kind -> an array a matrix; `fused`: how many of attention's
    hold several matrices that were not told apart."""

    values: Mapping[str, list[np.ndarray]]
    fused: int = 0

    @classmethod
    def of(cls, matrices: Mapping[str, Iterable[torch.Tensor]], fused: int = 0) -> Spectra:
        return cls({kind: [singular_values(each) for each in found] for kind, found in matrices.items()}, fused)


@measure(needs=["matrices"], columns={**{f"{kind}_{what}": None for kind in KINDS for what in READ},
                                      "attention_fused": None})
def weights(matrices: Spectra) -> dict:
    """Effective rank, stable rank and condition number of weight matrices as they are stored (not centred).

    Of singular values s, largest first: the effective rank exp(entropy of s / sum s) (Roy & Vetterli 2007), the stable
    rank sum s^2 / s_1^2, and s_1 / s_n (Martin & Mahoney 2021, arXiv 1810.01075, read trained models off such spectra).
    A column is the mean over all matrices of its kind, in all blocks: attention (query, key, value and output, each for
    itself), MLP (an expert's for themselves); of the condition number the geometric mean. nan where there is none.
    `attention_fused` counts matrices that hold several at once, in an order that is not known here; they are taken as
    one. None has a standard error: no sequence is read. All layers of a record have the same numbers.

    s are roots of eigenvalues of W^T W in float64, so a condition number beyond 1e7 says no more than that.
    """
    found = {}
    for kind in KINDS:
        each = np.array([_read(s) for s in matrices.values.get(kind, ())]).reshape(-1, len(READ))
        mean = (*each[:, :2].mean(0), math.exp(np.log(each[:, 2]).mean())) if len(each) else [math.nan] * len(READ)
        found |= {f"{kind}_{what}": float(value) for what, value in zip(READ, mean, strict=True)}
    return {**found, "attention_fused": matrices.fused}


def _read(s: np.ndarray) -> tuple[float, float, float]:
    return singular_value_rankme(s, epsilon=0), float(np.square(s / s[0]).sum()), float(s[0] / s[-1])


def singular_values(matrix: torch.Tensor) -> np.ndarray:
    """Largest first, shape (min(matrix.shape),), float64: by the smaller Gram matrix, whose rounding is a floor."""
    rows = matrix.detach() if matrix.shape[0] >= matrix.shape[1] else matrix.detach().T
    gram = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64, device=rows.device)
    for block in rows.split(16_384):  # an unembedding is large
        gram += block.double().T @ block.double()
    squares = torch.linalg.eigvalsh(gram).flip(0).cpu().numpy()
    if not squares[0] > 0:
        raise ValueError(f"a weight matrix of shape {tuple(matrix.shape)} is zero throughout, or not finite.")
    return np.sqrt(squares.clip(min=np.finfo(float).eps * squares[0]))

"""Measures within a sequence: of the states of all its tokens at a layer, reduced while the forward pass goes on.

A number is made of each sequence, its tokens' states z_1, ..., z_t as rows of Z, in float64:

- its **prompt entropy** (Skean et al. 2025, arXiv 2502.02013): the von Neumann entropy, in nats, of the Gram matrix
  K = Z Z^T over its trace; the limit of order 1 of their matrix-based Renyi entropy. Neither centred nor normalised, as
  their equation has it (their code centres the states, scales each to length 1 and sets negative products to 0);
  between 0, where all states lie on a line through the origin, and ln min(t, d);
- its **curvature** (Henaff et al. 2019, doi 10.1038/s41593-019-0377-4; Hosseini & Fedorenko 2023, arXiv 2311.04930):
  the mean angle between successive differences z_{k+1} - z_k, in radians; 0 on a straight path, pi where each step
  takes back the one before. Equal neighbours have no direction: angles beside them are left out;
- its **sentence entropy**, whose exponential is the eRank of Diff-eRank (Wei et al. 2024, arXiv 2401.17139): the von
  Neumann entropy, in nats, of the covariance of states that are centred over the sentence and scaled to length 1. A
  state that is the mean has no direction and is left out.

A sequence too short (two tokens, three for a curvature), or whose states have no direction, has none of a number: NaN.
A measure takes the mean over those that have one and counts them; its standard error is that of independent sequences.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import torch

from reptrace.measures.measure import measure

# Of these the means are kept, so that the same sequences can be compared between checkpoints: see `diff_erank`.
PARTS = 32
TOKENS = 512  # of a sequence, for which costs are counted: the longest of the paper's probes


def _operations(samples: int, width: int) -> float:
    """Of the smaller Gram matrices and their eigenvalues."""
    small = min(TOKENS, width)
    return samples * (2.0 * TOKENS * width * small + 4 / 3 * small**3)


def prompt_entropies(hidden: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """(b, t, d) and the last real token's index (b,) -> prompt entropy of each sequence (b,), in nats."""
    states, real = _states(hidden, last)
    return torch.where(real.sum(1) > 1, _entropies(states), math.nan)


def curvatures(hidden: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """(b, t, d) and the last real token's index (b,) -> mean angle of each sequence's path (b,), in radians."""
    states, real = _states(hidden, last)
    steps = states.diff(dim=1)
    lengths = steps.norm(dim=2)
    scales = lengths[:, 1:] * lengths[:, :-1]
    angles = (torch.einsum("btd,btd->bt", steps[:, 1:], steps[:, :-1]) / scales).clamp(-1, 1).acos()
    return torch.where(real[:, 2:] & (scales > 0), angles, math.nan).nanmean(1)


def sentence_entropies(hidden: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """(b, t, d) and the last real token's index (b,) -> entropy of each sequence's covariance (b,), in nats."""
    states, real = _states(hidden, last)
    centred = states - states.sum(1, keepdim=True) / real.sum(1)[:, None, None]
    lengths = centred.norm(dim=2)
    # What rounding alone leaves of equal states is no direction.
    kept = real & (lengths > 4 * torch.finfo(hidden.dtype).eps * states.norm(dim=2))
    return _entropies(torch.where(kept[..., None], centred / lengths[..., None], 0.0))


# What a measure may need of all tokens, by the name of its need: see `hidden_states.extract`.
REDUCTIONS = {each.__name__: each for each in (prompt_entropies, curvatures, sentence_entropies)}


@measure(needs=["prompt_entropies"], operations=_operations,
         columns={"prompt_entropy": "prompt_entropy_stderr", "prompt_entropy_sequences": None})
def prompt_entropy(prompt_entropies: torch.Tensor) -> dict:
    """Mean prompt entropy, in nats, and the number of sequences that have one."""
    return _mean("prompt_entropy", prompt_entropies)


@measure(needs=["curvatures"], operations=lambda samples, width: 6.0 * samples * TOKENS * width,
         columns={"curvature": "curvature_stderr", "curvature_sequences": None})
def curvature(curvatures: torch.Tensor) -> dict:
    """Mean curvature, in radians, and the number of sequences that have one."""
    return _mean("curvature", curvatures)


@measure(needs=["sentence_entropies"], operations=_operations,
         columns={"sentence_erank": "sentence_erank_stderr", "sentence_erank_sequences": None,
                  "sentence_entropy_parts": None})
def sentence_erank(sentence_entropies: torch.Tensor) -> dict:
    """eRank of a text by sentences, exp(mean sentence entropy), as Diff-eRank has it; in directions.

    `sentence_entropy_parts` are the mean entropies of up to PARTS stretches of successive sequences, for `diff_erank`.
    """
    found = _mean("entropy", sentence_entropies)
    rank = math.exp(found["entropy"])
    parts = sentence_entropies.double().tensor_split(min(PARTS, len(sentence_entropies)))
    return {"sentence_erank": rank, "sentence_erank_stderr": rank * found["entropy_stderr"],
            "sentence_erank_sequences": found["entropy_sequences"],
            "sentence_entropy_parts": [float(part.nanmean()) for part in parts]}


def diff_erank(table: pd.DataFrame) -> pd.DataFrame:
    """Diff-eRank of each checkpoint of a run: the sentence eRank of the first one less its own.

    Parameters
    ----------
    table : DataFrame with the columns of `sentence_erank`, a row a checkpoint, in the order of training
        All of the same sequences. Against the untrained model only where the first row is of one.

    Returns
    -------
    DataFrame with the index of `table`: diff_erank and its paired standard error diff_erank_stderr
        The draw of sequences moves both checkpoints alike, so the error is that of the difference between the same
        stretches of sequences; from PARTS of them it is itself known to 13 %.

    Raises
    ------
    ValueError
        Rows were measured in other numbers of sequences or parts.
    """
    parts = [np.asarray(each, float) for each in table.sentence_entropy_parts]
    if len({len(each) for each in parts}) > 1 or table.sentence_erank_sequences.nunique() > 1:
        raise ValueError("checkpoints to be compared by Diff-eRank were measured in other numbers of sequences.")
    ranks = table.sentence_erank.to_numpy(float)
    moved = ranks[:, None] * np.array(parts)  # to first order, how a part moves a checkpoint's eRank
    differences = moved[0] - moved
    count = np.isfinite(differences).sum(1)
    return pd.DataFrame({"diff_erank": ranks[0] - ranks,
                         "diff_erank_stderr": np.nanstd(differences, axis=1, ddof=1) / np.sqrt(count)}, table.index)


def _states(hidden: torch.Tensor, last: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """States in float64 with zeros behind the last real token, (b, t, d), and which tokens are real, (b, t)."""
    real = torch.arange(hidden.shape[1], device=hidden.device) <= last[:, None]
    return torch.where(real[..., None], hidden, 0.0).double(), real


def _entropies(rows: torch.Tensor) -> torch.Tensor:
    """Von Neumann entropy of rows^T rows over its trace, (b, t, d) -> (b,); nan where the trace is 0 or not finite.

    rows rows^T has the same eigenvalues but for zeros, which add nothing: the smaller of the two is solved.
    """
    gram = rows @ rows.mT if rows.shape[1] < rows.shape[2] else rows.mT @ rows
    trace = gram.diagonal(dim1=1, dim2=2).sum(1)
    sound = (trace > 0) & trace.isfinite()
    gram[~sound] = 0.0  # which the solver takes
    shares = (torch.linalg.eigvalsh(gram) / trace[:, None]).clamp(min=0)
    return torch.where(sound, torch.special.entr(shares).sum(1), math.nan)


def _mean(name: str, values: torch.Tensor) -> dict:
    """Mean of the values that are numbers, its standard error, and how many there are; ValueError below two."""
    found = values[values.isfinite()].double()
    if len(found) < 2:
        raise ValueError(f"{name.replace('_', ' ')}: {len(found)} of {len(values)} sequences have one, which takes at "
                         "least two tokens (a curvature three) that differ; a mean with an error needs two sequences.")
    return {name: float(found.mean()), f"{name}_stderr": float(found.std() / len(found) ** 0.5),
            f"{name}_sequences": len(found)}

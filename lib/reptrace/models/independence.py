"""Whether what a model makes of a sequence depends on the others of its batch, or on what it has read before.

Sequences pass through in batches, padded on the right and without a mask, on the ground that it does not. Rotary
embeddings known to depend on the length are kept apart by `positions`; here is noticed what is not known: a model's own
code, experts with a limited capacity, a decoder that looks ahead.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from reptrace.models.batches import by_length, padded
from reptrace.models.decoders import devices_of, text_decoder

# Tokens that a short sequence of a pair has at least: the first of a sequence is not turned by rotary embeddings.
LEAST = 8
# Short sequences that are tried behind a long one.
TRIED = 3

States = Sequence[torch.Tensor]  # of one sequence, by layer; none where memory ran out
# Of rows that share a batch, the states of so many of the last; none where they do not fit into memory.
Pass = Callable[[list[int], int], Sequence[States]]


class RemembersError(ValueError):
    """What a model makes of a sequence depends on what it read before: there is no one number to measure."""


def must_be_alone(states: Pass, lengths: Sequence[int], kind: Callable[[int], object], dtype: torch.dtype, name: str,
                  tried: int = TRIED) -> bool:
    """Whether each sequence must pass through alone, because a longer one beside it changes what comes of it.

    Said on standard error where it is so. Tried are the shortest sequences that have a longer one of their kind.

    Parameters
    ----------
    states : function of rows, see `Pass`; the tensors may be of any shape
    lengths : tokens of each sequence
    kind : of a length; sequences of different kinds never share a batch
    dtype : of the forward pass
    name : of the model, for the message
    tried : how many short sequences

    Raises
    ------
    RemembersError
        A short sequence comes out otherwise after a long one has passed.
    """
    short, long = _tried(lengths, kind, tried)

    def alone() -> list[States]:
        return [next(iter(states([row], 1)), []) for row in short]

    first = alone()  # before any long one has passed
    both = states([long, *short], len(short)) or [next(iter(states([long, row], 1)), []) for row in short]
    if _differ(first, alone(), dtype):
        raise RemembersError(f"in {name} a sequence's state depends on what was read before it, as with a rotary "
                             "embedding that keeps the longest length it has met: there is no one number to measure. "
                             "Cut the sequences within the model's original context (max_length, --max-length).")
    return depend_on_the_batch(both, first, dtype, name)


def depend_on_the_batch(together: Sequence[States], alone: Sequence[States], dtype: torch.dtype, name: str) -> bool:
    """Whether sequences came out otherwise beside others than alone, which is said on standard error."""
    depend = _differ(together, alone, dtype)
    if depend:
        tqdm.write(f"in {name} a sequence's state depends on what else is in its batch: each passes alone, which takes "
                   "longer", file=sys.stderr)
    return depend


def passes_alone(model: nn.Module, sequences: Sequence[np.ndarray], rotary) -> bool:
    """`must_be_alone` of a causal LM, by the states of its decoder, without logits.

    `rotary`: the model's `positions.Rotaries`.
    """
    decoder = model
    with suppress(TypeError):  # one whose blocks are not known has logits all the same
        decoder = text_decoder(model)

    def states(rows: list[int], count: int) -> list[list[torch.Tensor]]:
        rotary.reset()
        ids, _ = padded([sequences[row] for row in rows])
        output = decoder(input_ids=ids.to(devices_of(decoder)[0]), use_cache=False)
        return [[output[0][k, : len(sequences[rows[k]])].float().cpu()] for k in range(-count, 0)]

    return must_be_alone(states, list(map(len, sequences)), rotary.kind, next(model.parameters()).dtype,
                         type(model).__name__)


def _tried(lengths: Sequence[int], kind: Callable[[int], object], count: int) -> tuple[list[int], int]:
    """Rows of the shortest sequences, of one kind, and the longest of that kind; none where all are alike or apart."""
    order = by_length(lengths)
    rising = [row for row in reversed(order) if lengths[row] >= min(LEAST, lengths[order[0]])]
    for shortest in rising:
        of_kind = [row for row in rising if kind(lengths[row]) == kind(lengths[shortest])]
        if len(of_kind) > 1:
            return of_kind[:-1][:count], of_kind[-1]
    return [], rising[-1]


def _differ(ones: Sequence[States], others: Sequence[States], dtype: torch.dtype) -> bool:
    """Whether states of sequences differ by more than rounding; NaN differs from nothing, it is reported elsewhere.

    One token of one sequence tells it. Not in bfloat16, where rounding alone sends the last token of every fifth
    sequence to another expert (a random Mixtral of 16 blocks and two experts a token; in float32, none): there most of
    the tokens of all the sequences must.
    """
    # Of a typical number: float32 is right to 1e-6, bfloat16 to a percent or two in deep models.
    coarse = dtype == torch.bfloat16
    rounding = 0.05 if coarse else 1e-3
    found = [any(_far(a, b, rounding, coarse) for a, b in zip(one, other, strict=False))
             for one, other in zip(ones, others, strict=True)]
    return bool(found) and (all if coarse else any)(found)


def _far(one: torch.Tensor, other: torch.Tensor, rounding: float, most: bool) -> bool:
    """Whether states, (d,) or (tokens, d), differ at any token, or at most of them, by the median over d."""
    far = (one - other).abs().median(-1).values > rounding * one.abs().median(-1).values
    return bool(far.float().mean() > 0.5 if most else far.any())

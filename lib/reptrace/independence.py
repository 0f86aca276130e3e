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

from reptrace.batches import by_length, padded

# Tokens that a short sequence of a pair has at least: the first of a sequence is not turned by rotary embeddings.
LEAST = 8
# Short sequences that are tried beside a long one.
PAIRS = 3

States = Sequence[torch.Tensor]  # of one sequence, by layer; none where memory ran out


class RemembersError(ValueError):
    """What a model makes of a sequence depends on what it read before: there is no one number to measure."""


def must_be_alone(states: Callable[[list[int]], States], lengths: Sequence[int], kind: Callable[[int], object],
                  dtype: torch.dtype, name: str) -> bool:
    """Whether each sequence must pass through alone, because a longer one beside it changes what comes of it.

    Said on standard error where it is so.

    Parameters
    ----------
    states : function of rows that gives tensors of the first of them, of any shape
    lengths : tokens of each sequence
    kind : of a length; sequences of different kinds never share a batch
    dtype : of the forward pass
    name : of the model, for the message

    Raises
    ------
    RemembersError
        A short sequence comes out otherwise after a long one has passed.
    """
    pairs = _pairs(lengths, kind)
    first = [states([short]) for short, _ in pairs]  # before any long one has passed
    both = [states([short, long]) for short, long in pairs]
    again = [states([short]) for short, _ in pairs]
    if _differ(first, again, dtype):
        raise RemembersError(f"in {name} a sequence's state depends on what was read before it, as with a rotary "
                             "embedding that keeps the longest length it has met: there is no one number to measure. "
                             "Cut the sequences within the model's original context (max_length, --max-length).")
    alone = _differ(first, both, dtype)
    if alone:
        tqdm.write(f"in {name} a sequence's state depends on what else is in its batch: each passes alone, which takes "
                   "longer", file=sys.stderr)
    return alone


def passes_alone(model: nn.Module, sequences: Sequence, rotary) -> bool:
    """`must_be_alone` of a causal LM, by the states of its decoder, without logits.

    `rotary`: the model's `positions.Rotaries`.
    """
    from reptrace.hidden_states import text_decoder

    decoder = model
    with suppress(TypeError):  # one whose blocks are not known has logits all the same
        decoder = text_decoder(model)

    def states(rows: list[int]) -> list[torch.Tensor]:
        rotary.reset()
        ids, _ = padded([np.asarray(sequences[row]) for row in rows])
        output = decoder(input_ids=ids.to(decoder.get_input_embeddings().weight.device), use_cache=False)
        return [output[0][0, : len(sequences[rows[0]])].float().cpu()]

    return must_be_alone(states, list(map(len, sequences)), rotary.kind, next(model.parameters()).dtype,
                         type(model).__name__)


def _pairs(lengths: Sequence[int], kind: Callable[[int], object]) -> list[tuple[int, int]]:
    """(short, long) rows of one kind: the shortest ones, for whose sake a longer one must not change the length."""
    order = by_length(lengths)
    rising = [row for row in reversed(order) if lengths[row] >= min(LEAST, lengths[order[0]])]
    found = []
    for short in rising[:PAIRS]:
        longest = next((row for row in order if row != short and kind(lengths[row]) == kind(lengths[short])), None)
        found += [(short, longest)] if longest is not None else []
    return found


def _differ(ones: Sequence[States], others: Sequence[States], dtype: torch.dtype) -> bool:
    """Whether states of sequences differ by more than rounding; NaN differs from nothing, it is reported elsewhere.

    In bfloat16 all of them must: there rounding alone sends every fifth sequence to another expert (a random Mixtral of
    16 blocks and two experts a token), in float32 none.
    """
    # Of a typical number: float32 is right to 1e-6, bfloat16 to a percent or two in deep models.
    coarse = dtype == torch.bfloat16
    rounding = 0.05 if coarse else 1e-3
    found = [any((a - b).abs().median() > rounding * a.abs().median() for a, b in zip(one, other, strict=False))
             for one, other in zip(ones, others, strict=True)]
    return bool(found) and (all if coarse else any)(found)

"""Copying what stands earlier: what a causal LM gains on the second copy of a sequence that has no order.

Nothing but the first copy tells which token comes next in the second one, so that only a model which looks back finds
it: by heads of induction, as they are known since Olsson et al. 2022 (arXiv 2209.11895), who use it to find them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.functional import cross_entropy

TOGETHER = 2**14  # tokens of a forward pass, logits and all


class Repetition(NamedTuple):
    """Mean loss (nats a token) in the first and in the second copy, of the same tokens, and the share of them that the
    model ranks first in the second copy."""

    first_loss: float
    second_loss: float
    accuracy: float


@torch.no_grad()
def repetition(model, sequences: torch.Tensor) -> Repetition:
    """Let a model read each sequence twice, one copy after the other.

    The first token of a copy is not counted: nothing says that the second copy begins.

    Parameters
    ----------
    model : transformers causal LM, in evaluation mode
    sequences : integer tensor, shape (sequences, length), on the model's device; `shuffled` makes some
        Twice the length must fit the model's context.
    """
    length, found = sequences.shape[1], []
    if length < 2:
        raise ValueError(f"sequences of two tokens or more are needed, got {length}.")
    for part in sequences.split(max(1, TOGETHER // (2 * length))):
        logits = model(torch.cat([part, part], 1), use_cache=False).logits.float()
        pair = [logits[:, start : start + length - 1].flatten(0, 1) for start in (0, length)]
        following = part[:, 1:].flatten()
        losses = [cross_entropy(each, following, reduction="none") for each in pair]
        found.append(torch.stack([*losses, (pair[1].argmax(1) == following).float()]))
    return Repetition(*torch.cat(found, 1).double().mean(1).tolist())


def shuffled(ids: torch.Tensor, count: int, length: int, seed: int = 0) -> torch.Tensor:
    """Tokens of a text without their order, shape (count, length); ValueError where the text has fewer.

    Their frequencies are the text's, so that a model has nothing new to expect but the order.
    """
    if ids.numel() < count * length:
        raise ValueError(f"{count} sequences of {length} tokens need more than the text's {ids.numel()}.")
    order = torch.randperm(ids.numel(), generator=torch.Generator().manual_seed(seed))[: count * length]
    return ids.flatten()[order.to(ids.device)].view(count, length)

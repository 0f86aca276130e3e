"""What may stand for a sequence in place of its last token: another one, one at random, a mean; for `extract`.

Each takes hidden states, (b, t, d), and the index of each sequence's last real token, (b,), and returns (b, ...).
"""

from __future__ import annotations

import torch


def at(place: int, hidden: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """State of the token at a place, from 0: a causal model's last one of a sequence that ends there; nan where a
    sequence ends before."""
    return hidden[:, place].masked_fill((last < place)[:, None], torch.nan)


def mean(hidden: torch.Tensor, last: torch.Tensor, first: int = 0) -> torch.Tensor:
    """Mean over the real tokens, from the one at `first` on, in float32 at least; nan where there are none."""
    places = torch.arange(hidden.shape[1], device=hidden.device)
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    real = ((places >= first) & (places <= last[:, None])).to(dtype)
    return torch.einsum("btd,bt->bd", hidden.to(dtype), real) / real.sum(1, keepdim=True)


def at_random(hidden: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """State of one of the real tokens, drawn with equal chances: by the sequence's row in its batch, so that it is the
    same one at every layer and of every model that takes the same batches."""
    drawn = torch.rand(len(last), generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(last.device)
    return hidden[torch.arange(len(last), device=last.device), (drawn * (last + 1)).long()]


def lengths(hidden: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """Length (2-norm) of the first token's state, and the median of the other real tokens': (b, 2)."""
    norms = hidden.norm(dim=2)
    padding = torch.arange(1, hidden.shape[1], device=hidden.device) > last[:, None]
    return torch.stack([norms[:, 0], norms[:, 1:].masked_fill(padding, torch.nan).nanmedian(1).values], 1)

"""How far a model's positions reach, and rotary embeddings whose angles depend on the length of what passes through.

LongRoPE takes one set of factors for sequences up to the original context and another for longer ones, dynamic NTK a
base for every length beyond it; transformers decides by the longest sequence of a batch, and dynamic NTK keeps the
longest that it has met. Here every sequence has the angles that it would have alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn


def text_config(config):
    """The part of a configuration that describes the text decoder: itself, or its `text_config`."""
    return config.get_text_config(decoder=True)


def context(config) -> int | None:
    """Tokens that a model can read at most, None where nothing limits them; under dynamic NTK, `factor` times its
    original context."""
    config = text_config(config)
    reach = getattr(config, "max_position_embeddings", None)
    factors = [each.get("factor") or 1 for each in rope_parameters(config) if "dynamic" in each.get("rope_type", "")]
    return int(reach * max([1, *factors])) if reach and reach > 0 else None  # XLNet says -1


@dataclass(frozen=True)
class _Rotary:
    """A rotary embedding of one module (for one of its kinds of layers) that depends on the length."""

    module: nn.Module
    prefix: str  # of its buffers
    dynamic: bool
    limit: int  # the original context

    def angles_for(self, length: int) -> int:
        """The same number for lengths that have the same angles."""
        if length <= self.limit:
            return 0
        return length if self.dynamic else 1

    def reset(self) -> None:
        """Forget the lengths that were met."""
        if self.dynamic:
            current = getattr(self.module, f"{self.prefix}inv_freq")
            original = getattr(self.module, f"{self.prefix}original_inv_freq").to(current.device)
            setattr(self.module, f"{self.prefix}inv_freq", original.clone())
            setattr(self.module, f"{self.prefix}max_seq_len_cached", self.limit)


class Rotaries:
    """The rotary embeddings of a model that depend on the length; none for most models.

    `kind(length)` is the same for lengths that may share a batch. Call `reset` before each forward pass.
    """

    def __init__(self, model: nn.Module):
        self._found = list(_length_dependent(model))

    def kind(self, length: int) -> tuple[int, ...]:
        return tuple(rotary.angles_for(length) for rotary in self._found)

    def reset(self) -> None:
        for rotary in self._found:
            rotary.reset()

    def __bool__(self) -> bool:
        return bool(self._found)


@contextmanager
def rotaries(model: nn.Module) -> Iterator[Rotaries]:
    """`Rotaries` of a model; what dynamic NTK keeps is put back (LongRoPE decides anew at every pass)."""
    found = Rotaries(model)
    kept = [(module, name, value) for module in {rotary.module for rotary in found._found}
            for name, value in [*module._buffers.items(), *_cached_lengths(module)]]
    try:
        yield found
    finally:
        for module, name, value in kept:
            setattr(module, name, value)


def _cached_lengths(module: nn.Module) -> list[tuple[str, object]]:
    return [(name, value) for name, value in vars(module).items() if name.endswith("max_seq_len_cached")]


def _length_dependent(model: nn.Module) -> Iterator[_Rotary]:
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        if not kinds or not hasattr(module, "config"):
            continue
        for layers, kind in (kinds.items() if isinstance(kinds, Mapping) else [(None, kinds)]):
            prefix = f"{layers}_" if layers else ""
            if "dynamic" in kind:
                yield _Rotary(module, prefix, True, int(module.original_max_seq_len))
            elif kind == "longrope":
                parameters = module.config.rope_parameters
                limit = (parameters[layers] if layers else parameters)["original_max_position_embeddings"]
                yield _Rotary(module, prefix, False, int(limit))


def rope_parameters(config) -> list[Mapping]:
    """The rotary parameters of a configuration, one mapping for each kind of its layers."""
    found = getattr(config, "rope_parameters", None) or {}
    nested = [each for each in found.values() if isinstance(each, Mapping)]
    return nested or [found]

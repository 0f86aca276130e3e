"""Hidden state of the last real token of each sequence, at chosen layers: model + sequences -> features.

One forward pass of the decoder serves all layers; the LM head is not run, and
of every layer's output just one token a sequence is kept, by hooks, while the pass goes on. What else is wanted of a
sequence's tokens (their mean, say) is reduced on the spot, so that nothing of M x T x d is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from reptrace.models import batches
from reptrace.models.batches import AUTO
from reptrace.models.decoders import block_list, devices_of, final_norm, text_decoder, vocabulary
from reptrace.models.independence import TRIED, depend_on_the_batch, must_be_alone
from reptrace.models.modes import evaluating
from reptrace.models.positions import context, rotaries
from reptrace.texts.token_ids import checked_sequences

FINAL = "final"
# Blocks that add their MLP's output to the residual: in the last one, the MLP then need see the last token alone.
RESIDUAL_MLP = ("gpt_neox", "llama", "olmo2")
# Features gathered on a GPU before they are copied to the CPU: waiting for every batch would leave the GPU idle.
GATHERED_BYTES = 2**28
# (batch, tokens, d) and the last real token's index, (batch,), both on the layer's device -> (batch, ...), a row a
# sequence. Tokens behind the last one are padding. What was given is left as it is.
Reduction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class NonFiniteError(ValueError):
    """A hidden state holds NaN or infinity."""


@dataclass(frozen=True)
class Extraction:
    """Features of some sequences, and the batches they were made in.

    Attributes
    ----------
    features : dict of layer -> tensor of shape (M, d), see `last_token_states`
    token_budget : int
        Tokens a batch, padding included; bfloat16 rounds differently in other batches. Where "auto" met the end of the
        memory, what it came down to.
    reduced : dict of name of a reduction -> dict of layer -> tensor of shape (M, ...), in the features' dtype
    """

    features: dict[int | str, torch.Tensor]
    token_budget: int
    reduced: dict[str, dict[int | str, torch.Tensor]]


def last_token_states(
    model: nn.Module,
    sequences: Sequence[Sequence[int]],
    layers: Sequence[int | str] | str = (FINAL,),
    batch_size: int | str = 16,
    progress: bool = False,
) -> dict[int | str, torch.Tensor]:
    """Features of every sequence at its last token, in one forward pass.

    Parameters
    ----------
    model : transformers decoder (with or without LM head), in float32, bfloat16 or float64
        Left as it is (its training mode too). `load` opens one. It may be spread over several devices by accelerate.
    sequences : M lists of token ids, of any lengths from 1 up, without padding
        From a padded batch: `unpadded(batch)`, whatever the padding side.
    layers : sequence of int or "final", or "all"; default ("final",)
        k = 0..L: output of block k before any final norm, 0 being the embeddings. "final": the last block's output
        after the final norm, which the LM head receives and the paper measures. "all": every one of these.
    batch_size : int or "auto", default 16
        At most so many sequences of the longest length in a batch; batches of shorter sequences hold as many tokens, so
        more sequences. "auto": as many as fit into a GPU's free memory, up to what is of use, and fewer where memory
        runs out all the same. On a CPU batches are kept small enough for its cache.
    progress : bool, default False
        Show a progress bar.

    Returns
    -------
    dict of layer -> tensor of shape (M, d), float32 (float64 for a float64 model), on the CPU, in the order given.

    Raises
    ------
    NonFiniteError
        Names a sequence and a layer with NaN or infinity (the first met; long sequences come first).
    TooLittleMemoryError
        A batch does not fit into memory; says the largest that does.
    ValueError, TypeError
        float16; no or empty sequences; ids outside the vocabulary; longer than the context; unknown layer; a model that
        is not causal.
    """
    return extract(model, sequences, layers, batch_size, progress).features


def extract(
    model: nn.Module,
    sequences: Sequence[Sequence[int]],
    layers: Sequence[int | str] | str = (FINAL,),
    batch_size: int | str = 16,
    progress: bool = False,
    reductions: Mapping[str, Reduction] | None = None,
) -> Extraction:
    """As `last_token_states`, with the token budget that was used, for a record.

    `reductions`, by name, are made of all tokens' states at each of the layers, in the same pass. They may be NaN for
    some sequences (the curvature of two tokens, say); whoever asked for them knows where that is right.
    """
    decoder = text_decoder(model)
    names = _layer_names(decoder, layers)
    _check_dtype(model)
    batches.check_batch_size(batch_size)
    sequences = _checked(decoder, sequences)
    reductions = dict(reductions or {})
    with (torch.inference_mode(), evaluating(decoder), _capture(decoder, names, bool(reductions)) as captured,
          rotaries(decoder) as rotary):
        passes = _Passes(decoder, sequences, names, captured, rotary, batch_size, reductions)
        _check_causal(decoder, int(sequences[0][0]), captured, passes.devices)
        # One short sequence is enough where one tells it, since a few of the batches are looked at afterwards.
        alone = must_be_alone(passes.states, passes.lengths, rotary.kind, passes.dtype, type(decoder).__name__,
                              TRIED if passes.dtype == torch.bfloat16 else 1)
        passes.all(alone, progress)
        if not alone and passes.some_come_out_otherwise_alone():
            alone = True
            passes.all(alone, progress)
    reduced = {name: {layer: passes.results.reduced[name, layer] for layer in names} for name in reductions}
    return Extraction(passes.results.features, max(passes.lengths) if alone else passes.budget, reduced)


class _Passes:
    """Forward passes of sequences in batches, the longest first: the states of their last tokens, in `results`."""

    def __init__(self, decoder: nn.Module, sequences: list[np.ndarray], names: Sequence[int | str],
                 captured: _Captured, rotary, batch_size: int | str, reductions: Mapping[str, Reduction]):
        self.decoder, self.sequences, self.names, self.captured, self.rotary = (decoder, sequences, names, captured,
                                                                                rotary)
        self.reductions = reductions
        self.lengths, self.dtype = list(map(len, sequences)), next(decoder.parameters()).dtype
        self.devices, self.may_shrink = devices_of(decoder), batch_size == AUTO
        self.budget = batches.token_budget(decoder, max(self.lengths), batch_size, self.devices)
        self.shared: list[int] = []  # the last sequence of each batch that held several

    def all(self, alone: bool, progress: bool) -> None:
        gathered = GATHERED_BYTES if self.devices[0].type == "cuda" else 0
        with torch.inference_mode(False):  # features that can be changed in place
            self.results = _Results(self.decoder, len(self.sequences), self.names, gathered)
        order, start = batches.by_length(self.lengths), 0
        self.captured.reductions = self.reductions
        with batches.progress_bar(self.lengths, "hidden states", progress) as advance:
            while start < len(order):
                length = self.lengths[order[start]]
                rows = order[start : start + (1 if alone else max(1, self.budget // length))]
                rows = batches.alike(rows, lambda row: self.rotary.kind(self.lengths[row]))
                if self.fits(rows):
                    self.results.add(rows, self.captured.rows, self.captured.reduced)
                    self.shared += rows[-1:] if len(rows) > 1 else []
                    start += len(rows)
                    advance(rows)
                elif self.may_shrink and len(rows) > 1:
                    self.results.flush()
                    self.budget = length * (len(rows) // 2)
                else:
                    fit = batches.largest(rows, self.fits)
                    raise batches.too_little(self.decoder, self.devices, length, len(rows), fit, max(self.lengths))
            self.results.flush()
        self.captured.reductions = {}

    def fits(self, rows: list[int]) -> bool:
        self.rotary.reset()
        return _fits(self.decoder, [self.sequences[row] for row in rows], self.captured, self.devices)

    def states(self, rows: list[int], count: int) -> list[list[torch.Tensor]]:
        """States of the last `count` sequences of a batch; none where it does not fit, but for a pair by the memory."""
        large = len(rows) > 2 and len(rows) * max(self.lengths[row] for row in rows) > self.budget
        if large or not self.fits(rows):
            return []
        found = [states[-count:].float().cpu() for states in self.captured.rows.values()]
        return [[states[k] for states in found] for k in range(count)]

    def some_come_out_otherwise_alone(self) -> bool:
        """Whether the batches have changed what came of their last sequences, by those of a few of them."""
        rows = [self.shared[k] for k in sorted({0, len(self.shared) // 2, len(self.shared) - 1})] if self.shared else []
        together = [[states[row].float() for states in self.results.features.values()] for row in rows]
        return depend_on_the_batch(together, [next(iter(self.states([row], 1)), []) for row in rows], self.dtype,
                                   type(self.decoder).__name__)


def unpadded(batch: Mapping[str, torch.Tensor]) -> list[list[int]]:
    """Token lists of a tokenizer's padded batch (`input_ids`, `attention_mask`), padded on either side."""
    if "attention_mask" not in batch:
        raise ValueError("the batch has no attention_mask: which tokens are real cannot be known.")
    pairs = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    return [[int(i) for i, real in zip(ids, mask, strict=True) if real] for ids, mask in pairs]


class _Captured:
    """Position to take from each sequence of the running batch, and what the hooks took: name -> (batch, d).

    `output` is the model's own, where it is to be kept; `reduced` what the reductions, where there are some, made of
    all tokens: (reduction, name) -> (batch, ...).
    """

    def __init__(self):
        self.last: torch.Tensor | None = None
        self.rows: dict[int | str, torch.Tensor] = {}
        self.keep, self.output = False, None
        self.reductions: Mapping[str, Reduction] = {}
        self.reduced: dict[tuple[str, int | str], torch.Tensor] = {}

    def take(self, name: int | str, hidden: torch.Tensor) -> None:
        self.rows[name] = self.last_tokens(hidden)
        for each, reduction in self.reductions.items():
            self.reduced[each, name] = reduction(hidden, self.last)

    def last_tokens(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, d) -> (batch, d)"""
        if self.last.device != hidden.device:  # a model spread over several
            self.last = self.last.to(hidden.device)
        return hidden[torch.arange(len(self.last), device=hidden.device), self.last]


class _Results:
    """Features on the CPU, row by row, and those still on the device: waiting for it costs less often than always."""

    def __init__(self, decoder: nn.Module, count: int, names: Sequence[int | str], gathered_bytes: int):
        self._count = count
        self._dtype = torch.float64 if next(decoder.parameters()).dtype == torch.float64 else torch.float32
        self.features = {name: torch.empty(count, decoder.config.hidden_size, dtype=self._dtype) for name in names}
        self.reduced: dict[tuple[str, int | str], torch.Tensor] = {}
        self._limit = gathered_bytes
        self._rows: list[int] = []
        self._states: list[Mapping] = []
        self._reduced: list[Mapping] = []
        self._bytes = 0

    def add(self, rows: Sequence[int], states: Mapping[int | str, torch.Tensor], reduced: Mapping) -> None:
        self._rows += rows
        self._states.append(states)
        self._reduced.append(reduced)
        self._bytes += sum(tensor.nbytes for tensor in (*states.values(), *reduced.values()))
        if self._bytes > self._limit:
            self.flush()

    def flush(self) -> None:
        """Copy what there is to the CPU. NonFiniteError names the first layer, and in it the first row, of NaN."""
        rows, states, reduced = self._rows, self._states, self._reduced
        self._rows, self._states, self._reduced, self._bytes = [], [], [], 0
        for name, features in self.features.items():
            if rows:
                found = torch.cat([batch[name].to("cpu", features.dtype) for batch in states])
                _check_finite(found, rows, name)
                features[rows] = found
        for key in reduced[0] if reduced else ():
            found = torch.cat([batch[key].to("cpu", self._dtype) for batch in reduced])
            if key not in self.reduced:
                self.reduced[key] = torch.empty(self._count, *found.shape[1:], dtype=self._dtype)
            self.reduced[key][rows] = found


@contextmanager
def _capture(decoder: nn.Module, names: Sequence[int | str], all_tokens: bool) -> Iterator[_Captured]:
    """Hooks that keep the last token at the named layers; removed on leaving, also after an exception.

    `all_tokens`: the others are looked at too.
    """
    blocks, captured, handles = block_list(decoder), _Captured(), []

    def after(name):
        return lambda module, args, output: captured.take(name, output[0] if isinstance(output, tuple) else output)

    def last_token(module, args):
        # (batch, 1, d): added to the residual of every token, right for the last one, and no other is looked at
        return (captured.last_tokens(args[0]).unsqueeze(1), *args[1:])

    def before(module, args, kwargs):
        captured.take(0, args[0] if args else kwargs["hidden_states"])

    try:
        one_token = not all_tokens and _last_mlp_sees_one_token(decoder, blocks[-1])
        for name in names:
            if name == 0:
                handles.append(blocks[0].register_forward_pre_hook(before, with_kwargs=True))
            else:
                module = final_norm(decoder) if name == FINAL else blocks[name - 1]
                handles.append(module.register_forward_hook(after(name)))
        if one_token:
            handles.append(blocks[-1].mlp.register_forward_pre_hook(last_token))
        yield captured
    finally:
        for handle in handles:
            handle.remove()


def _last_mlp_sees_one_token(decoder: nn.Module, block: nn.Module) -> bool:
    """Whether the last block's MLP may be given the last token alone: where block and MLP are transformers' own."""
    mlp = getattr(block, "mlp", None)
    return decoder.config.model_type in RESIDUAL_MLP and all(_is_transformers_own(each) for each in (block, mlp))


def _is_transformers_own(module: nn.Module | None) -> bool:
    """A module as transformers made it: no other class, no forward of its own (accelerate's apart), no hooks."""
    replaced = "forward" in vars(module) and not hasattr(module, "_hf_hook")
    return (type(module).__module__.startswith("transformers.models.") and not replaced
            and not module._forward_pre_hooks and not module._forward_hooks)


def _forward(decoder: nn.Module, sequences: Sequence[np.ndarray], captured: _Captured, device: torch.device,
             last: Sequence[int] | None = None) -> None:
    ids, ends = batches.padded(sequences)
    captured.last, captured.rows, captured.reduced = _to(device, ends if last is None else torch.tensor(last)), {}, {}
    # Padded on the right and causal: no real token sees the padding, so no mask is needed and attention stays fast.
    output = decoder(input_ids=_to(device, ids), use_cache=False)
    captured.output = output if captured.keep else None


def _to(device: torch.device, tensor: torch.Tensor) -> torch.Tensor:
    """To a GPU from pinned memory, without waiting: the next batch is made while this one is computed."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _fits(decoder: nn.Module, sequences: Sequence[np.ndarray], captured: _Captured, devices: Sequence[torch.device],
          last: Sequence[int] | None = None) -> bool:
    """One batch through the model; False where memory ran out on the way."""
    try:
        _forward(decoder, sequences, captured, devices[0], last)
        return True
    except (RuntimeError, MemoryError) as error:
        if not batches.is_out_of_memory(error):
            raise
    # Only now: until the exception is forgotten, its traceback keeps the activations alive.
    captured.rows = {}
    if any(device.type == "cuda" for device in devices):
        torch.cuda.empty_cache()
    return False


def check_sequences(model: nn.Module, sequences, layers: Sequence[int | str] | str = (FINAL,)) -> None:
    """ValueError or TypeError where `last_token_states` would refuse sequences or layers for a model that it can take.
    """
    decoder = text_decoder(model)
    _layer_names(decoder, layers)
    _checked(decoder, sequences)


def _layer_names(decoder: nn.Module, layers) -> list[int | str]:
    known = [*range(len(block_list(decoder)) + 1), FINAL]
    names = known if layers == "all" else list(layers) if isinstance(layers, Iterable) else []
    unknown = [name for name in names if name not in known]
    if unknown or not names or (isinstance(layers, str) and layers != "all"):
        raise ValueError(f'layers must be "all" or a list of 0..{known[-2]} and "final", got {layers!r}.')
    return list(dict.fromkeys(names))


def _check_dtype(model: nn.Module) -> None:
    if any(parameter.dtype == torch.float16 for parameter in model.parameters()):
        raise TypeError("the model is in float16, which overflows in Pythia and others: use bfloat16 or float32.")


def _checked(decoder: nn.Module, sequences) -> list[np.ndarray]:
    return checked_sequences(sequences, vocabulary(decoder), context(decoder.config))


def _check_causal(decoder: nn.Module, token: int, captured: _Captured, devices: Sequence[torch.device]) -> None:
    """The state of a token must not change with what follows it: padding is left unmasked on that ground."""
    states, captured.keep = [], True
    for following in (0, vocabulary(decoder) - 1):
        if not _fits(decoder, [np.array([token, following])], captured, devices, last=[0]):
            raise batches.too_little(decoder, devices, 2, 1, 0, 2)
        _check_final(decoder, captured)
        states.append(torch.cat([rows.flatten().float().cpu() for rows in captured.rows.values()]))
    captured.keep, captured.output = False, None
    scale = states[0].abs().max()
    # The same shapes and the same numbers up to the token: equal but for rounding. NaN is reported by the caller.
    rounding = 1e-2 if next(decoder.parameters()).dtype == torch.bfloat16 else 1e-5
    if (states[0] - states[1]).abs().max() > rounding * scale:
        raise ValueError(f"in {type(decoder).__name__} a token's state depends on what follows it: the model is not "
                         "causal, so its last token is not what the paper measures.")


def _check_final(decoder: nn.Module, captured: _Captured) -> None:
    """What the final norm gives must be what the model gives: nothing else may come between it and the LM head."""
    given, final = getattr(captured.output, "last_hidden_state", None), captured.rows.get(FINAL)
    if final is not None and given is not None and not torch.equal(
            torch.nan_to_num(final).cpu(), torch.nan_to_num(given[:, 0]).cpu()):
        raise TypeError(f"in {type(decoder).__name__} more follows after the final norm before the LM head: ask for "
                        f"layer {len(block_list(decoder))} instead, the last block before any norm.")


def _check_finite(states: torch.Tensor, rows: Sequence[int], name: int | str) -> None:
    finite = torch.isfinite(states).all(1)
    if not finite.all():
        row = rows[int((~finite).nonzero()[0])]
        raise NonFiniteError(f"the hidden state of sequence {row} at layer {name} holds NaN or infinity: damaged "
                             "weights, or a dtype whose range is too small.")

"""Hidden state of the last real token of each sequence, at chosen layers: model + sequences -> features.

The only module that touches the device. One forward pass of the decoder serves all layers; the LM head is not run, and
of every layer's output just one token a sequence is kept, by hooks, while the pass goes on.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from reptrace import batches
from reptrace.batches import AUTO, TooLittleMemoryError

# The final norm's attribute in the decoders of transformers; the blocks are found by their number.
FINAL_NORM_NAMES = ("final_layer_norm", "norm", "ln_f", "norm_f", "final_norm", "final_layernorm", "layer_norm",
                    "ln_out")

FINAL = "final"
# Blocks that add their MLP's output to the residual: in the last one, the MLP then need see the last token alone.
RESIDUAL_MLP = ("gpt_neox", "llama", "olmo2")
# Features gathered on a GPU before they are copied to the CPU: waiting for every batch would leave the GPU idle.
GATHERED_BYTES = 2**28
# transformers changes torch's default dtype, its own verbosity and progress bars while it loads: one thread at a time.
_LOADING = threading.Lock()


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
    """

    features: dict[int | str, torch.Tensor]
    token_budget: int


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
) -> Extraction:
    """As `last_token_states`, with the token budget that was used, for a record."""
    decoder = _decoder(model)
    names = _layer_names(decoder, layers)
    _check_dtype(model)
    batches.check_batch_size(batch_size)
    sequences = _checked(decoder, sequences)
    devices = _devices(decoder)
    longest = max(map(len, sequences))
    budget = batches.token_budget(decoder, longest, batch_size, devices)
    results = _Results(decoder, len(sequences), names, GATHERED_BYTES if devices[0].type == "cuda" else 0)
    order, start = batches.by_length(sequences), 0

    modes = [(module, module.training) for module in decoder.modules()]
    decoder.eval()
    try:
        with (torch.inference_mode(), _capture(decoder, names) as captured,
              tqdm(total=len(order), desc="hidden states", unit="seq", disable=not progress, leave=False) as bar):

            def fits(rows: list[int]) -> bool:
                return _fits(decoder, [sequences[row] for row in rows], captured, devices)

            _check_causal(decoder, int(sequences[0][0]), captured, devices)
            while start < len(order):
                length = len(sequences[order[start]])
                rows = order[start : start + max(1, budget // length)]
                if fits(rows):
                    results.add(rows, captured.rows)
                    start += len(rows)
                    bar.update(len(rows))
                elif batch_size == AUTO and len(rows) > 1:
                    results.flush()
                    budget = length * (len(rows) // 2)
                else:
                    fit = batches.largest(rows, fits)
                    raise batches.too_little(decoder, devices, length, len(rows), fit, longest)
            results.flush()
    finally:
        for module, training in modes:
            module.training = training
    return Extraction(results.features, budget)


def placement(device: str | None = None, dtype: str | None = None) -> tuple[str, str]:
    """Device and dtype of the forward pass: bfloat16 on a GPU where there is one, float32 on the CPU, unless given.

    The device "auto" is all of them: accelerate spreads the model over the GPUs, then the CPU, then the disk.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    gpu = torch.cuda.is_available() if device == AUTO else torch.device(device).type == "cuda"
    dtype = dtype or ("bfloat16" if gpu else "float32")
    if dtype not in ("float32", "bfloat16", "float64"):
        raise TypeError(f"dtype must be float32, bfloat16 or float64, got {dtype!r}: float16 overflows in Pythia and "
                        "others.")
    return device, dtype


def load(name: str, revision: str | None = None, cache_dir: str | None = None, device: str | None = None,
         dtype: str | None = None, *, trust_remote_code: bool = False, head: bool = False) -> nn.Module:
    """Open a decoder, without its LM head unless asked for: a hub repository at a revision, or a local folder.

    Weights are read from safetensors or, where there are none, from .bin files as bare tensors: a pickle that holds
    anything else is refused, and nothing in it is run.

    Parameters
    ----------
    name : str
        Repository ("EleutherAI/pythia-1b") or folder.
    revision : str, optional
        Branch, tag or commit of the repository. A plain folder has none.
    cache_dir : str, optional
        Hub cache to read, default transformers' own. A suite trained here lives in one of its own (`pretrain`).
    device, dtype : str, see `placement`; float16 is refused: it overflows.
    trust_remote_code : bool, default False
        Run Python code that comes with this one repository. Read it first.
    head : bool, default False
        With its LM head (AutoModelForCausalLM), for tasks and losses; hidden states do not need it.

    Raises
    ------
    FileNotFoundError
        No such model or revision; says which revisions there are, where that is known.
    TooLittleMemoryError
        The weights alone are more than the device's free memory (of the CPU's, where Linux tells it).
    ValueError
        Weights that are damaged, incomplete, of other shapes than the configuration says, or not bare tensors; a
        repository with code of its own, which it was not allowed to run; a model that has no LM head, if asked for.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    device, dtype = placement(device, dtype)
    source = (name, revision, cache_dir)
    weights, trust = getattr(torch, dtype), {"trust_remote_code": trust_remote_code}
    opener = AutoModelForCausalLM if head else AutoModel
    sized = device != AUTO and not trust_remote_code  # a repository's own code may not build on the device "meta"
    config = from_pretrained(AutoConfig, *source, **trust) if head or sized else None
    if head:
        _check_head(name, config)
    if sized:
        batches.check_memory(_bytes(opener, config, weights), torch.device(device), f"the model {name!r} in {dtype}")
    # Straight to the GPU, so that the CPU's memory need not hold the model.
    spread = {} if device == "cpu" else {"device_map": AUTO if device == AUTO else torch.device(device)}
    model, report = from_pretrained(opener, *source, dtype=weights, output_loading_info=True, weights_only=True,
                                    **spread, **trust)
    absent = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if absent:
        raise ValueError(f"the weights of {name!r} lack {len(absent)} tensors ({', '.join(absent[:3])}, ...), which "
                         "would be random: an incomplete download or save"
                         f"{', or a model saved without its LM head' if head else ''}?")
    return model.eval() if device == AUTO else model.to(device).eval()


def load_tokenizer(name: str, revision: str | None = None, cache_dir: str | None = None, *,
                   trust_remote_code: bool = False):
    """The tokenizer stored with a model; FileNotFoundError where there is none. Code that comes with it: see `load`."""
    from transformers import AutoTokenizer

    return from_pretrained(AutoTokenizer, name, revision, cache_dir, trust_remote_code=trust_remote_code)


def from_pretrained(loader, name: str, revision: str | None, cache_dir: str | None = None, **options):
    """`loader.from_pretrained`, quiet, with an error that says what was looked for and what there is.

    Threads may call it side by side: they take turns.
    """
    import os
    from pickle import UnpicklingError

    from safetensors import SafetensorError

    from reptrace.suites import revisions

    folder = os.path.isdir(name)
    if not isinstance(options.get("trust_remote_code", False), bool):  # a name would count as yes
        raise TypeError(f"trust_remote_code is True or False, got {options['trust_remote_code']!r}.")
    if folder and revision is not None:
        raise ValueError(f"{name} is a plain folder and has no revisions: leave revision={revision!r} out.")
    where = {} if folder else {"revision": revision or "main", "cache_dir": cache_dir,
                               "local_files_only": cache_dir is not None}
    at = f" at revision {revision!r}" if revision else ""
    try:
        with _LOADING, _quiet():
            return loader.from_pretrained(name, **where, **options)
    except UnpicklingError as error:
        raise ValueError(f"the weights of {name!r}{at} are a pickle that holds more than tensors, or a damaged one. "
                         "Nothing in it was run. Ask for safetensors, or convert it where you trust it.") from error
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise ValueError(f"{name!r}{at} comes with Python code of its own, which is not run unless you say so. "
                             "Read it; then allow it for this one repository: trust_remote_code=True.") from error
        known = [] if folder else revisions(name, cache_dir)
        hint = f" It has {', '.join(known[:6])}{' ...' if len(known) > 6 else ''}." if known else ""
        raise FileNotFoundError(
            f"cannot open model {name!r}{at}: not a folder with a config and weights, and not a repository in "
            f"{cache_dir or 'the hub cache or on the hub'}.{hint} ({str(error).splitlines()[0]})") from error
    except (SafetensorError, RuntimeError) as error:
        if batches.is_out_of_memory(error):
            raise TooLittleMemoryError(f"memory ran out while {name!r}{at} was loaded: try dtype=\"bfloat16\", or "
                                       f"device=\"auto\" ({str(error).splitlines()[0]}).") from error
        raise ValueError(f"the weights of {name!r}{at} cannot be read: cut short, damaged, or of another shape than "
                         f"the configuration says ({str(error).splitlines()[0]}).") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers without messages and progress bars, for the whole process: not for two threads at once."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _check_head(name: str, config) -> None:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and "AutoModelForCausalLM" not in (
            getattr(config, "auto_map", None) or {}):
        raise ValueError(f"{name!r} has no LM head: {type(config).__name__} describes no causal language model, so it "
                         "predicts no next token. Tasks need one, such as Pythia, OLMo-2 or Llama.")


def _bytes(opener, config, dtype: torch.dtype) -> int:
    """Size of a model's weights, from its shape: it is built on the device "meta", which takes no memory."""
    with _LOADING, torch.device("meta"):
        model = opener.from_config(config, dtype=dtype, trust_remote_code=False)
    return sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize


def unpadded(batch: Mapping[str, torch.Tensor]) -> list[list[int]]:
    """Token lists of a tokenizer's padded batch (`input_ids`, `attention_mask`), padded on either side."""
    if "attention_mask" not in batch:
        raise ValueError("the batch has no attention_mask: which tokens are real cannot be known.")
    pairs = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    return [[int(i) for i, real in zip(ids, mask, strict=True) if real] for ids, mask in pairs]


class _Captured:
    """Position to take from each sequence of the running batch, and what the hooks took: name -> (batch, d)."""

    def __init__(self):
        self.last: torch.Tensor | None = None
        self.rows: dict[int | str, torch.Tensor] = {}

    def take(self, name: int | str, hidden: torch.Tensor) -> None:
        self.rows[name] = self.last_tokens(hidden)

    def last_tokens(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, d) -> (batch, d)"""
        if self.last.device != hidden.device:  # a model spread over several
            self.last = self.last.to(hidden.device)
        return hidden[torch.arange(len(self.last), device=hidden.device), self.last]


class _Results:
    """Features on the CPU, row by row, and those still on the device: waiting for it costs less often than always."""

    def __init__(self, decoder: nn.Module, count: int, names: Sequence[int | str], gathered_bytes: int):
        dtype = torch.float64 if next(decoder.parameters()).dtype == torch.float64 else torch.float32
        self.features = {name: torch.empty(count, decoder.config.hidden_size, dtype=dtype) for name in names}
        self._limit = gathered_bytes
        self._rows: list[int] = []
        self._states: list[dict[int | str, torch.Tensor]] = []
        self._bytes = 0

    def add(self, rows: Sequence[int], states: Mapping[int | str, torch.Tensor]) -> None:
        self._rows += rows
        self._states.append(states)
        self._bytes += sum(tensor.nbytes for tensor in states.values())
        if self._bytes > self._limit:
            self.flush()

    def flush(self) -> None:
        """Copy what there is to the CPU. NonFiniteError names the first layer, and in it the first row, of NaN."""
        rows, states = self._rows, self._states
        self._rows, self._states, self._bytes = [], [], 0
        for name, features in self.features.items():
            if rows:
                found = torch.cat([batch[name].to("cpu", features.dtype) for batch in states])
                _check_finite(found, rows, name)
                features[rows] = found


@contextmanager
def _capture(decoder: nn.Module, names: Sequence[int | str]) -> Iterator[_Captured]:
    """Hooks that keep the last token at the named layers; removed on leaving, also after an exception."""
    blocks, captured, handles = _blocks(decoder), _Captured(), []

    def after(name):
        return lambda module, args, output: captured.take(name, output[0] if isinstance(output, tuple) else output)

    def last_token(module, args):
        # (batch, 1, d): added to the residual of every token, right for the last one, and no other is looked at
        return (captured.last_tokens(args[0]).unsqueeze(1), *args[1:])

    def before(module, args, kwargs):
        captured.take(0, args[0] if args else kwargs["hidden_states"])

    try:
        for name in names:
            if name == 0:
                handles.append(blocks[0].register_forward_pre_hook(before, with_kwargs=True))
            else:
                module = _final_norm(decoder) if name == FINAL else blocks[name - 1]
                handles.append(module.register_forward_hook(after(name)))
        if decoder.config.model_type in RESIDUAL_MLP:
            handles.append(blocks[-1].mlp.register_forward_pre_hook(last_token))
        yield captured
    finally:
        for handle in handles:
            handle.remove()


def _forward(decoder: nn.Module, sequences: Sequence[np.ndarray], captured: _Captured, device: torch.device,
             last: Sequence[int] | None = None) -> None:
    ids, ends = batches.padded(sequences)
    captured.last, captured.rows = _to(device, ends if last is None else torch.tensor(last)), {}
    # Padded on the right and causal: no real token sees the padding, so no mask is needed and attention stays fast.
    decoder(input_ids=_to(device, ids), use_cache=False)


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


def _devices(decoder: nn.Module) -> list[torch.device]:
    """Where the model computes: first the device that takes the token ids, then the others that hold weights.

    Weights that accelerate has put away on the CPU or the disk are on the device "meta" between their turns.
    """
    embeddings = decoder.get_input_embeddings()
    device = getattr(getattr(embeddings, "_hf_hook", None), "execution_device", None)
    first = embeddings.weight.device if device is None else torch.empty(0, device=device).device
    devices = [first, *(parameter.device for parameter in decoder.parameters())]
    return [device for device in dict.fromkeys(devices) if device.type != "meta"]


def _decoder(model: nn.Module) -> nn.Module:
    decoder = getattr(model, "base_model", model)
    if not hasattr(decoder, "config"):
        raise TypeError(f"expected a transformers model, got {type(model).__name__}.")
    return decoder


def _blocks(decoder: nn.Module) -> nn.ModuleList:
    for module in decoder.children():
        if isinstance(module, nn.ModuleList) and len(module) == decoder.config.num_hidden_layers:
            return module
    raise TypeError(f"{type(decoder).__name__} has no list of {decoder.config.num_hidden_layers} blocks: not a decoder "
                    "whose layers can be told apart.")


def _final_norm(decoder: nn.Module) -> nn.Module:
    for name in FINAL_NORM_NAMES:
        if isinstance(getattr(decoder, name, None), nn.Module):
            return getattr(decoder, name)
    raise TypeError(f"{type(decoder).__name__} has no final norm under a known name ({', '.join(FINAL_NORM_NAMES)}): "
                    f"ask for layer {decoder.config.num_hidden_layers} instead, the last block before any norm.")


def _layer_names(decoder: nn.Module, layers) -> list[int | str]:
    known = [*range(decoder.config.num_hidden_layers + 1), FINAL]
    names = known if layers == "all" else list(layers) if isinstance(layers, Iterable) else []
    unknown = [name for name in names if name not in known]
    if unknown or not names or (isinstance(layers, str) and layers != "all"):
        raise ValueError(f'layers must be "all" or a list of 0..{known[-2]} and "final", got {layers!r}.')
    return list(dict.fromkeys(names))


def _check_dtype(model: nn.Module) -> None:
    if any(parameter.dtype == torch.float16 for parameter in model.parameters()):
        raise TypeError("the model is in float16, which overflows in Pythia and others: use bfloat16 or float32.")


def _checked(decoder: nn.Module, sequences) -> list[np.ndarray]:
    """The sequences as arrays, once they are known to be some that the model can read."""
    if len(sequences) == 0:
        raise ValueError("there are no sequences to measure.")
    context = getattr(decoder.config, "max_position_embeddings", None)
    vocabulary = decoder.get_input_embeddings().num_embeddings
    arrays = [np.asarray(sequence) for sequence in sequences]
    for row, array in enumerate(arrays):
        if array.ndim == 0:
            raise TypeError(f"sequence {row} is not a list of token ids but {sequences[row]!r:.60}. Texts are "
                            "tokenized first: measure(model, texts), or probe(corpus, tokenizer, M).sequences.")
        if len(array) == 0:
            raise ValueError(f"sequence {row} is empty: it has no last token.")
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise TypeError(f"sequence {row} is not a list of token ids, which are whole numbers.")
        if context and len(array) > context:
            raise ValueError(f"sequence {row} has {len(array)} tokens, the model's context is {context}: "
                             f"cut at max_length={context} or less.")
        wrong = array.max() if array.max() >= vocabulary else array.min()
        if not 0 <= wrong < vocabulary:
            raise ValueError(f"sequence {row} holds token id {wrong}, the model's vocabulary has {vocabulary}: "
                             "is it another model's tokenizer?")
    return arrays


def _check_causal(decoder: nn.Module, token: int, captured: _Captured, devices: Sequence[torch.device]) -> None:
    """The state of a token must not change with what follows it: padding is left unmasked on that ground."""
    states = []
    for following in (0, decoder.get_input_embeddings().num_embeddings - 1):
        if not _fits(decoder, [np.array([token, following])], captured, devices, last=[0]):
            raise batches.too_little(decoder, devices, 2, 1, 0, 2)
        states.append(torch.cat([rows.flatten().float().cpu() for rows in captured.rows.values()]))
    scale = states[0].abs().max()
    # The same shapes and the same numbers up to the token: equal but for rounding. NaN is reported by the caller.
    rounding = 1e-2 if next(decoder.parameters()).dtype == torch.bfloat16 else 1e-5
    if (states[0] - states[1]).abs().max() > rounding * scale:
        raise ValueError(f"in {type(decoder).__name__} a token's state depends on what follows it: the model is not "
                         "causal, so its last token is not what the paper measures.")


def _check_finite(states: torch.Tensor, rows: Sequence[int], name: int | str) -> None:
    finite = torch.isfinite(states).all(1)
    if not finite.all():
        row = rows[int((~finite).nonzero()[0])]
        raise NonFiniteError(f"the hidden state of sequence {row} at layer {name} holds NaN or infinity: damaged "
                             "weights, or a dtype whose range is too small.")

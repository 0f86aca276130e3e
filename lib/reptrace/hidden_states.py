"""Hidden state of the last real token of each sequence, at chosen layers: model + sequences -> features.

The only module that touches the device. One forward pass of the decoder serves all layers; the LM head is not run, and
of every layer's output just one token a sequence is kept, by hooks, while the pass goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from tqdm import tqdm

# The final norm's attribute in the decoders of transformers; the blocks are found by their number.
FINAL_NORM_NAMES = ("final_layer_norm", "norm", "ln_f", "norm_f", "final_norm", "final_layernorm", "layer_norm",
                    "ln_out")

FINAL = "final"
# Blocks that add their MLP's output to the residual: in the last one, the MLP then need see the last token alone.
RESIDUAL_MLP = ("gpt_neox", "llama", "olmo2")


class NonFiniteError(ValueError):
    """A hidden state holds NaN or infinity."""


def last_token_states(
    model: nn.Module,
    sequences: Sequence[Sequence[int]],
    layers: Sequence[int | str] | str = (FINAL,),
    batch_size: int = 16,
    progress: bool = False,
) -> dict[int | str, torch.Tensor]:
    """Features of every sequence at its last token, in one forward pass.

    Parameters
    ----------
    model : transformers decoder (with or without LM head), in float32, bfloat16 or float64
        Left as it is (its training mode too). `load` opens one.
    sequences : M lists of token ids, of any lengths from 1 up, without padding
        From a padded batch: `unpadded(batch)`, whatever the padding side.
    layers : sequence of int or "final", or "all"; default ("final",)
        k = 0..L: output of block k before any final norm, 0 being the embeddings. "final": the last block's output
        after the final norm, which the LM head receives and the paper measures. "all": every one of these.
    batch_size : int, default 16
        At most so many sequences of the longest length in a batch; batches of shorter sequences hold as many tokens, so
        more sequences. On a CPU batches are kept small enough for its cache.
    progress : bool, default False
        Show a progress bar.

    Returns
    -------
    dict of layer -> tensor of shape (M, d), float32 (float64 for a float64 model), on the CPU, in the order given.

    Raises
    ------
    NonFiniteError
        Names a sequence and a layer with NaN or infinity (the first met; long sequences come first).
    ValueError, TypeError
        float16; no or empty sequences; ids outside the vocabulary; longer than the context; unknown layer; a model that
        is not causal.
    """
    decoder = _decoder(model)
    names = _layer_names(decoder, layers)
    _check_dtype(model)
    _check_sequences(decoder, sequences, batch_size)
    device = next(decoder.parameters()).device
    out_dtype = torch.float64 if next(decoder.parameters()).dtype == torch.float64 else torch.float32
    features = {name: torch.empty(len(sequences), decoder.config.hidden_size, dtype=out_dtype) for name in names}

    modes = [(module, module.training) for module in decoder.modules()]
    decoder.eval()
    try:
        with torch.inference_mode(), _capture(decoder, names) as captured:
            _check_causal(decoder, sequences[0][0], captured, device)
            bar = tqdm(total=len(sequences), desc="hidden states", unit="seq", disable=not progress, leave=False)
            for rows in _batches(sequences, _token_budget(decoder, sequences, batch_size)):
                _forward(decoder, [sequences[row] for row in rows], captured, device)
                for name in names:
                    states = captured.rows[name].to("cpu", out_dtype)
                    _check_finite(states, rows, name)
                    features[name][rows] = states
                bar.update(len(rows))
            bar.close()
    finally:
        for module, training in modes:
            module.training = training
    return features


def placement(device: str | None = None, dtype: str | None = None) -> tuple[str, str]:
    """Device and dtype of the forward pass: bfloat16 on a GPU where there is one, float32 on the CPU, unless given."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or ("bfloat16" if torch.device(device).type == "cuda" else "float32")
    if dtype not in ("float32", "bfloat16", "float64"):
        raise TypeError(f"dtype must be float32, bfloat16 or float64, got {dtype!r}: float16 overflows in Pythia and "
                        "others.")
    return device, dtype


def load(name: str, revision: str | None = None, cache_dir: str | None = None, device: str | None = None,
         dtype: str | None = None) -> nn.Module:
    """Open a decoder without its LM head: a hub repository at a revision, or a local folder.

    Parameters
    ----------
    name : str
        Repository ("EleutherAI/pythia-1b") or folder.
    revision : str, optional
        Branch, tag or commit of the repository. A plain folder has none.
    cache_dir : str, optional
        Hub cache to read, default transformers' own. A suite trained here lives in one of its own (`pretrain`).
    device, dtype : str, see `placement`; float16 is refused: it overflows.

    Raises
    ------
    FileNotFoundError
        No such model or revision; says which revisions there are, where that is known.
    ValueError
        Weights that are damaged, incomplete or of other shapes than the configuration says.
    """
    from transformers import AutoModel

    device, dtype = placement(device, dtype)
    weights = getattr(torch, dtype)
    model, report = from_pretrained(AutoModel, name, revision, cache_dir, dtype=weights, output_loading_info=True)
    absent = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if absent:
        raise ValueError(f"the weights of {name!r} lack {len(absent)} tensors ({', '.join(absent[:3])}, ...), which "
                         "would be random: an incomplete download or save?")
    return model.to(device).eval()


def load_tokenizer(name: str, revision: str | None = None, cache_dir: str | None = None):
    """The tokenizer stored with a model; FileNotFoundError where there is none."""
    from transformers import AutoTokenizer

    return from_pretrained(AutoTokenizer, name, revision, cache_dir)


def from_pretrained(loader, name: str, revision: str | None, cache_dir: str | None = None, **options):
    """`loader.from_pretrained`, quiet, with an error that says what was looked for and what there is."""
    import os

    from safetensors import SafetensorError
    from transformers.utils import logging

    from reptrace.suites import revisions

    folder = os.path.isdir(name)
    if folder and revision is not None:
        raise ValueError(f"{name} is a plain folder and has no revisions: leave revision={revision!r} out.")
    where = {} if folder else {"revision": revision or "main", "cache_dir": cache_dir,
                               "local_files_only": cache_dir is not None}
    at = f" at revision {revision!r}" if revision else ""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        return loader.from_pretrained(name, **where, **options)
    except (OSError, ValueError) as error:
        known = [] if folder else revisions(name, cache_dir)
        hint = f" It has {', '.join(known[:6])}{' ...' if len(known) > 6 else ''}." if known else ""
        raise FileNotFoundError(
            f"cannot open model {name!r}{at}: not a folder with a config and weights, and not a repository in "
            f"{cache_dir or 'the hub cache or on the hub'}.{hint} ({str(error).splitlines()[0]})") from error
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"the weights of {name!r}{at} cannot be read: cut short, damaged, or of another shape than "
                         f"the configuration says ({str(error).splitlines()[0]}).") from error
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


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
        last = self.last.to(hidden.device)
        self.rows[name] = hidden[torch.arange(len(last), device=hidden.device), last]


@contextmanager
def _capture(decoder: nn.Module, names: Sequence[int | str]) -> Iterator[_Captured]:
    """Hooks that keep the last token at the named layers; removed on leaving, also after an exception."""
    blocks, captured, handles = _blocks(decoder), _Captured(), []

    def after(name):
        return lambda module, args, output: captured.take(name, output[0] if isinstance(output, tuple) else output)

    def last_token(module, args):
        hidden, last = args[0], captured.last.to(args[0].device)
        # (batch, 1, d): added to the residual of every token, right for the last one, and no other is looked at
        return (hidden[torch.arange(len(last), device=hidden.device), last].unsqueeze(1), *args[1:])

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


def _forward(decoder: nn.Module, sequences, captured: _Captured, device, last: list[int] | None = None) -> None:
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    ids = torch.zeros(len(sequences), int(lengths.max()), dtype=torch.long)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.as_tensor(sequence)
    captured.last = lengths - 1 if last is None else torch.tensor(last)
    captured.rows = {}
    # Padded on the right and causal: no real token sees the padding, so no mask is needed and attention stays fast.
    decoder(input_ids=ids.to(device), use_cache=False)


def _token_budget(decoder: nn.Module, sequences: Sequence[Sequence[int]], batch_size: int) -> int:
    """Tokens a batch: batch_size sequences of the longest length; on a CPU fewer, so that activations stay in cache."""
    budget = batch_size * max(map(len, sequences))
    if next(decoder.parameters()).device.type == "cpu":
        budget = min(budget, max(512, 2**18 // decoder.config.hidden_size))
    return budget


def _batches(sequences: Sequence[Sequence[int]], budget: int) -> Iterator[list[int]]:
    """Row numbers, longest sequences first (memory peaks at once, little padding), a fixed number of tokens a batch."""
    order = sorted(range(len(sequences)), key=lambda row: -len(sequences[row]))
    start = 0
    while start < len(order):
        count = max(1, budget // len(sequences[order[start]]))
        yield order[start : start + count]
        start += count


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
    names = known if layers == "all" else list(layers)
    unknown = [name for name in names if name not in known]
    if unknown or not names or (isinstance(layers, str) and layers != "all"):
        raise ValueError(f'layers must be "all" or a list of 0..{known[-2]} and "final", got {layers!r}.')
    return list(dict.fromkeys(names))


def _check_dtype(model: nn.Module) -> None:
    if any(parameter.dtype == torch.float16 for parameter in model.parameters()):
        raise TypeError("the model is in float16, which overflows in Pythia and others: use bfloat16 or float32.")


def _check_sequences(decoder: nn.Module, sequences, batch_size: int) -> None:
    if int(batch_size) != batch_size or batch_size < 1:
        raise ValueError(f"batch_size must be a positive whole number, got {batch_size!r}.")
    if len(sequences) == 0:
        raise ValueError("there are no sequences to measure.")
    context = getattr(decoder.config, "max_position_embeddings", None)
    vocabulary = decoder.get_input_embeddings().num_embeddings
    for row, sequence in enumerate(sequences):
        if len(sequence) == 0:
            raise ValueError(f"sequence {row} is empty: it has no last token.")
        if context and len(sequence) > context:
            raise ValueError(f"sequence {row} has {len(sequence)} tokens, the model's context is {context}: "
                             f"cut at max_length={context} or less.")
        wrong = max(sequence) if max(sequence) >= vocabulary else min(sequence)
        if not 0 <= wrong < vocabulary:
            raise ValueError(f"sequence {row} holds token id {wrong}, the model's vocabulary has {vocabulary}: "
                             "is it another model's tokenizer?")


def _check_causal(decoder: nn.Module, token: int, captured: _Captured, device) -> None:
    """The state of a token must not change with what follows it: padding is left unmasked on that ground."""
    states = []
    for following in (0, decoder.get_input_embeddings().num_embeddings - 1):
        _forward(decoder, [[token, following]], captured, device, last=[0])
        states.append(torch.cat([rows.flatten() for rows in captured.rows.values()]).float())
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

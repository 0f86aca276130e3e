"""Models and tokenizers out of GGUF files, as transformers makes them, and what it leaves out of a file."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from torch import nn

from reptrace.checkpoints import gguf_files
from reptrace.checkpoints.gguf_files import GGUFError, Header, Tensor
from reptrace.models.positions import rope_parameters, text_config

ROTARY = "rope_freqs.weight"  # by what each rotary frequency is divided (Llama 3.1 and later)
HEAD = "output.weight"


def opened(loader, name: str, **options):
    """`loader.from_pretrained` of a GGUF file: its configuration, its tokenizer, or its model with plain weights.

    Raises
    ------
    GGUFError
        It is no whole GGUF, or one of an architecture or types that transformers does not open.
    FileNotFoundError
        It has no tokenizer, if that is asked for.
    ImportError
        The package gguf is not installed.
    """
    from transformers import GgufConfig

    header, file = gguf_files.header(name), Path(name)
    _check_architecture(header)
    if "Tokenizer" in loader.__name__ and "tokenizer.ggml.tokens" not in header.facts:
        raise FileNotFoundError(f"{name!r} has no tokenizer in it: name one that gives the ids that the model was "
                                "trained on (tokenizer=..., --tokenizer).")
    if "dtype" in options:  # a model
        options["quantization_config"] = GgufConfig(gguf_file=file.name, dequantize=True)
    try:
        return loader.from_pretrained(str(file.parent), gguf_file=file.name, **options)
    except (ValueError, KeyError, IndexError, NotImplementedError) as error:
        raise GGUFError(f"transformers cannot open {name!r} ({header.architecture}, "
                        f"{header.quantization['quantization']}): {' '.join(str(error).split())[:300]}") from error


def finish(name: str, model: nn.Module, unexpected: Collection[str], head: bool) -> None:
    """Give a model what transformers leaves out of its file, where that is known, and refuse it where it is not.

    That all else was taken is told by the numbers of weights: as many in the file as in the model.

    Parameters
    ----------
    name : the file
    model : what was opened from it, all of its own weights filled
    unexpected : tensors that transformers found no place for, where it tells
    head : whether the LM head is going to be used

    Raises
    ------
    GGUFError
        The file holds what the model has no place for: without it, its numbers would be wrong.
    """
    header = gguf_files.header(name)
    stored = {tensor.name: tensor for tensor in header.tensors if not tensor.name.startswith(_ahead(header))}
    rotary = stored.pop(ROTARY, None)
    held = {tensor.data_ptr() or key: tensor.numel() for key, tensor in model.state_dict().items()}  # tied ones once
    if not head and stored.pop(HEAD, None) and not text_config(model.config).tie_word_embeddings:
        held.pop(model.get_output_embeddings().weight.data_ptr(), None)
    count, taken = sum(tensor.weights for tensor in stored.values()), sum(held.values())
    if unexpected or count != taken:
        raise GGUFError(f"{name!r} holds {count:,} weights, {type(model).__name__} has {taken:,}: without the others "
                        f"its numbers would be wrong. {_unplaced(unexpected or stored, model)}")
    scaling = str(header.facts.get(f"{header.architecture}.rope.scaling.type", "none"))
    taken = any(each.get("rope_type", "default") != "default" for each in rope_parameters(model.config))
    if scaling != "none" and not taken:
        raise GGUFError(f"{name!r} stretches its positions ({scaling}), which transformers leaves out when it opens a "
                        "GGUF file: its numbers would be wrong. Take the model's own weights (safetensors).")
    if rotary is not None:
        _divide_frequencies(header, rotary, model)


def _check_architecture(header: Header) -> None:
    from transformers import __version__
    from transformers.integrations.gguf import GGUF_CONFIG_ARCHS
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    known = sorted({*GGUF_SUPPORTED_ARCHITECTURES, *GGUF_CONFIG_ARCHS} - {"general", "tokenizer"})
    if _bare(header.architecture) not in map(_bare, known):
        raise GGUFError(f"{str(header.path)!r} holds a model of the architecture {header.architecture!r}, which "
                        f"transformers {__version__} does not open from GGUF files; those it opens are "
                        f"{', '.join(known)}. Take the model's own weights (safetensors).")


def _bare(architecture: str) -> str:
    """llama.cpp's qwen2moe and gpt-oss are transformers' qwen2_moe and gpt_oss."""
    return architecture.replace("_", "").replace("-", "")


def _ahead(header: Header) -> tuple[str, ...]:
    """How the names of further blocks begin, which predict more than one token ahead and change no hidden state."""
    blocks, ahead = (header.facts.get(f"{header.architecture}.{name}", 0)
                     for name in ("block_count", "nextn_predict_layers"))
    return tuple(f"blk.{number}." for number in range(blocks - ahead, blocks))


def _unplaced(names: Collection[str], model: nn.Module) -> str:
    """Which of a file's tensors a model has no place for, as far as their names tell."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    number = {name: key for key, name in MODEL_ARCH_NAMES.items()}.get(model.config.model_type)
    if number is not None:
        known = get_tensor_name_map(number, model.config.num_hidden_layers)
        own = {known.get_name(key, (".weight", ".bias")) for key in model.state_dict()}
        names = [name for name in names if name not in own]
    return f"It may be {', '.join(list(names)[:3])}{', ...' if len(names) > 3 else ''}." if names else ""


def _divide_frequencies(header: Header, rotary: Tensor, model: nn.Module) -> None:
    """Divide the frequencies of a model's rotary embedding as its file says; transformers leaves that out."""
    factors = np.fromfile(header.path, np.float32, rotary.weights, offset=rotary.offset)
    if rotary.type == "F32" and (factors == 1).all():
        return
    found = [module for module in model.modules()
             if isinstance(getattr(module, "inv_freq", None), torch.Tensor) and len(module.inv_freq) == len(factors)]
    if not found or rotary.type != "F32":
        raise GGUFError(f"{str(header.path)!r} divides its rotary frequencies ({ROTARY}), and {type(model).__name__} "
                        "has none of that number: its numbers would be wrong. Take the model's own weights.")
    for module in found:
        module.inv_freq /= torch.from_numpy(factors).to(module.inv_freq)

"""Models and tokenizers out of GGUF files, as transformers makes them, and what it leaves out of a file; and weights as
they come out of GGUF's blocks.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from reptrace.checkpoints import gguf_files
from reptrace.checkpoints.gguf_files import GGUFError, Header, Tensor
from reptrace.models.positions import rope_parameters, text_config

ROTARY = "rope_freqs.weight"  # by what each rotary frequency is divided (Llama 3.1 and later)
HEAD = "output.weight"
# Rules by which byte-level tokenizers split a text before they merge, by llama.cpp's names (its src/llama-vocab.cpp):
# as GPT-2 does, which transformers takes for every name that it does not know; so, and each digit by itself before
AS_GPT2 = {"gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling"}
DIGITS_FIRST = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
BLOCK = 32  # weights of a row that share a scale, in Q8_0, Q5_0 and Q4_0


def opened(loader, name: str, **options):
    """`loader.from_pretrained` of a GGUF file: its configuration, its tokenizer, or its model with plain weights.

    Raises
    ------
    GGUFError
        It is no whole GGUF, or one of an architecture, types or a rule of splitting that transformers does not know.
    FileNotFoundError
        It has no tokenizer, if that is asked for.
    ImportError
        The package gguf is not installed.
    """
    from transformers import GgufConfig

    header = gguf_files.header(name)
    _check_architecture(header)
    if "Config" in loader.__name__:
        return copy.deepcopy(_configuration(header))
    if "Tokenizer" not in loader.__name__:
        options["quantization_config"] = GgufConfig(dequantize=True)
        options["config"] = copy.deepcopy(_configuration(header))
    elif "tokenizer.ggml.tokens" not in header.facts:
        raise FileNotFoundError(f"{name!r} has no tokenizer in it: name one that gives the ids that the model was "
                                "trained on (tokenizer=..., --tokenizer).")
    found = _from_file(loader, header, **options)
    if "Tokenizer" in loader.__name__:
        _split_as_stated(header, found)
    return found


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
    scaling = _stretched(header)
    taken = any(each.get("rope_type", "default") != "default" for each in rope_parameters(model.config))
    if scaling and not taken:
        raise GGUFError(f"{name!r} stretches its positions ({scaling}), which transformers leaves out when it opens a "
                        "GGUF file: its numbers would be wrong. Take the model's own weights (safetensors).")
    if rotary is not None:
        _divide_frequencies(header, rotary, model)


@lru_cache(maxsize=4)
def _configuration(header: Header):
    """Kept, since transformers takes seconds to read a file with a large vocabulary."""
    from transformers import AutoConfig

    return _from_file(AutoConfig, header)


def _from_file(loader, header: Header, **options):
    """`loader.from_pretrained` with nothing beside the file: from a tokenizer.json, an adapter or a chat template there
    transformers would take what the file has itself."""
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder, "model.gguf")
        link.symlink_to(header.path.absolute())
        try:
            found = loader.from_pretrained(folder, gguf_file=link.name, **options)
        except (ValueError, KeyError, IndexError, NotImplementedError) as error:
            said = " ".join(str(error).split()).replace(str(link), "the file")[:300]
            raise GGUFError(f"transformers cannot open {str(header.path)!r} ({header.architecture}, "
                            f"{header.quantization['quantization']}): {said}") from error
    named = found[0].config if isinstance(found, tuple) else found
    named.name_or_path = str(header.path)
    return found


@torch.no_grad()
def quantize(model: nn.Module, kind: str) -> dict:
    """Put a model's matrices into blocks of a type ("Q4_0") and out again, in place; vectors stay as they are.

    Embeddings count as matrices. So a model of any architecture has the weights that its GGUF file would have.

    Returns
    -------
    dict: bits_per_weight, of the whole model; weight_error, the root mean square of what changed in the matrices,
    against that of the matrices themselves

    Raises
    ------
    ValueError
        A matrix whose rows are no whole blocks.
    """
    import gguf

    number = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[number]
    bits, moved, total = 0.0, 0.0, 0.0
    for name, weight in model.named_parameters():
        if weight.ndim < 2:
            bits += 32 * weight.numel()
            continue
        if weight.shape[-1] % block:
            raise ValueError(f"rows of {name} have {weight.shape[-1]} weights, no multiple of the {block} that a block "
                             f"of {kind} holds.")
        before = weight.float().numpy()
        after = gguf.dequantize(gguf.quantize(before, number), number)
        moved, total = moved + float(np.sum((after - before) ** 2.0)), total + float(np.sum(before**2.0))
        bits += 8 * size / block * weight.numel()
        weight.copy_(torch.from_numpy(after))
    return {"bits_per_weight": bits / sum(weight.numel() for weight in model.parameters()),
            "weight_error": (moved / total) ** 0.5}


def _split_as_stated(header: Header, tokenizer) -> None:
    """Have a byte-level tokenizer split texts as its file says, where transformers does not."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import __version__
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    rule = header.facts.get("tokenizer.ggml.pre")
    if header.facts.get("tokenizer.ggml.model") != "gpt2" or rule in {*AS_GPT2, *GGUF_PRE_TOKENIZER_SPLITS}:
        return
    if rule not in DIGITS_FIRST:
        raise GGUFError(f"the tokenizer in {str(header.path)!r} splits texts by the rule {rule!r}, which transformers "
                        f"{__version__} does not know: its token ids would not be those that the model was trained on. "
                        "Name the model's own tokenizer (tokenizer=..., --tokenizer).")
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True),
                                                          ByteLevel(add_prefix_space=False)])


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


def _stretched(header: Header) -> str:
    """How a file stretches the positions, "" if it doesn't; one that states a factor alone does so linearly."""
    kind, *factors = (header.facts.get(f"{header.architecture}.rope.{name}")
                      for name in ("scaling.type", "scaling.factor", "scale_linear"))
    if kind is None:
        return "linear" if set(factors) - {None, 0, 1} else ""
    return "" if kind == "none" else str(kind)


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

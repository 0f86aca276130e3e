"""The files that opening a model reads, what identifies them, and whether the model took all that is in them.

A folder and a commit on the hub are looked at alike: as names, and a way to read the small ones of them. So what is
hashed, what is downloaded and what transformers opens are the same files, whatever these are called.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from reptrace.fingerprints import files_fingerprint

if TYPE_CHECKING:
    from torch import nn

CONFIG, ADAPTER, DISTRIBUTED = "config.json", "adapter_config.json", ".metadata"
# As transformers looks for them: the whole in one file, else the index of its parts; safetensors first.
LAYOUTS = (("model.safetensors", "model.safetensors.index.json"),
           ("pytorch_model.bin", "pytorch_model.bin.index.json"))
# Dtypes of numbers that stand for themselves. All others in place of a weight want a scale, or mean an index.
PLAIN = {"float64", "float32", "bfloat16", "float16"}
# Files that opening a model or a tokenizer reads, beside its weights.
SMALL = re.compile(r"[^/]*\.(json|txt|model|jinja|py|tiktoken|spm)")
# Tensors of a file that a model may leave without harm. Buffers that older versions of transformers stored and newer
# ones compute: rotary frequencies and tables, causal masks and their fill value, positions.
BUFFERS = re.compile(r"(^|\.)(rotary_emb\.(inv_freq|cos_cached|sin_cached)|position_ids|attn\.(bias|masked_bias)"
                     r"|attention\.(bias|masked_bias)|attn\.attention\.(bias|masked_bias))$")
# Heads, which read the last hidden state and change none; those of language models are left by decoders alone.
HEADS = re.compile(r"^(score|classifier|v_head|value_head|reward_head)\.")
LM_HEADS = re.compile(r"(^|\.)(lm_head|embed_out|output_layer|lm_loss)\.|^head\.")
# Parts of multimodal models that text does not pass through.
OTHER_SENSES = re.compile(r"(^|\.)(vision_(tower|model|encoder)|visual|multi_modal_projector|mm_projector"
                          r"|audio_(tower|model|encoder)|embed_(vision|audio))\.")
# Further layers that predict more than one token ahead, which transformers' classes leave out.
AHEAD = re.compile(r"(^|\.)mtp(_\w+)?\.")


class WeightsError(ValueError):
    """What lies there cannot be opened as one plain model, or not all of it would be; the message says why."""


def weight_files(names: Collection[str], read: Callable[[str], Mapping]) -> list[str]:
    """Names of the weight files that transformers opens: one, or the parts that an index names.

    Parameters
    ----------
    names : names of all files of a folder, or of a commit on the hub
    read : function that gives the content of one of them, which is JSON

    Raises
    ------
    FileNotFoundError
        There are no weights, or a part of them is missing.
    WeightsError
        An adapter, a checkpoint in torch's distributed format, or an index that cannot be read.
    """
    names = set(names)
    if ADAPTER in names:
        raise WeightsError("it holds an adapter (adapter_config.json), whose effect would be left out: merge it into "
                           "its base model (peft: merge_and_unload) and save that.")
    if DISTRIBUTED in names:
        raise WeightsError("it is a checkpoint in torch's distributed format: save it with save_pretrained.")
    chosen = next((each for layout in LAYOUTS for each in layout if each in names), None)
    parts = _parts(chosen, read)
    spare = {name for name in names if name.endswith(".safetensors")} - set(parts)
    if spare and CONFIG in names and (own := read(CONFIG).get("transformers_weights")):
        parts = _parts(own, read)  # a file that the configuration names goes first
    if not parts:
        raise FileNotFoundError("it has no weights under a name that transformers looks for (model.safetensors, "
                                "pytorch_model.bin, or the index of their parts); it has "
                                f"{', '.join(sorted(names)[:6]) or 'no files'}.")
    if missing := [part for part in parts if part not in names]:
        raise FileNotFoundError(f"of its {len(parts)} weight files, {len(missing)} are missing: "
                                f"{', '.join(missing[:3])}.")
    return parts


def _parts(name: str | None, read: Callable[[str], Mapping]) -> list[str]:
    """The weight files that a file name stands for: those of an index, itself, or none."""
    if name is None or not name.endswith(".index.json"):
        return [name] if name else []
    found = read(name).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(part, str) for part in found.values()):
        raise WeightsError(f"{name} has no weight_map from tensors to files: damaged?")
    return sorted(set(found.values()))


def weight_paths(folder: str | Path) -> list[Path]:
    """`weight_files` of a folder."""
    folder = Path(folder)
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    parts = weight_files(names, lambda name: read_json(folder / name))
    return [folder / part for part in parts]


def files_of(folder: str | Path, code: bool = False) -> list[Path]:
    """The files of a folder that decide what a model computes: configuration, weights, and `code` where it may run."""
    own = sorted(Path(folder).rglob("*.py")) if code else []
    return [path for path in (Path(folder) / CONFIG, *weight_paths(folder), *own) if path.is_file()]


def fingerprint(folder: str | Path, code: bool = False) -> str:
    """16 hex digits of a SHA-256 over names and contents of `files_of`.

    Raises what `weight_files` raises: a folder whose weights are not known has no fingerprint.
    """
    return files_fingerprint((str(path.relative_to(folder)), path) for path in files_of(folder, code))


def stamp(folder: str | Path, code: bool = False) -> tuple:
    """Names, sizes and times of `files_of`: cheap, and another one after any of them was written anew."""
    found = [(path, path.stat()) for path in files_of(folder, code)]
    return tuple((path.name, stat.st_size, stat.st_mtime_ns) for path, stat in found)


def check_taken(files: Iterable[Path], unexpected: Collection[str], model: nn.Module, head: bool,
                decoded: bool = False) -> None:
    """WeightsError where a file holds tensors that a model did not take, or took without their scales.

    Parameters
    ----------
    files : the weight files it was opened from
    unexpected : names of tensors in them that it has no place for, as transformers reports them
    model : the model
    head : whether it has its LM head; without, tensors of heads are left out by right
    decoded : whether transformers acted on the quantization that the configuration states
    """
    left = sorted(name for name in unexpected if not _harmless(name, head))
    if left:
        raise WeightsError(f"{len(left)} tensors in its files are not taken by {type(model).__name__} "
                           f"({', '.join(left[:3])}{', ...' if len(left) > 3 else ''}): without them its numbers would "
                           "be wrong. Scales of quantized weights? Dequantize them first. An adapter's? Merge it. More "
                           "blocks than config.json says? Mend it.")
    if decoded:
        return
    whole = tuple(name for name, tensor in model.state_dict().items() if not tensor.is_floating_point())
    for file in files:
        coded = {name: dtype for name, dtype in _dtypes(file).items()
                 if dtype not in PLAIN and not name.endswith(whole) and not _harmless(name, head)}
        if coded:
            name, dtype = next(iter(coded.items()))
            raise WeightsError(f"{len(coded)} weights in {file.name} are stored as {dtype} ({name}, ...), and nothing "
                               "says how transformers is to turn them back into what they stand for: dequantize them "
                               "first.")


def _harmless(name: str, head: bool) -> bool:
    harmless = (BUFFERS, AHEAD, HEADS, OTHER_SENSES) if head else (BUFFERS, AHEAD, HEADS, OTHER_SENSES, LM_HEADS)
    return any(pattern.search(name) for pattern in harmless)


def _dtypes(file: Path) -> dict[str, str]:
    """Stored dtype of each tensor in a file, by name; the tensors themselves are not read."""
    import torch
    from transformers.modeling_utils import load_state_dict

    tensors = load_state_dict(str(file), map_location="meta", weights_only=True)
    return {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()
            if isinstance(tensor, torch.Tensor)}


def read_json(path: Path) -> dict:
    """A JSON object from a file; WeightsError where there is none in it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{path.name} cannot be read ({error}): cut short, or not JSON.") from error
    if not isinstance(found, dict):
        raise WeightsError(f"{path.name} holds no JSON object: damaged?")
    return found

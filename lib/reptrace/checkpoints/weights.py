"""The files that opening a model reads, what identifies them, and whether the model took all that is in them.

A folder and a commit on the hub are looked at alike: as names, and a way to read the small ones of them. So the
weights that are hashed, downloaded and opened are the same files, whatever these are called.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from reptrace.support.fingerprints import files_fingerprint

if TYPE_CHECKING:
    from torch import nn

CONFIG, ADAPTER, DISTRIBUTED = "config.json", "adapter_config.json", ".metadata"
# As transformers looks for them: the whole in one file, else the index of its parts; safetensors first.
LAYOUTS = (("model.safetensors", "model.safetensors.index.json"),
           ("pytorch_model.bin", "pytorch_model.bin.index.json"))
# Dtypes of numbers that stand for themselves. All others are codes, which want a scale, or the model's own indices.
PLAIN = {"float64", "float32", "bfloat16", "float16"}
# The same as safetensors calls them.
STORED = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16", "I64": "int64", "I32": "int32",
          "I8": "int8", "U8": "uint8", "BOOL": "bool", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
SCALES = re.compile(r"scale|absmax|scb|quant_(state|map)|qzeros", re.IGNORECASE)
# Files that opening a model or a tokenizer reads, beside its weights.
SMALL = re.compile(r"[^/]*\.(json|txt|model|jinja|py|tiktoken|spm)")
LFS_POINTER = b"version https://git-lfs"
# Tensors of a file that a model may leave without harm. Buffers that older versions of transformers stored and newer
# ones compute: rotary frequencies and tables, causal masks and their fill value, positions, slopes.
BUFFERS = re.compile(r"(^|\.)(\w*(rotary|rope)\w*\.(\w*inv_freq|cos_cached|sin_cached)|position_ids"
                     r"|(attn|attention|attn\.attention)\.(bias|masked_bias|causal_mask)|causal_mask|alibi"
                     r"|embed_positions\.(weights|_float_tensor)|(decoder|model)\.version)$")
# Heads, which read the last hidden state and change none; those of language models are left by decoders alone.
HEADS = re.compile(r"^(score|classifier|qa_outputs|multiple_choice_head|v_head|R_head|value_head|reward_head"
                   r"|regression_head)\.")
LM_HEADS = re.compile(r"(^|\.)(lm_head|embed_out|output_layer|lm_loss|pred_layer)\.|^head\.|^decoder\.(weight|bias)$")
# Further layers that predict more than one token ahead, which transformers' classes leave out.
AHEAD = re.compile(r"(^|\.)mtp(_\w+)?\.")
# Parts of multimodal models that text does not pass through.
OTHER_SENSES = re.compile(r"(^|\.)(vision_(tower|model|encoder)|visual|multi_modal_projector|mm_projector"
                          r"|audio_(tower|model|encoder)|embed_(vision|audio))\.")


class WeightsError(ValueError):
    """What lies there cannot be opened as one plain model, or not all of it would be; the message says why."""


def weight_files(names: Collection[str], read: Callable[[str], Mapping],
                 has: Callable[[str], bool] | None = None) -> list[str]:
    """Names of the weight files that transformers opens: one, or the parts that an index names.

    Parameters
    ----------
    names : names of all files of a folder, or of a commit on the hub
    read : function that gives the content of one of them, which is JSON
    has : function that says whether there is a file of a name, default: among `names`

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
    parts = _parts(next((each for layout in LAYOUTS for each in layout if each in names), None), read)
    # A file that the configuration names goes first; it is asked only where there are other weights than these.
    others = any(name.endswith(".safetensors") and name not in parts for name in names)
    if others and CONFIG in names and (own := read(CONFIG).get("transformers_weights")):
        parts = _parts(own, read)
    if not parts:
        raise FileNotFoundError("it has no weights under a name that transformers looks for (model.safetensors, "
                                "pytorch_model.bin, or the index of their parts); it has "
                                f"{', '.join(sorted(names)[:6]) or 'no files'}.")
    if missing := [part for part in parts if not (has or names.__contains__)(part)]:
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
    parts = sorted(set(found.values()))
    if any(".." in Path(part).parts or Path(part).is_absolute() for part in parts):
        raise WeightsError(f"{name} names files outside of its folder.")
    return parts


def weight_paths(folder: str | Path) -> list[Path]:
    """`weight_files` of a folder."""
    folder = Path(folder)
    names = [path.name for path in folder.iterdir() if path.is_file()]
    parts = weight_files(names, lambda name: read_json(folder / name), lambda name: (folder / name).is_file())
    for part in parts:
        with open(folder / part, "rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise WeightsError(f"{part} is Git LFS's pointer to the weights, not the weights: git lfs pull.")
    return [folder / part for part in parts]


def files_of(folder: str | Path, code: bool = False) -> list[Path]:
    """The files of a folder that decide what a model computes: configurations, weights, and `code` where it may run.

    A GGUF file in place of a folder is all of these.
    """
    folder = Path(folder)
    if folder.is_file():
        return [folder]
    own = sorted(folder.rglob("*.py")) if code else []
    return [*sorted(folder.glob("config*.json")), *weight_paths(folder), *own]


def fingerprint(folder: str | Path, code: bool = False) -> str:
    """16 hex digits of a SHA-256 over names and contents of `files_of`.

    Raises what `weight_files` raises: a folder whose weights are not known has no fingerprint.
    """
    return files_fingerprint((_inside(path, folder), path) for path in files_of(folder, code))


def stamp(folder: str | Path, code: bool = False) -> tuple:
    """What the system says of `files_of`: cheap, and another one after any of them was written or replaced."""
    found = [(_inside(path, folder), path.stat()) for path in files_of(folder, code)]
    return tuple((name, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in found)


def _inside(path: Path, folder: str | Path) -> str:
    """A file's name from its folder on; of a GGUF file, its name."""
    return path.name if path == Path(folder) else str(path.relative_to(folder))


def is_here(name: str) -> bool:
    """Whether a model's name is that of a folder or GGUF file on this machine, not of a repository."""
    return os.path.exists(name)


def check_revision(name: str, revision: str | None) -> None:
    """ValueError where a revision is asked for of what has none."""
    if revision is not None and is_here(name):
        kind = "plain folder" if os.path.isdir(name) else "file"
        raise ValueError(f"{name} is a {kind} and has no revisions: leave revision={revision!r} out.")


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
    # integers of the model's own: indices, masks (a weight that is one is a code that was taken for the number itself)
    whole = tuple(name for name, tensor in model.named_buffers() if not tensor.is_floating_point())
    dtypes = {name: dtype for file in files for name, dtype in _dtypes(file).items()}
    scaled = _scaled(dtypes) if decoded else set()
    coded = {name: dtype for name, dtype in dtypes.items()
             if dtype not in PLAIN and not name.endswith(whole) and not _harmless(name, head)
             and not SCALES.search(name.rsplit(".", 1)[-1]) and name.rsplit(".", 1)[0] not in scaled}
    if coded:
        name, dtype = next(iter(coded.items()))
        raise WeightsError(f"{len(coded)} weights in its files are stored as {dtype} ({name}, ...), and nothing says "
                           "how transformers is to turn them back into what they stand for: dequantize them first.")


def _scaled(names: Iterable[str]) -> set[str]:
    """The modules that have a scale among their tensors, or among those of modules within them."""
    found = set()
    for name in filter(SCALES.search, names):
        parts = name.split(".")
        found |= {module for module in map(".".join, (parts[:k] for k in range(1, len(parts))))
                  if SCALES.search(name[len(module) :])}
    return found


def _harmless(name: str, head: bool) -> bool:
    harmless = (BUFFERS, AHEAD, HEADS, OTHER_SENSES) if head else (BUFFERS, AHEAD, HEADS, OTHER_SENSES, LM_HEADS)
    return any(pattern.search(name) for pattern in harmless)


def _dtypes(file: Path) -> dict[str, str]:
    """Stored dtype of each tensor in a file, by name; the tensors themselves are not read."""
    import torch
    from safetensors import safe_open

    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as stored:
            kinds = {name: stored.get_slice(name).get_dtype() for name in stored.keys()}  # noqa: SIM118  no mapping
        return {name: STORED.get(kind, kind) for name, kind in kinds.items()}
    tensors = torch.load(file, map_location="meta", weights_only=True)
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

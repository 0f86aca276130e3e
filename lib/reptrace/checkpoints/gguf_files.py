"""GGUF files: one file holds a model with its configuration and tokenizer, often with its weights quantized in blocks.

Read here is the header: what is said of the model, and which tensors lie where in which type. So a file that is none,
is cut short or is one part of several is known before transformers opens it. The format is llama.cpp's; names and sizes
of its types are those of the package gguf.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path

import numpy as np

SUFFIX, MAGIC, VERSIONS = ".gguf", b"GGUF", (2, 3)
# Kinds of values in the header, by their numbers: single ones as struct reads them; text; a list.
SINGLE = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, LIST = 8, 9
ALIGNMENT = 32  # bytes, where a file states no other


class GGUFError(ValueError):
    """A GGUF file that cannot be opened as one model; the message says why and what to try."""


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file: its shape as torch has it, the name of its type, and where its bytes are in the file."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    bytes: int

    @property
    def weights(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, eq=False)
class Header:
    """What a file says of its model (`facts`, by llama.cpp's names; of a list, its length), and its tensors."""

    path: Path
    facts: dict
    tensors: tuple[Tensor, ...]

    @property
    def architecture(self) -> str:
        return str(self.facts["general.architecture"])

    @property
    def quantization(self) -> dict:
        """Columns of a record: `quantization`, the types by the share of weights in them, and `bits_per_weight`."""
        total, weights = sum(tensor.weights for tensor in self.tensors), Counter()
        for tensor in self.tensors:
            weights[tensor.type] += tensor.weights
        types = ", ".join(f"{name} {_percent(count / total)}" for name, count in weights.most_common())
        return {"quantization": f"GGUF: {types}",
                "bits_per_weight": 8 * sum(tensor.bytes for tensor in self.tensors) / total}


def is_gguf(name: str | Path) -> bool:
    """Whether a name is that of a file which is meant to be a GGUF: by its suffix, or by how it begins."""
    path = Path(name)
    return path.is_file() and (path.suffix.lower() == SUFFIX or _begins(path) == MAGIC)


def in_folder(folder: str | Path) -> Path | None:
    """The one GGUF file of a folder that holds no other model; None where there is another, or no such file.

    Raises
    ------
    GGUFError
        There are several.
    """
    names = {path.name: path for path in sorted(Path(folder).iterdir()) if path.is_file()}
    found = [path for path in names.values() if path.suffix.lower() == SUFFIX]
    if not found or "config.json" in names:
        return None
    if len(found) > 1:
        raise GGUFError(f"{str(folder)!r} holds {len(found)} GGUF files ({', '.join(path.name for path in found[:4])}"
                        f"{', ...' if len(found) > 4 else ''}): name the one that is meant, {str(found[0])!r} for "
                        "instance.")
    return found[0]


def header(path: str | Path) -> Header:
    """The header of a file, read once as long as the file stays as it is.

    Raises
    ------
    GGUFError
        It is no GGUF, of a version that is not known, cut short or damaged, or one part of several.
    ImportError
        The package gguf is not installed.
    """
    stat = Path(path).stat()
    return _header(str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _header(name: str, inode: int, size: int, changed: int) -> Header:
    path = Path(name)
    if _begins(path) != MAGIC:
        raise GGUFError(f"{name!r} is no GGUF file: it begins with {_begins(path)!r}, a GGUF with {MAGIC!r}. Is it "
                        "whole, and not a page that says why there is no file, or Git LFS's pointer?")
    try:
        facts, entries, start = _Reading(path).all()
    except (struct.error, IndexError, UnicodeDecodeError, ArithmeticError, TypeError, MemoryError) as error:
        raise GGUFError(f"the header of {name!r} cannot be read: the file, of {size:,} bytes, is cut short or damaged "
                        f"({error}). Fetch it again.") from error
    if "general.architecture" not in facts:
        raise GGUFError(f"{name!r} does not say of which architecture its model is (general.architecture): not a "
                        "language model's file?")
    if facts.get("split.count", 1) > 1:
        raise GGUFError(f"{name!r} is part {facts.get('split.no', 0) + 1} of {facts['split.count']}: merge them (llama-"
                        "gguf-split --merge) and name the file that they become.")
    found = Header(path, facts, tuple(_tensors(name, entries, start)))
    if not found.tensors:
        raise GGUFError(f"{name!r} holds no tensors: a vocabulary alone?")
    if (end := max(tensor.offset + tensor.bytes for tensor in found.tensors)) > size:
        raise GGUFError(f"{name!r} is cut short: by its header the tensors end at byte {end:,}, and it has {size:,}. "
                        "Fetch it again.")
    return found


def missing_package(error: ImportError) -> ImportError:
    """The error where the package is not installed."""
    return ImportError(f"GGUF files are read by the package gguf, which is not installed ({error}): pip install gguf.")


def _begins(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(len(MAGIC))


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _tensors(name: str, entries: Iterable[tuple], start: int) -> Iterable[Tensor]:
    try:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    except ImportError as error:
        raise missing_package(error) from error

    for called, shape, kind, offset in entries:
        if kind not in {each.value for each in GGMLQuantizationType}:
            raise GGUFError(f"{name!r} stores {called} in a type that the package gguf does not know (number {kind}): "
                            "damaged, or newer than the package.")
        kind = GGMLQuantizationType(kind)
        block, size = GGML_QUANT_SIZES[kind]  # weights and bytes
        yield Tensor(called, shape, kind.name, start + offset, prod(shape) // block * size)


class _Reading:
    """The header of a file from its first byte on: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md."""

    def __init__(self, path: Path):
        self.path, self.data, self.at = path, np.memmap(path, np.uint8, "r"), len(MAGIC)

    def all(self) -> tuple[dict, list[tuple], int]:
        """Facts, (name, shape, number of the type, offset) of each tensor, and where their bytes begin."""
        version = self.single("I")
        if version not in VERSIONS:
            raise GGUFError(f"{str(self.path)!r} is a GGUF of version {version}; read are "
                            f"{' and '.join(map(str, VERSIONS))}: convert it anew (llama.cpp).")
        tensors, facts = self.single("Q"), self.single("Q")
        found = {self.text(): self.value(self.single("I")) for _ in range(facts)}
        entries = [self.entry() for _ in range(tensors)]
        alignment = found.get("general.alignment", ALIGNMENT)
        return found, entries, -(-self.at // alignment) * alignment

    def entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dimensions = self.text(), self.single("I")
        shape = tuple(self.single("Q") for _ in range(dimensions))
        return name, shape[::-1], self.single("I"), self.single("Q")  # llama.cpp names the innermost dimension first

    def value(self, kind: int):
        if kind in SINGLE:
            return self.single(SINGLE[kind])
        if kind == TEXT:
            return self.text()
        if kind != LIST:
            raise IndexError(f"a value of the unknown kind {kind}")
        inner, count = self.single("I"), self.single("Q")
        if inner in SINGLE:
            self.skip(count * struct.calcsize(f"<{SINGLE[inner]}"))
        else:  # vocabularies and merges
            for _ in range(count):
                self.value(inner)
        return count

    def single(self, form: str):
        return struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))[0]

    def text(self) -> str:
        return self.take(self.single("Q")).decode()

    def take(self, count: int) -> bytes:
        self.skip(count)
        return self.data[self.at - count : self.at].tobytes()

    def skip(self, count: int) -> None:
        if self.at + count > len(self.data):
            raise IndexError(f"it ends at byte {len(self.data):,}, {self.at + count - len(self.data):,} too early")
        self.at += count

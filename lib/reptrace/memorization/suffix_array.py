"""The suffix array of a tokenized text: kept in a folder, whole or not at all, and checked when it is opened.

Three arrays of numpy's own format, opened memory-mapped: `text` (the token ids, after some separators), `positions`
(the suffix array proper: where in the text each suffix begins, in lexicographic order of token ids) and `links` (what
backward search reads: for each row, first token * N + row of the suffix that begins one token later; sorted). The facts
that identify them, with a checksum of each file and of the facts themselves, stand in index.json.

Suffixes are sorted by libdivsufsort through pydivsufsort, which comes as a wheel and takes 16-bit symbols (as pairs of
bytes, the high byte first, of whose suffixes it keeps those that begin at a whole token); PySAIS must be compiled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from reptrace.texts.token_ids import id_type

ARRAYS = ("text", "positions", "links")
DESCRIPTION = "index.json"
FORMAT = 1  # raised by hand when the arrays change their meaning; an older index is then refused


class DamagedIndexError(RuntimeError):
    """An index on disk is not what was written; the message names the file."""


@dataclass(frozen=True)
class SuffixArray:
    """`text` (padding + N,), `positions` and `links` (N,) of N tokens, and the facts that identify them."""

    text: np.ndarray
    positions: np.ndarray
    links: np.ndarray
    facts: Mapping


def built(tokens: np.ndarray, folder: Path, facts: Mapping, padding: int, progress: bool = True) -> SuffixArray:
    """The suffix array in a folder; made first unless a whole one with the same facts is there.

    Parameters
    ----------
    tokens : (tokens,) integer array
        Ids below facts["vocabulary"]; a last facts["separator"] is added where it is missing.
    folder : Path
        An index that is there and is damaged, or has other tokens or facts, is replaced.
    padding : int
        Separators before the text.

    Nothing is resumed, for it takes seconds. Another process that makes the same one is waited for.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        with suppress(FileNotFoundError, DamagedIndexError):
            there = opened(folder)
            text = there.text[padding : padding + len(tokens)]  # the facts name a text; these are its tokens
            same = len(there.text) == padding + _size(tokens, facts) and np.array_equal(text, tokens)
            if same and all(there.facts[name] == value for name, value in facts.items()):
                return there
        _refuse_other_files(folder)
        begun = folder.parent / f".{folder.name}.partial"
        shutil.rmtree(begun, ignore_errors=True)  # a killed process's
        begun.mkdir()
        try:
            with tqdm(total=4, desc="indexing", unit="step", leave=False, disable=not progress) as bar:
                _write(begun, _arrays(tokens, facts, padding, bar), facts)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(begun, folder)
        finally:
            shutil.rmtree(begun, ignore_errors=True)
        return opened(folder)


def opened(folder: Path) -> SuffixArray:
    """The suffix array in a folder, memory-mapped, after a check of every byte (0.1 s for 10 million tokens).

    Raises
    ------
    FileNotFoundError
        There is none.
    DamagedIndexError
        A file is missing, cut short or changed.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        raise FileNotFoundError(f"there is no index in {str(folder)!r}: build one (build_infgram of "
                                "reptrace.memorization.infgram).")
    description = folder / DESCRIPTION
    try:
        facts = json.loads(description.read_text())
        checksum = facts.pop("checksum")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise _damaged(description, f"cannot be read ({type(error).__name__})") from error
    if checksum != _checksum(facts):
        raise _damaged(description, "was changed since it was written")
    if facts["format"] != FORMAT:
        raise _damaged(description, f"is of format {facts['format']}, this version reads {FORMAT}")
    for name, expected in facts["files"].items():
        _check(folder / name, **expected)
    return SuffixArray(*(np.load(folder / f"{name}.npy", mmap_mode="r").view(np.ndarray) for name in ARRAYS), facts)


def _size(tokens: np.ndarray, facts: Mapping) -> int:
    """Entries of the text with its last separator, which may be missing from the tokens."""
    return len(tokens) + int(tokens[-1] != facts["separator"])


def _arrays(tokens: np.ndarray, facts: Mapping, padding: int, bar: tqdm) -> dict[str, np.ndarray]:
    from pydivsufsort import divsufsort

    size = _size(tokens, facts)
    if facts["vocabulary"] * size >= 2**63:
        raise ValueError(f"{size} tokens of a vocabulary of {facts['vocabulary']} are more than 64 bits can index.")
    text = np.full(padding + size, facts["separator"], id_type(facts["vocabulary"]))
    text[padding : padding + len(tokens)] = tokens
    body = text[padding:]
    bar.update()
    positions = divsufsort(body)
    bar.update()
    rows = np.empty_like(positions)
    rows[positions] = np.arange(size, dtype=rows.dtype)
    # Nothing follows the text's last separator, and no search goes on after one. Row 0 keeps `links` sorted, since that
    # separator alone is the least suffix of those that begin with a separator.
    following = np.append(rows[1:], rows.dtype.type(0))
    links = body[positions].astype(np.int64)
    links *= size
    links += following[positions]
    bar.update()
    return {"text": text, "positions": positions, "links": links}


def _write(folder: Path, arrays: Mapping[str, np.ndarray], facts: Mapping) -> None:
    files = {}
    for name, array in arrays.items():
        path = folder / f"{name}.npy"
        with open(path, "wb") as file:
            np.save(file, array)
            file.flush()
            os.fsync(file.fileno())
        files[path.name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    described = {**facts, "format": FORMAT, "tokens": len(arrays["links"]), "files": files}
    with open(folder / DESCRIPTION, "w") as file:
        json.dump({**described, "checksum": _checksum(described)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _refuse_other_files(folder: Path) -> None:
    """An index replaces a whole folder: never one that holds anything else."""
    ours = {DESCRIPTION, *(f"{name}.npy" for name in ARRAYS)}
    others = sorted({path.name for path in folder.iterdir()} - ours) if folder.is_dir() else []
    if others or (folder.exists() and not folder.is_dir()):
        raise FileExistsError(f"{str(folder)!r} is to become an index, but it is a file or holds other files "
                              f"({', '.join(others[:3])}): choose a folder of its own.")


def _check(path: Path, bytes: int, sha256: str) -> None:
    if not path.is_file():
        raise _damaged(path, "is missing")
    if path.stat().st_size != bytes:
        raise _damaged(path, f"has {path.stat().st_size} bytes instead of {bytes}: it was cut short or changed")
    if _sha256(path) != sha256:
        raise _damaged(path, "was changed since it was written (its SHA-256 differs)")


def _damaged(path: Path, how: str) -> DamagedIndexError:
    return DamagedIndexError(f"the index is damaged: {str(path)!r} {how}. Build it anew "
                             "(build_infgram of reptrace.memorization.infgram): that takes seconds for millions of "
                             "tokens.")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checksum(facts: Mapping) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

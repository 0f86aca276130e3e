"""Hashes that say which content something is: of pieces in their order, of a document, of a folder's files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

BLOCK = 1 << 22  # bytes read at a time


def fingerprint(pieces: Iterable[bytes]) -> str:
    """16 hex digits of a SHA-256 over pieces with their lengths, so that boundaries count."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(len(piece).to_bytes(8, "little"))
        digest.update(piece)
    return digest.hexdigest()[:16]


def document_hash(document: str) -> str:
    """SHA-256 of a document, 64 hex digits."""
    return hashlib.sha256(document.encode("utf-8", "surrogatepass")).hexdigest()


def order_key(purpose: str, document: str) -> bytes:
    """32 bytes that give a document its place, by its content alone and another one for each purpose."""
    return hashlib.sha256(f"{purpose}\0{document}".encode("utf-8", "surrogatepass")).digest()


def files_in(folder: Path) -> list[Path]:
    """All files of a folder and those below, sorted by path; hidden ones and Python's caches are left out."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not is_hidden(path, folder))


def is_hidden(path: Path, folder: Path) -> bool:
    """Whether what lies below a folder is hidden, or one of Python's caches."""
    return any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(folder).parts)


def files_fingerprint(named: Iterable[tuple[str, Path]]) -> str:
    """16 hex digits of a SHA-256 over the names and the contents of files, in the order given."""
    return fingerprint(piece for name, path in named for piece in (name.encode(errors="surrogateescape"),
                                                                   _content_hash(path)))


def _content_hash(path: Path) -> bytes:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.digest()

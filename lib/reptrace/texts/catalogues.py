"""Message catalogues of installed packages -> documents in languages other than English.

A catalogue is a binary file of GNU gettext (.mo), in LANGUAGE/LC_MESSAGES. The standard library's reader looks up one
message at a time; here all are wanted, in the order of the file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

MAGIC = 0x950412DE
CONTEXT = "\x04"  # between a message's context and the message


def documents(path: Path, min_characters: int) -> list[str]:
    """Translations of a catalogue, a line each, cut into documents of so many characters or a little more.

    Messages are short, a line on average, so a document holds several that follow each other. What is not translated
    (it equals the original) is left out, and so is what is left at the end and too short; a catalogue of English has
    no documents.
    """
    if language(path).split("_")[0] == "en":
        return []
    found, lines = [], []
    for original, translations in messages(path.read_bytes()):
        lines += [each.strip() for each in translations if each.strip() and each != original.rpartition(CONTEXT)[2]]
        if sum(map(len, lines)) >= min_characters:
            found.append("\n".join(lines))
            lines = []
    return found


def language(path: Path) -> str:
    """The language of a catalogue, as its folder is named: "fr", "pt_BR"."""
    return path.parts[-3]


def messages(content: bytes) -> Iterator[tuple[str, Sequence[str]]]:
    """Each original (singular, after its context, if any) with its translations, of which a plural has several.

    The header, the translation of nothing, is left out; ValueError for another file than a catalogue in UTF-8, or for
    one that is cut short.
    """
    order = next((order for order in "<>" if content[:4] == struct.pack(f"{order}I", MAGIC)), None)
    if order is None:
        raise ValueError("not a message catalogue (.mo): its first bytes are others")

    def numbers(count: int, start: int) -> tuple[int, ...]:
        try:
            return struct.unpack_from(f"{order}{count}I", content, start)
        except struct.error as error:
            raise ValueError(f"a message catalogue (.mo) that is cut short: {error}") from error

    def text(table: int, number: int) -> str:
        length, start = numbers(2, table + 8 * number)
        if start + length > len(content):
            raise ValueError("a message catalogue (.mo) that is cut short: a text ends beyond it")
        return content[start : start + length].decode()

    count, originals, translations = numbers(3, 8)

    for number in range(count):
        original = text(originals, number).split("\0")[0]
        if original:
            yield original, text(translations, number).split("\0")

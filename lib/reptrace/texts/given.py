"""Texts as callers pass them, in whatever container; one text is never taken for a list of its letters."""

from __future__ import annotations

import io
import math
import os
from array import array
from collections.abc import Iterable, Mapping
from numbers import Integral
from pathlib import Path

from reptrace.support.arguments import shown

LONGEST_NAME = 255  # characters of a file's name


def as_texts(given, what: str = "texts") -> list[str]:
    """Texts as a list of strings: from a list, tuple, generator, column of pandas, pyarrow or numpy, or other iterable.

    Raises
    ------
    TypeError
        One string, a path, a mapping, a set, a table, an open file, items other than strings, or none but names of
        files: says which, and what to pass instead. `what` is the argument's name.
    ValueError
        A text that holds half of a surrogate pair, which no tokenizer takes: says where.
    """
    hint = _hint(given)
    if hint or not _iterable(given):
        raise TypeError(f"{what} must be a list of strings, a text each; got {shown(given)}.{hint}")
    given = given.to_pylist() if hasattr(given, "to_pylist") else given  # pyarrow's own items are no strings
    found = [str(text) if isinstance(text, str) else text for text in given]  # numpy's strings become plain ones
    for number, text in enumerate(found):
        if not isinstance(text, str):
            raise TypeError(f"{what} must be a list of strings, a text each; {what}[{number}] is {shown(text)}."
                            f"{_item_hint(text)}")
        check_characters(text, f"{what}[{number}]")
    if all(map(_looks_like_a_file, found)):
        file = next(filter(os.path.isfile, found), None)
        if file is not None:
            raise TypeError(f"{what} must be a list of strings, a text each; they all look like names of files, and "
                            f"{shown(file)} is one: pass what they hold, of each text_file(path).documents "
                            "(reptrace.texts.corpora).")
    return found


def check_characters(text: str, where: str) -> None:
    """ValueError where a text holds half of a surrogate pair: it stands for no character, so it cannot be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} holds half of a surrogate pair (U+{ord(text[error.start]):04X}) at character "
                         f"{error.start + 1}: no character, so no tokenizer takes it. Mend the text where it was made, "
                         'or pass text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").') from error


def _looks_like_a_file(text: str) -> bool:
    """Whether a text could be the name of a file of texts: one line, with a folder or a suffix that is read."""
    from reptrace.texts.text_files import kind_of

    if len(text) > LONGEST_NAME or len(text.splitlines()) != 1:
        return False
    try:
        return os.sep in text or bool(kind_of(Path(text)))
    except ValueError:
        return False


def _iterable(given) -> bool:
    try:
        iter(given)
    except TypeError:  # also of a class that says it could be, as numpy's arrays without an axis
        return False
    return isinstance(given, Iterable)


def _hint(given) -> str:
    """What to pass instead of something that is no list of texts; "" where nothing is known against it."""
    if isinstance(given, str):
        return " One text? Pass [text]. A path? Pass text_file(path).documents (reptrace.texts.corpora)."
    if isinstance(given, (os.PathLike, io.IOBase)):
        return " Pass text_file(path).documents (reptrace.texts.corpora)."
    if isinstance(given, (bytes, bytearray, memoryview)):
        return " Decode it, and pass a list."
    if isinstance(given, array):
        return " An array of letters or numbers: pass [given.tounicode()], or token ids to last_token_states."
    if isinstance(given, Mapping):
        return " Pass list(texts.values()), or the column that holds the texts."
    if isinstance(given, (set, frozenset)):
        return " A set has no order: pass sorted(texts)."
    if hasattr(given, "sequences"):  # a Probe; its `documents` are hashes
        return (" Token sequences are measured by last_token_states(model, probe.sequences) "
                "(reptrace.models.hidden_states).")
    if hasattr(given, "documents"):
        return " Pass corpus.documents."
    if hasattr(given, "columns"):
        return " Iterating a table gives its columns' names: pass one column, as table[\"text\"]."
    return ""


def _item_hint(item) -> str:
    first = item[0] if isinstance(item, (list, tuple)) and item else item
    if isinstance(item, (list, tuple)) and len(item) == 2 and any(isinstance(part, str) for part in item):
        return " Pairs? Pass their texts alone, as [text for _, text in pairs]."
    if isinstance(first, Integral) and not isinstance(first, bool):
        return " Token ids? Pass them to last_token_states(model, sequences) (reptrace.models.hidden_states)."
    if isinstance(item, os.PathLike):
        return " A path? Pass what it holds, text_file(path).documents (reptrace.texts.corpora)."
    if isinstance(item, Mapping):
        return " Pass the field that holds the text, as [row[\"text\"] for row in rows]."
    if item is None or type(item).__name__ == "NAType" or (isinstance(item, float) and math.isnan(item)):
        return " Leave rows without text out."
    return ""

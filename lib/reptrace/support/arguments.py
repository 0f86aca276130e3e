"""Checks of what callers pass, and what messages show of it.

Where a list of names is meant, one name counts as a list of one: Python takes a string for a sequence of its letters,
and would search for a repository's name letter by letter. Lists of texts are checked in `texts.given`.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from numbers import Integral
from pathlib import Path

_SHORT = reprlib.Repr()  # of what came, in a message: a value may be as large as a corpus
_SHORT.maxstring = _SHORT.maxother = 60


def names(given, what: str) -> tuple:
    """Strings or paths as a tuple; a single one counts as a list of one, None as none.

    Raises
    ------
    TypeError
        Anything else, True and mappings too; `what` says in the message what was meant.
    """
    if given is None:
        return ()
    if isinstance(given, (str, os.PathLike)):
        return (given,)
    found = None if isinstance(given, (bytes, Mapping)) or not isinstance(given, Iterable) else tuple(given)
    if found is None or not all(isinstance(each, (str, os.PathLike)) for each in found):
        raise TypeError(f"expected {what}, by name, one or a list of them; got {shown(given)}.")
    return found


def trusted(given) -> tuple[str, ...]:
    """Names of repositories and folders whose own code may run, each to be compared as a whole."""
    return tuple(map(os.fspath, names(given, "repositories to trust")))


def is_trusted(model: str, trust: Iterable[str]) -> bool:
    """Whether a repository, or a folder or one that holds it, is named among the trusted ones."""
    if model in trust:
        return True
    folders = {os.path.realpath(name) for name in map(os.path.expanduser, trust) if os.path.isdir(name)}
    path = Path(os.path.realpath(os.path.expanduser(model)))
    return path.is_dir() and any(str(each) in folders for each in (path, *path.parents))


def whole(value, name: str, least: int = 1) -> int:
    """A whole number, of Python or numpy; TypeError or ValueError, with the argument's name, where it is none."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number, got {shown(value)}.")
    if value < least:
        raise ValueError(f"{name} must be {least} or more, got {value}.")
    return int(value)


def shown(value) -> str:
    """A value for a message: its type, and itself in short."""
    return f"{type(value).__name__} {' '.join(_SHORT.repr(value).split())}"


def near_folders(path: str | Path) -> str:
    """Folders with names like the first part of a path that is not there, as a hint at the end of an error; or ""."""
    path = Path(path)
    missing = next((each for each in (path, *path.parents) if each.parent.is_dir()), path)
    folders = {child.name: child for child in missing.parent.glob("*") if child.is_dir()}
    names = get_close_matches(missing.name, folders, 3, cutoff=0.5)
    return f" Did you mean {', '.join(str(folders[name]) for name in names)}?" if names else ""


def near(name: str, known: Iterable[str], count: int = 3) -> str:
    """Names like this one, as a hint at the end of an error; "" if there are none."""
    names = get_close_matches(name, list(known), count, cutoff=0.5)
    return f" Did you mean {', '.join(names)}?" if names else ""

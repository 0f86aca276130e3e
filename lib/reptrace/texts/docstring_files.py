"""Python files -> their docstrings, parsed side by side.

The module is also the program that parses: a process of its own. A fork of this one might hang, as torch's threads are
not in it (Python 3.12 warns of that); multiprocessing's other ways would run the user's own script again.
"""

from __future__ import annotations

import ast
import pickle
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

CHUNK = 256  # files a process: some seconds, against a few hundredths for its start


def read(files: Sequence[Path], workers: int = 2) -> Iterator[list[str]]:
    """The docstrings of each file, in the order given; `workers` processes at a time."""
    chunks = [files[start : start + CHUNK] for start in range(0, len(files), CHUNK)]
    with ThreadPoolExecutor(workers) as pool:
        yield from chain.from_iterable(pool.map(_in_a_process, chunks))


def _in_a_process(files: Sequence[Path]) -> list[list[str]]:
    # Pickled: as JSON, the two halves of a surrogate pair would come back as one character.
    done = subprocess.run([sys.executable, "-P", __file__], input=pickle.dumps(files), stdout=subprocess.PIPE,
                          check=True)
    return pickle.loads(done.stdout)


def _docstrings_of(path: Path) -> list[str]:
    """Docstrings of a module, its classes and functions, in order; nothing from a file that does not parse."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's strings
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            return []
    found, pending = [], [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                found.append(text.strip())
        # Definitions stand in statements only, so expressions, most of the tree, are never visited.
        fields = ("body", "handlers", "orelse", "finalbody", "cases")
        pending += reversed([child for field in fields for child in getattr(node, field, [])])
    return found


if __name__ == "__main__":
    pickle.dump([_docstrings_of(path) for path in pickle.load(sys.stdin.buffer)], sys.stdout.buffer)

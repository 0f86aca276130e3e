"""The files that decide what a task in a folder asks: YAML, what that includes, its Python functions, its local data.

A task's own YAML may stay as it is while the base that it includes, or the function that makes its questions, changes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from glob import has_magic
from pathlib import Path

from reptrace.support.fingerprints import files_fingerprint, files_in

DATA_KEYS = ("dataset_path", "dataset_kwargs")  # of a task's YAML


def fingerprints(folders: Sequence[Path]) -> dict[str, str]:
    """Name of a task, group or tag -> 16 hex digits that say which files it is made from, for each that folders define.

    A name of the first folder alone stands for that folder; one of any other for all of them, since a group may name
    tasks of all. The files of a folder count whole, whatever they are for, with those that its YAML names elsewhere.
    """
    from lm_eval.tasks import TaskManager

    from reptrace.tasks.harness import quiet_messages

    with quiet_messages():
        defined = [set(TaskManager(include_path=[folder], include_defaults=False).task_index) for folder in folders]
    first, whole = fingerprint(folders[:1]), fingerprint(folders)
    others = set().union(*defined[1:])
    return {name: first if name not in others else whole for name in set().union(*defined)}


def fingerprint(folders: Sequence[Path]) -> str:
    """16 hex digits over the files of folders and those that their YAML names; where the folders lie does not count."""
    return files_fingerprint(pair for folder in folders for pair in _files(folder))


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    seen: set[Path] = set()
    for path in files_in(folder):
        yield path.relative_to(folder).as_posix(), path
        if path.suffix == ".yaml":
            yield from ((named.name, named) for named in _named(path, seen))


def _named(yaml: Path, seen: set[Path]) -> Iterator[Path]:
    """Existing files that a task's YAML names: included YAML, and what that names; Python; data."""
    from lm_eval.tasks._yaml_loader import load_yaml

    yaml = yaml.resolve()
    if yaml in seen:
        return
    seen.add(yaml)
    try:
        content = load_yaml(yaml, resolve_func=False, recursive=False)  # a function is its path, a dot, and its name
    except Exception:  # lm-eval passes over what it cannot read
        return
    includes = content.get("include", [])
    for include in includes if isinstance(includes, list) else [includes]:
        path = yaml.parent / str(include)
        if path.is_file():
            yield path
            yield from _named(path, seen)
    functions = (text for text in _strings(content) if text.startswith(f"{yaml.parent}/"))
    modules = (text.removeprefix(f"{yaml.parent}/").rpartition(".")[0] for text in functions)
    yield from (path for module in modules if (path := yaml.parent / f"{module.replace('.', '/')}.py").is_file())
    yield from _data(list(_strings([content.get(key) for key in DATA_KEYS])))


def _data(named: list[str]) -> Iterator[Path]:
    """Existing files of names, folders and patterns, each as it stands and below each folder that is named beside it.

    So `datasets` reads them: `data_files` lie below `data_dir`, and that below a folder as `dataset_path`.
    """
    named = [name.rpartition("::")[2].removeprefix("file://") for name in named]  # of zip://FILE::ARCHIVE, the archive
    local = [name for name in named if name and "://" not in name]
    bases = {Path()}
    for _ in range(2):
        bases |= {base / name for base in bases for name in local if os.path.isdir(base / name)}
    found = {path for base in bases for name in local for path in _matches(base, name)}
    for path in sorted(found):
        yield from files_in(path) if path.is_dir() else [path]


def _matches(base: Path, pattern: str) -> Iterator[Path]:
    """Files and folders, by the rules of `datasets`; of a pattern, files alone."""
    from datasets.data_files import resolve_pattern

    if os.path.exists(base / pattern):
        yield base / pattern
    elif has_magic(pattern):
        try:
            yield from map(Path, resolve_pattern(pattern, str(base.resolve())))
        except (FileNotFoundError, ValueError):  # nothing matches, or it is no pattern
            return


def _strings(value) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)

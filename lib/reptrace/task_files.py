"""The files that decide what a task in a folder asks: YAML, what that includes, its Python functions, its local data.

A task's own YAML may stay as it is while the base that it includes, or the function that makes its questions, changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from reptrace.fingerprints import files_fingerprint, files_in

DATA_KEYS = ("dataset_path", "dataset_kwargs")  # of a task's YAML


def fingerprints(folders: Sequence[Path]) -> dict[str, str]:
    """Name of a task, group or tag -> 16 hex digits that say which files it is made from, for each that folders define.

    A name of the first folder alone stands for that folder; one of any other for all of them, since a group may name
    tasks of all. The files of a folder count whole, whatever they are for, with those that its YAML names elsewhere.
    """
    from lm_eval.tasks import TaskManager

    from reptrace.harness import quiet_messages

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
    for path in map(Path, _strings([content.get(key) for key in DATA_KEYS])):
        if path.is_file():
            yield path
        elif path.is_dir():
            yield from files_in(path)


def _strings(value) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)

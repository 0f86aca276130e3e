"""Checkpoints, and those that a model's own name stands for: a folder's, a run's, a repository's branches."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from reptrace.checkpoints import hub, published, weights
from reptrace.support.arguments import shown

# step1000, stage1-step1000-tokens3B, step_40, checkpoint-500, ckpt-500, iter_0000500, global_step500, epoch=1-step=500
TOKENS = re.compile(r"-tokens(\d+)B(?=$|[-_])")
STEP = re.compile(r"(?:^|[-_/:])(?:step|checkpoint|ckpt|iter(?:ation)?)[-_=]?(\d+)(?=$|[-_/])", re.IGNORECASE)
LARGEST = 2**62  # numbers beyond are no steps, and would not fit into a table


@dataclass(frozen=True)
class Checkpoint:
    """One model on the way: a repository with a revision (in `cache_dir` if given), or a folder.

    The revision of a model in a folder of a repository, and its commit, have the folder behind a colon (`hub`).

    `step` counts optimizer steps of its stage, `tokens` the pretraining tokens seen; None where they are not known.
    `stage` is the part of the training it belongs to, `commit` the hash its revision stood for when it was listed,
    `fault` what is known to be wrong with what is published under that name.
    """

    model: str
    revision: str | None = None
    step: int | None = None
    tokens: int | None = None
    cache_dir: str | None = None
    stage: str | None = None
    commit: str | None = None
    fault: str | None = None

    @property
    def label(self) -> str:
        return f"{self.model}@{self.revision}" if self.revision else self.model


def as_checkpoints(given) -> list[Checkpoint]:
    """Checkpoints as a list; a single one counts as a list of one. TypeError for anything else, names too."""
    found = [given] if isinstance(given, Checkpoint) else list(given) if isinstance(given, Iterable) else [given]
    if isinstance(given, str) or not all(isinstance(point, Checkpoint) for point in found):
        raise TypeError(f"expected checkpoints, got {shown(given)}. Those of a folder or repository: "
                        "listing.checkpoints(name); of a registered suite: suites.suite(name).checkpoints().")
    return found


def read_steps(text: str) -> list[int]:
    """Steps written as "0 1 512 1000-143000/1000", or "TABLE.csv:MODEL" of data/published."""
    text = str(text)
    if ".csv:" in text:
        return published.steps(*text.split(":", 1))
    steps: list[int] = []
    for part in text.split():
        match = re.fullmatch(r"(\d+)(?:-(\d+)/(\d+))?", part)
        if not match:
            raise ValueError(f'steps are numbers and ranges FIRST-LAST/EVERY ("0 1 1000-143000/1000"), got {part!r}.')
        first, last, every = (int(group) if group else None for group in match.groups())
        if last is not None and not (every and first <= last):
            raise ValueError(f"a range FIRST-LAST/EVERY goes up by 1 or more, got {part!r}.")
        steps += [first] if last is None else range(first, last + 1, every)
    return steps


def fault_of(checkpoint: Checkpoint) -> str | None:
    """What is known to be wrong with a published checkpoint, with its source, or None."""
    return _faults().get((checkpoint.model, checkpoint.step))


@cache
def _faults() -> dict[tuple[str, int], str]:
    return {(row.repository, step): f"{row.fault} ({row.source})"
            for row in published.faults().itertuples() for step in read_steps(row.steps)}


def checkpoints(model: str, revision: str | None = None, cache_dir: str | None = None,
                tokens_per_step: int | None = None) -> list[Checkpoint]:
    """The checkpoints that a model's own name stands for, in order of their steps.

    Parameters
    ----------
    model : str
        A folder with a model in it; a GGUF file, or a folder with one; a folder of a Trainer's `checkpoint-N` folders,
        or of others whose names state a step (all of them and, without a step, the other models there:
        checkpoint-best, or the one that the Trainer saved beside them at the end); or a repository.
    revision : str, optional
        Of a repository: a revision, or a pattern with * over its branches ("step*" for the whole of a Pythia), or over
        the folders of one of them ("main:step-*").
    tokens_per_step : int, optional
        Training tokens an optimizer step took; fills in `tokens`. Without it, OLMo's `-tokens3B` in a name is taken.

    Raises
    ------
    FileNotFoundError, ValueError
        A path that is not there; no revision that fits the pattern; a folder with a revision.
    """
    model = hub.checked_name(model)
    path = Path(model)
    known: dict[str, str] = {}
    steps: dict[str, int | None] = {}
    weights.check_revision(model, revision)
    if path.is_dir():
        steps = {str(child): step for child, step in _checkpoints_in(path).items()}
        found = [(child, None) for child in steps] or [(model, None)]
    elif revision and "*" in revision:
        branch, folder = hub.parted(revision)
        known = hub.folders(model, branch, cache_dir) if folder else hub.branches(model, cache_dir)
        found = [(model, branch) for branch in known if fnmatchcase(branch, revision)]
        if not found:
            raise FileNotFoundError(f"{model!r} has no revision that fits {revision!r}; it has "
                                    f"{', '.join(by_step(known)[:8]) or 'none'}.")
    else:
        found = [(model, revision)]
    run = []
    for name, branch in found:
        step = steps[name] if name in steps else step_of(branch or _named(name))
        stated = TOKENS.search(branch or "")
        tokens = int(stated.group(1)) * 10**9 if stated else None
        tokens = step * tokens_per_step if step is not None and tokens_per_step else tokens
        if tokens is not None and tokens > LARGEST:
            raise ValueError(f"{name} would have seen {tokens:.2g} tokens, by {tokens_per_step:,} a step: check "
                             "tokens_per_step (--tokens-per-step).")
        run.append(Checkpoint(name, branch, step, tokens, cache_dir, commit=known.get(branch)))
    run = [replace(point, fault=fault_of(point)) for point in run]
    return sorted(run, key=lambda point: (point.step is None, point.step, point.label))


def _checkpoints_in(folder: Path) -> dict[Path, int | None]:
    """The checkpoints of a run that lie in its folder, with their steps; none where no folder in it is one by its name.

    Beside those, every other model there, without a step: in folders of other names, and in the run's folder itself. Of
    two that state one step (checkpoint-64, checkpoint-64-backup) the one that ends with it has it. A link to another
    checkpoint of the run is none.
    """
    inside = [child for child in sorted(folder.iterdir()) if (child.is_dir() or child.is_symlink())
              and not child.name.startswith((".", "tmp-"))]
    real = {child.resolve() for child in inside if not child.is_symlink()}
    inside = [child for child in inside if not (child.is_symlink() and child.resolve() in real)]
    models = [child for child in inside if (child / "config.json").is_file()]
    named = [child for child in inside if child.name.startswith("checkpoint-")
             or (step_of(child.name) is not None and child in models)]
    if not named:
        return {}
    taken = {step_of(child.name) for child in named if _ends_with_step(child.name)}
    found = {child: step_of(child.name) for child in named}
    found |= {child: None for child, step in found.items() if step in taken and not _ends_with_step(child.name)}
    at_root = (folder / "config.json").is_file() and any(
        path.suffix in (".safetensors", ".bin") and "training_args" not in path.name for path in folder.iterdir())
    others = [*(child for child in models if child not in found), *([folder] if at_root else [])]
    return found | dict.fromkeys(others)


def _named(name: str) -> str:
    """The last part of a path, of a GGUF file without its suffix: what may state a step."""
    return Path(name).stem if Path(name).is_file() else Path(name).name


def _ends_with_step(name: str) -> bool:
    match = STEP.search(name)
    return bool(match) and match.end() == len(name)


def step_of(name: str) -> int | None:
    """The step that a revision or folder name states, or None."""
    match = STEP.search(name)
    return int(match.group(1)) if match and int(match.group(1)) <= LARGEST else None


def by_step(names) -> list[str]:
    """Names of branches in order of the steps they state; those without a step last."""
    return sorted(names, key=lambda name: (step_of(name) is None, step_of(name) or 0, name))


def revisions(repository: str, cache_dir: str | None = None) -> list[str]:
    """Branches in order of their steps, of a cache or of the hub; [] where it does not answer."""
    try:
        return by_step(hub.branches(repository, cache_dir))
    except hub.HubError:
        return []

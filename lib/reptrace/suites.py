"""Named checkpoints of one training run: which model, which revision, how many tokens seen.

A suite trained here is a repository in a hub cache of its own, one revision a step, exactly as a Pythia branch lies in
the cache after its download: the same `from_pretrained(repository, revision=...)` reads both.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

# step1000, stage1-step1000-tokens3B, step_40, checkpoint-500
TOKENS = re.compile(r"-tokens(\d+)B(?=$|[-_])")
STEP = re.compile(r"(?:^|[-_/])(?:step|checkpoint)[-_]?(\d+)(?=$|[-_])")


@dataclass(frozen=True)
class Checkpoint:
    """One model on the way: a repository with a revision (in `cache_dir` if given), or a folder.

    `step` counts optimizer steps, `tokens` the training tokens seen; None where they are not known.
    """

    model: str
    revision: str | None = None
    step: int | None = None
    tokens: int | None = None
    cache_dir: str | None = None

    @property
    def label(self) -> str:
        return f"{self.model}@{self.revision}" if self.revision else self.model


def checkpoints(model: str, revision: str | None = None, cache_dir: str | None = None,
                tokens_per_step: int | None = None) -> list[Checkpoint]:
    """The checkpoints that a name stands for, in order of their steps.

    Parameters
    ----------
    model : str
        A folder with a model in it; a folder of a Trainer's `checkpoint-N` folders (all of them); or a repository.
    revision : str, optional
        Of a repository: a revision, or a pattern with * over its branches ("step*" for the whole of a Pythia).
    tokens_per_step : int, optional
        Training tokens an optimizer step took; fills in `tokens`. Without it, OLMo's `-tokens3B` in a name is taken.
    """
    path = Path(model)
    if path.is_dir() and revision is None:
        found = [(str(child), None) for child in path.glob("checkpoint-*") if child.is_dir()]
        found = found or [(model, None)]
    elif revision and "*" in revision:
        found = [(model, branch) for branch in revisions(model, cache_dir) if fnmatchcase(branch, revision)]
        if not found:
            raise FileNotFoundError(f"{model!r} has no revision that fits {revision!r}; it has "
                                    f"{', '.join(revisions(model, cache_dir)[:8]) or 'none that can be listed'}.")
    else:
        found = [(model, revision)]
    run = []
    for name, branch in found:
        step = step_of(branch or Path(name).name)
        stated = TOKENS.search(branch or "")
        tokens = int(stated.group(1)) * 10**9 if stated else None
        tokens = step * tokens_per_step if step is not None and tokens_per_step else tokens
        run.append(Checkpoint(name, branch, step, tokens, cache_dir))
    return sorted(run, key=lambda checkpoint: (checkpoint.step is None, checkpoint.step, checkpoint.label))


def step_of(name: str) -> int | None:
    """The step that a revision or folder name states, or None."""
    match = STEP.search(name)
    return int(match.group(1)) if match else None


def revisions(repository: str, cache_dir: str | None = None) -> list[str]:
    """Branches of a repository: of a cache if `cache_dir` is given, else of the hub ([] where it is out of reach)."""
    if cache_dir is not None:
        refs = repository_folder(cache_dir, repository) / "refs"
        found = [str(path.relative_to(refs)) for path in refs.rglob("*") if path.is_file()] if refs.is_dir() else []
    else:
        from huggingface_hub import HfApi

        try:
            found = [ref.name for ref in HfApi().list_repo_refs(repository).branches]
        except Exception:  # offline, or no such repository: the caller's own error says what was asked for
            found = []
    return sorted(found, key=lambda name: (step_of(name) is None, step_of(name) or 0, name))


def commit_of(checkpoint: Checkpoint) -> str | None:
    """Commit hash that the checkpoint's revision stands for, on the hub or, out of its reach, in the cache.

    None for a plain folder; the revision itself where it is known to neither.
    """
    from huggingface_hub import HfApi, constants

    if Path(checkpoint.model).is_dir():
        return None
    revision = checkpoint.revision or "main"
    if checkpoint.cache_dir is None and not constants.HF_HUB_OFFLINE:
        with suppress(Exception):  # no network, or no such revision: opening the model says which
            return HfApi().model_info(checkpoint.model, revision=revision).sha
    cache = checkpoint.cache_dir or constants.HF_HUB_CACHE
    ref = repository_folder(cache, checkpoint.model) / "refs" / revision
    return ref.read_text().strip() if ref.is_file() else revision


def repository_folder(cache_dir: str | Path, repository: str) -> Path:
    """Folder of a repository inside a hub cache."""
    return Path(cache_dir) / ("models--" + repository.replace("/", "--"))

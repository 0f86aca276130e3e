"""Where the weights of checkpoints are and what identifies them; opening them, and seeing that they stay the same."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from reptrace.checkpoints import gguf_files, hub, weights
from reptrace.checkpoints.listing import Checkpoint
from reptrace.support import arguments
from reptrace.support.fingerprints import files_fingerprint


@dataclass(frozen=True)
class Opening:
    """How checkpoints are opened.

    Parameters
    ----------
    device, dtype : see `loading.placement`
    trust : repositories and folders whose own code may run; default none
    """

    device: str | None = None
    dtype: str | None = None
    trust: tuple[str, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "trust", arguments.trusted(self.trust))

    def trusts(self, checkpoint: Checkpoint) -> bool:
        return arguments.is_trusted(checkpoint.model, self.trust)

    def placed(self, client=None) -> Opening:
        """With device and dtype decided, as a worker sees them where there is a cluster."""
        from reptrace.models.loading import placement
        from reptrace.sweeps.cluster import on_a_worker

        given = self.device, self.dtype
        device, dtype = placement(*given) if client is None else on_a_worker(client, placement, *given)
        return replace(self, device=device, dtype=dtype)


class Located(NamedTuple):
    """What identifies a checkpoint's weights, and the files to fetch for it (None: it lies here).

    `trouble` is what the hub said instead of its files, or why a folder's weights have no identity. `stamp` is a
    folder's, see `weights.stamp`; `beside`, a hash of what a tokenizer and generation read beside its weights, where
    that was asked for (a commit stands for all its files, a GGUF file for itself). `stored` says how the weights of a
    GGUF file are quantized, as columns of a record.
    """

    weights: str | None
    files: hub.Files | None = None
    trouble: str = ""
    stamp: tuple = ()
    beside: str = ""
    stored: Mapping | None = None


def located(checkpoints: Sequence[Checkpoint], opening: Opening, progress: bool = True, beside: bool = False
            ) -> dict[Checkpoint, Located]:
    """Where the weights of checkpoints are, each once."""
    wanted = list(dict.fromkeys(checkpoints))
    online = [point for point in wanted if on_hub(point)]
    commits = {point: hub.commit_of(point.model, point.revision, point.cache_dir) if not point.commit else point.commit
               for point in wanted if not weights.is_here(point.model)}
    found = hub.files_of_all([(point.model, commits[point]) for point in online], progress)
    folders = [point for point in wanted if point not in commits]
    places = {}
    for point in tqdm(folders, desc="reading weights", unit="checkpoint", leave=False,
                      disable=not progress or len(folders) < 2):
        places[point] = _folder(point.model, opening.trusts(point), beside)
    for point, commit in commits.items():
        files = found.get((point.model, commit)) if point in online else None
        if isinstance(files, hub.HubError):
            places[point] = Located(commit, trouble=str(files))
        else:
            places[point] = Located(files.commit if files else commit, files)
    return {point: places[point] for point in wanted}


def _folder(folder: str, code: bool, beside: bool) -> Located:
    """A folder, or a GGUF file, by a hash of what opening it reads; its stamp is taken before, to see later whether it
    has changed."""
    plain = os.path.isdir(folder)
    around = _beside_the_weights(folder) if beside and plain else ""
    try:
        stamp = weights.stamp(folder, code)
        stored = None if plain else gguf_files.header(folder).quantization
        return Located(weights.fingerprint(folder, code), stamp=stamp, beside=around, stored=stored)
    except (OSError, ValueError) as error:
        return Located(None, trouble=f"{folder!r}: {error}", beside=around)


def _beside_the_weights(folder: str) -> str:
    return files_fingerprint((path.name, path) for path in sorted(Path(folder).iterdir())
                             if weights.SMALL.fullmatch(path.name))


def on_hub(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint is to be fetched: not here nor in a cache that was named, and the hub may be asked."""
    return checkpoint.cache_dir is None and not weights.is_here(checkpoint.model) and hub.reachable()


def identity_of(checkpoint: Checkpoint, at: Located, opening: Opening) -> dict:
    """What of a record's identity says which model it is of; code of its own counts where it may run."""
    own_code = {"own_code": True} if opening.trusts(checkpoint) else {}
    return {"model": named(checkpoint), "revision": checkpoint.revision, "weights": at.weights, **own_code}


def named(checkpoint: Checkpoint) -> str:
    """Its model's name in a record's identity: where a folder lies does not count."""
    return checkpoint.model if checkpoint.revision else Path(checkpoint.model).name


def place(checkpoint: Checkpoint) -> dict:
    """Where a checkpoint stands in its run: not part of a measurement's identity, so never taken from the record."""
    return {"model": checkpoint.model, "revision": checkpoint.revision, "stage": checkpoint.stage,
            "step": checkpoint.step, "tokens": checkpoint.tokens, "fault": checkpoint.fault}


def open_at(checkpoint: Checkpoint, at: Located, opening: Opening, cache_dir: str | Path | None, head: bool = False):
    """`loading.load` of a checkpoint where it was located, so that what opens is what its identity says.

    `cache_dir`: where its files were fetched to.
    """
    from huggingface_hub import constants

    from reptrace.models.loading import load

    folder = weights.is_here(checkpoint.model)
    if folder and at.trouble:
        raise ValueError(at.trouble)
    if at.trouble:  # what lies complete in the user's cache will do; nothing is fetched past the checks and the budget
        cache_dir = checkpoint.cache_dir or constants.HF_HUB_CACHE
    try:
        # by its commit, so that it is the same even if the branch moves meanwhile
        model = load(checkpoint.model, None if folder else at.weights, cache_dir or checkpoint.cache_dir,
                     opening.device, opening.dtype, trust_remote_code=opening.trusts(checkpoint), head=head)
    except FileNotFoundError as error:
        if at.trouble:
            raise hub.HubError(at.trouble) from error
        raise
    check_unchanged(checkpoint, at, opening)
    return model


def check_unchanged(checkpoint: Checkpoint, at: Located, opening: Opening) -> None:
    """ValueError where a folder's files are no longer those that its identity was taken from.

    To be called after a measurement, too: weights are mapped into memory, and change with their file.
    """
    if not weights.is_here(checkpoint.model):
        return
    if at.stamp != weights.stamp(checkpoint.model, opening.trusts(checkpoint)):
        raise ValueError(f"the files of {checkpoint.model!r} were written anew while it was measured, or waited for "
                         "it: run again once they stay as they are.")
    if at.beside and at.beside != _beside_the_weights(checkpoint.model):
        raise ValueError(f"the tokenizer's files in {checkpoint.model!r} were written anew while it was measured: run "
                         "again once they stay as they are.")

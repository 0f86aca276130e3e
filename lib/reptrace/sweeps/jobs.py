"""A job: one checkpoint with the parts that it is to be measured for. It is fetched and opened once for all of them.

What a part is stands in `measurement` (geometry on a probe) and `evaluation` (a task, the loss, memorization);
`dispatch` gets jobs done, here or on a cluster.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

from reptrace.checkpoints.downloads import Downloads
from reptrace.checkpoints.listing import Checkpoint
from reptrace.records.store import attempt
from reptrace.sweeps.located import Located, Opening, check_unchanged, identity_of, open_at


class Part(ABC):
    """One thing that checkpoints are measured for, the same for all of them: a base class of frozen dataclasses.

    `head`: whether the LM head is needed; `reads`: whether text is read, by a tokenizer; `opens`: whether the model is
    opened for it, in this process; `references`: which other checkpoints it compares with, of `measure.REFERENCES`.
    """

    head = False
    reads = False
    opens = True
    references: frozenset[str] = frozenset()

    @abstractmethod
    def identity(self, job: Job) -> dict:
        """What its record depends on besides the model."""

    @abstractmethod
    def facts(self, job: Job) -> dict:
        """Columns of its record that are known beforehand."""

    def prepare(self, opened: Opened, progress: bool) -> None:  # noqa: B027  most have nothing to prepare
        """What is to be had of other models, before this one is fetched and takes its place in memory."""

    @abstractmethod
    def rows(self, opened: Opened, progress: bool) -> list[dict]:
        """What is measured on an opened checkpoint."""

    @cached_property
    def key(self) -> str:
        """A hash of all it holds: a worker is given each part once, not with every job."""
        return hashlib.sha256(pickle.dumps(self)).hexdigest()


@dataclass(frozen=True, eq=False)
class Job:
    """One checkpoint, where its weights are, and what it is to be measured for.

    `references`: the checkpoints that measures compare it with, where one of them needs that, by the need's name; of
    the run's none where there is none. `records`: the folder that its records go to.
    """

    checkpoint: Checkpoint
    at: Located
    parts: tuple[Part, ...] = field(repr=False)
    opening: Opening
    references: Mapping[str, tuple[Checkpoint, Located]] = field(default_factory=dict)
    records: Path | None = None

    def identity(self, part: Part) -> dict:
        """What a part's record depends on: the very weights, and what the part says."""
        return {**identity_of(self.checkpoint, self.at, self.opening), **part.identity(self)}


class Opened:
    """A checkpoint that is being measured. Its model, and what else several parts use, is made when first asked for.

    `downloads` hold its weights and others'; `cache_dir` is where its own were fetched to.
    """

    def __init__(self, job: Job, downloads: Downloads):
        self.job, self.downloads, self.cache_dir = job, downloads, None
        self._made: dict[object, object] = {}

    @property
    def model(self):
        """On its device, with its LM head where a part needs that."""
        head = any(part.head for part in self.job.parts)
        return self.once("model", partial(open_at, self.job.checkpoint, self.job.at, self.job.opening, self.cache_dir,
                                          head))

    def once(self, what: object, make: Callable):
        """What was made before under this name; what failed before fails again, without another try."""
        if what not in self._made:
            try:
                self._made[what] = make()
            except Exception as error:
                self._made[what] = error
        if isinstance(self._made[what], Exception):
            raise self._made[what]
        return self._made[what]


def measured(job: Job, following: Job | None, downloads: Downloads, progress: bool = False
             ) -> Iterator[tuple[Part, list[dict]]]:
    """The rows of a job's parts, one part after the other, failures included.

    Its weights are fetched first, those of the following job meanwhile. A checkpoint that cannot be fetched or opened
    is a gap for every part.
    """
    opened = Opened(job, downloads)
    for part in job.parts:
        with suppress(Exception):  # a failure is told by the part
            part.prepare(opened, progress)
    with ExitStack() as held:
        got = attempt(lambda: [{"cache": fetched(job.at, following and following.at, downloads, held)}])
        if "cache" not in got[0]:
            yield from ((part, got) for part in job.parts)
            return
        opened.cache_dir = got[0]["cache"]
        with suppress(Exception):  # now, so that no part's wall time has it in it; a failure is told by each part
            _ = any(part.opens for part in job.parts) and opened.model
        for part in job.parts:
            yield part, attempt(partial(_rows, part, opened, progress))


def fetched(at: Located, following: Located | None, downloads: Downloads, held: ExitStack) -> Path | None:
    """The cache that holds a checkpoint's files until the stack is closed; None where they need not be fetched."""
    if at.files is None:
        return None
    return held.enter_context(downloads.holding(at.files, following.files if following else None))


def _rows(part: Part, opened: Opened, progress: bool) -> list[dict]:
    _ = part.opens and opened.model
    rows = part.rows(opened, progress)
    job = opened.job
    check_unchanged(job.checkpoint, job.at, job.opening)
    return rows


def jobs_of(places: Mapping[Checkpoint, Located], parts: Sequence[Part], opening: Opening,
            reference: tuple[Checkpoint, Located] | None = None, records: Path | None = None) -> list[Job]:
    """A job for each checkpoint of a run, in its order. What is asked twice is a part of it once: two would wait for
    one claim.

    `reference`: what all are compared with; the run's first, last and previous are found here.
    """
    found, wanted = [], set().union(*(part.references for part in parts))
    run = [(point, at) for point, at in places.items() if at.weights is not None]  # others cannot be opened
    previous = None
    for point, at in places.items():
        others = {"reference": reference, "first": run and run[0], "last": run and run[-1], "previous": previous}
        job = Job(point, at, tuple(parts), opening, {name: others[name] for name in wanted if others[name]}, records)
        previous, once = (point, at) if at.weights is not None else previous, {}
        for part in parts:
            once.setdefault(json.dumps(job.identity(part), sort_keys=True), part)
        found.append(replace(job, parts=tuple(once.values())))
    return found

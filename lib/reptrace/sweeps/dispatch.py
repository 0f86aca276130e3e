"""Getting jobs done: in this process, or on the workers of a Dask cluster (`cluster`), and written to a store.

The process that called holds the store: it claims what a job is to make, so that no other call on the same store makes
it too, has it done, and writes what comes back.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock
from tqdm import tqdm

from reptrace.checkpoints.downloads import Downloads
from reptrace.checkpoints.listing import Checkpoint
from reptrace.records.store import Store, provenance
from reptrace.sweeps.jobs import Job, Part, jobs_of, measured
from reptrace.sweeps.located import Opening, located

DEATHS = 3  # workers that one job may take with it


@dataclass(frozen=True)
class Means:
    """By what means jobs are done.

    Parameters
    ----------
    workers : int, default 1
        Checkpoints measured side by side on this machine, each by a process of its own: one a GPU, or with one thread
        where there is none (worth it for small models).
    client : distributed.Client, optional
        Use the workers of this Dask cluster instead. Weights never pass through it; records come back and are written
        here.
    disk : int, optional
        Bytes of fetched weights that may lie on the disk at once, a worker; default two checkpoints.
    keep : bool, default False
        Do not delete fetched weights.
    progress : bool, default True
    """

    workers: int = 1
    client: object = None
    disk: int | None = None
    keep: bool = False
    progress: bool = True

    def __post_init__(self):
        if self.workers < 1:
            raise ValueError(f"workers must be positive, got {self.workers}.")


def run(groups: Sequence[tuple[Sequence[Checkpoint], Sequence[Part]]], store: Store, opening: Opening, means: Means,
        faulty: bool = False, reference: Checkpoint | None = None) -> list[list[Job]]:
    """Have every group's checkpoints measured for its parts, each once; the jobs of each group, all done by then.

    Known faults have no job, unless `faulty`. All groups share the same workers: these take seconds to start.
    Each group is one run, whose first, last and previous checkpoints measures may compare with; `reference`: what
    those compare with that need one by name.
    """
    opening = opening.placed(means.client)
    compared = None if reference is None else (reference, located([reference], opening, means.progress)[reference])
    records = store.folder.absolute()
    jobs = [_jobs(points, parts, opening, means.progress, faulty, compared, records) for points, parts in groups]
    missing = unfinished([job for each in jobs for job in each], store)
    _check_disk(missing, means.disk)
    work_off(missing, store, means)
    return jobs


def _jobs(points: Sequence[Checkpoint], parts: Sequence[Part], opening: Opening, progress: bool, faulty: bool,
          reference, records: Path) -> list[Job]:
    wanted = [point for point in points if faulty or not point.fault]
    places = located(wanted, opening, progress, beside=any(part.reads for part in parts))
    return jobs_of(places, parts, opening, reference, records)


def _check_disk(jobs: Sequence[Job], disk: int | None) -> None:
    """ValueError where the budget does not hold even one of the checkpoints to come."""
    sizes = [(job.at.files.bytes, job.checkpoint.label) for job in jobs if job.at.files]
    if disk is not None and sizes and max(sizes)[0] > disk:
        size, label = max(sizes)
        raise ValueError(f"{label} takes {size / 1e9:.3g} GB, the disk budget is {disk / 1e9:.3g} GB: raise it (disk=, "
                         "--disk).")


def unfinished(jobs: Sequence[Job], store: Store) -> list[Job]:
    """Jobs that lack a good record of one of their parts at least."""
    return [job for job in jobs if not all(store.done(job.identity(part)) for part in job.parts)]


def work_off(missing: Sequence[Job], store: Store, means: Means) -> None:
    """Do these jobs and write them to the store; other calls' share is waited for.

    Running out of disk, here or on a worker, stops the work once what is under way has been written.
    """
    from reptrace.sweeps.cluster import Cluster, local_cluster

    weight = {job.checkpoint: job.at.files.bytes if job.at.files else 1 for job in missing}
    own = means.client is None and means.workers > 1 and len(missing) > 1
    device = missing[0].opening.device if missing else None
    bar = tqdm(total=sum(weight.values()) or 1, desc="measuring", disable=not means.progress or not missing,
               bar_format="{desc}: {percentage:3.0f}%{postfix} |{bar}| [{elapsed}<{remaining}]")
    with (local_cluster(min(means.workers, len(missing)), device) if own else nullcontext(means.client) as client,
          bar, Queue(missing, store, lambda job: bar.update(weight[job.checkpoint]), bar.set_postfix_str) as queue):
        if client is None:
            _here(queue, means)
        else:
            Cluster(client, queue, means.disk, means.keep).run()


class Queue:
    """Jobs still to do, taken by claiming them in the store. A context: claims are released on leaving."""

    def __init__(self, jobs: Sequence[Job], store: Store, done=lambda job: None, say=lambda text: None):
        self.pending, self.store, self.say = list(jobs), store, say
        self.total, self.finished = len(self.pending), 0
        self._done = done
        self._claims: dict[tuple[Checkpoint, Part], FileLock] = {}
        self._deaths: Counter[Checkpoint] = Counter()
        self._failed: set[Checkpoint] = set()

    def __enter__(self) -> Queue:
        self._tell()
        return self

    def __exit__(self, *error) -> None:
        for claim in self._claims.values():
            claim.release()
        self._claims.clear()

    def take(self) -> Job | None:
        """The next job that nobody else is doing, less what is done of it; None where there is none just now."""
        for job in list(self.pending):
            claims = {part: self.store.claim(job.identity(part)) for part in job.parts}
            free = None not in claims.values()
            left = tuple(p for p in job.parts if free and not self.store.done(job.identity(p)))
            for part, claim in claims.items():
                if part in left:
                    self._claims[job.checkpoint, part] = claim
                elif claim is not None:
                    claim.release()
            if left:
                self.pending.remove(job)
                return replace(job, parts=left)
            if free:  # done by another call meanwhile
                self.pending.remove(job)
                self._count(job)
        return None

    def give_back(self, job: Job) -> None:
        """A job that was taken and not begun."""
        self._release(job)
        self.pending.insert(0, job)

    def write(self, job: Job, part: Part, rows: Sequence[dict]) -> None:
        """Keep what was measured of one part."""
        self.store.write(job.identity(part), [{**part.facts(job), **row} for row in rows])
        if any(row.get("status") == "failed" for row in rows):
            self._failed.add(job.checkpoint)

    def finish(self, job: Job) -> None:
        """Let go of a job whose parts are written."""
        self._release(job)
        self._count(job)

    def died(self, job: Job, reason: str) -> None:
        """A job that came to nothing: to be done by another worker, but not for ever."""
        self._deaths[job.checkpoint] += 1
        if self._deaths[job.checkpoint] < DEATHS:
            return self.give_back(job)
        row = {**provenance(), "status": "failed", "reason": f"{reason}, {DEATHS} times"}
        for part in job.parts:
            self.write(job, part, [row])
        return self.finish(job)

    def _release(self, job: Job) -> None:
        for part in job.parts:
            self._claims.pop((job.checkpoint, part)).release()

    def _count(self, job: Job) -> None:
        self.finished += 1
        self._tell()
        self._done(job)

    def _tell(self) -> None:
        failed = f", {len(self._failed)} failed" if self._failed else ""
        self.say(f"{self.finished} of {self.total} checkpoints{failed}")


def _here(queue: Queue, means: Means) -> None:
    """One after the other in this process, the next one's weights on their way; progress within each is shown."""
    job, downloads = queue.take(), Downloads(means.disk, means.keep)
    try:
        while job or queue.pending:
            if job is None:  # all that is left is in other calls' hands
                time.sleep(1)
                job = queue.take()
                continue
            following = queue.take()
            with closing(measured(job, following, downloads, means.progress)) as results:
                for part, rows in results:
                    queue.write(job, part, rows)
            queue.finish(job)
            job = following
    finally:
        downloads.close()

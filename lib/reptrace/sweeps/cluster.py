"""The workers of a Dask cluster, however these come and go.

A worker gets the name of a checkpoint, fetches its weights itself, and returns small tables. With each job it is told
its next one, whose weights it fetches meanwhile.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tqdm import tqdm

from reptrace.checkpoints.downloads import Downloads
from reptrace.support.processes import KEEP_BUFFERS
from reptrace.sweeps.jobs import Job, Part, measured

if TYPE_CHECKING:
    from distributed import Client, Future

    from reptrace.sweeps.dispatch import Queue

DIED = "the worker died (out of memory? a smaller batch needs less)"
POLL = 0.3  # seconds between two looks at the cluster's workers
FETCH = 30  # seconds that a small table may take from a worker
_downloads: dict[tuple, Downloads] = {}  # of this process
_parts: dict[str, Part] = {}  # that a worker was given, by key
_unwanted: set[str] = set()  # commits that this process was to fetch ahead for a sweep that has ended since
_importing = threading.Lock()


@contextmanager
def local_cluster(workers: int, device: str | None = None) -> Iterator:
    """Client of a Dask cluster of processes on this machine: one a GPU where there are GPUs, else one thread each."""
    import dask
    import torch
    from distributed import Client, Nanny, Scheduler, SpecCluster

    gpus = torch.cuda.device_count() if (device or "cuda").startswith("cuda") else 0
    if gpus and workers > gpus:
        raise ValueError(f"{workers} workers were asked for, this machine has {gpus} GPUs: one checkpoint a GPU.")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
    any_port = {"dashboard_address": "127.0.0.1:0"}  # otherwise all want the same one
    options = {"nthreads": 1, "memory_limit": 0, "silence_logs": logging.ERROR, **any_port}
    specs = {k: {"cls": Nanny, "options": {**options, **(
        {"env": {"CUDA_VISIBLE_DEVICES": visible[k]}, "resources": {"GPU": 1}} if gpus else {})}}
        for k in range(workers)}
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "port": 0, **any_port}}
    # Dask's default has every freed buffer given back to the system, and faulted in again by the next batch
    environment = {**dask.config.get("distributed.nanny.pre-spawn-environ"), **KEEP_BUFFERS}
    with ExitStack() as stack:
        stack.enter_context(dask.config.set({"distributed.nanny.pre-spawn-environ": environment}))
        try:
            cluster = stack.enter_context(SpecCluster(specs, scheduler=scheduler, silence_logs=logging.ERROR))
        except RuntimeError as error:
            raise RuntimeError(f"no worker processes could be started ({error}): they import the script that starts "
                               'them, which must do its work under `if __name__ == "__main__":`.') from error
        yield stack.enter_context(Client(cluster))


def on_a_worker(client: Client, function: Callable, *arguments):
    """What a function says on one of the workers that would measure; the first worker is waited for."""
    workers = client.scheduler_info(n_workers=-1)["workers"]
    if not workers:
        tqdm.write("waiting for the cluster's first worker", file=sys.stderr)
        client.wait_for_workers(1)
        workers = client.scheduler_info(n_workers=-1)["workers"]
    address = max(workers, key=lambda address: _gpus(workers[address]))
    return client.run(function, *arguments, workers=[address])[address]


def _gpus(worker: Mapping) -> int:
    return int(worker["resources"].get("GPU", 0))


@dataclass
class _Slot:
    """One place to measure at: a GPU or a thread of a worker."""

    address: str
    resources: dict[str, float] | None
    future: Future | None = None
    job: Job | None = None
    following: Job | None = None


class Cluster:
    """Hands the jobs of a queue to the workers of a Dask cluster."""

    def __init__(self, client: Client, queue: Queue, disk: int | None, keep: bool):
        self.client, self.queue, self.options = client, queue, (disk, keep)
        self.slots: list[_Slot] = []
        self.gpus = False  # whether a worker has declared one: then new workers without are left alone
        self.given: set[tuple[str, str]] = set()  # (worker, part)
        self.stop: OSError | None = None

    def run(self) -> None:
        try:
            while self.queue.pending or any(slot.job or slot.following for slot in self.slots):
                self._see_workers()
                for slot in self.slots:
                    self._serve(slot)
                if self.stop and not any(slot.job for slot in self.slots):
                    raise self.stop
                self._wait()
        except Exception as error:
            if self.client.status != "running":
                raise ConnectionError("the connection to the Dask scheduler was lost. What is measured is kept; call "
                                      "again with a client of a cluster that runs.") from error
            raise
        finally:
            if self.client.status == "running":
                self._let_go()

    def _let_go(self) -> None:
        """Cancel what is under way, and delete what was fetched ahead: its lock would keep others waiting for it."""
        self.client.cancel([slot.future for slot in self.slots if slot.future is not None])
        for slot in self.slots:
            if slot.following and slot.following.at.files:
                with suppress(Exception):  # the worker has gone, and its lock with it
                    self.client.run(_leave, slot.following.at.files.revision, *self.options, workers=[slot.address])

    def _see_workers(self) -> None:
        """Slots for workers that have come; the jobs of those that have gone go back into the queue."""
        workers = self.client.scheduler_info(n_workers=-1)["workers"]
        for slot in [slot for slot in self.slots if slot.address not in workers]:
            self.slots.remove(slot)
            if slot.following:
                self.queue.give_back(slot.following)
            if slot.job:
                self.client.cancel([slot.future])
                self.queue.died(slot.job, DIED)
        known = {slot.address for slot in self.slots}
        self.gpus = self.gpus or any(map(_gpus, workers.values()))
        for address, worker in workers.items():
            if address not in known:
                places = _gpus(worker) if self.gpus else worker["nthreads"]
                self.slots += [_Slot(address, {"GPU": 1} if self.gpus else None) for _ in range(places)]
        if not self.slots:
            self.queue.say("no workers yet")

    def _serve(self, slot: _Slot) -> None:
        """Take in what a slot has finished and hand it the next job."""
        if slot.future is not None and slot.future.done() and not self._take_in(slot):
            return  # first to see whether its worker is still there
        if slot.job is None and not self.stop:
            slot.job, slot.following = slot.following or self.queue.take(), None
            if slot.job:
                slot.following = self.queue.take() if slot.job.at.files else None
                self._submit(slot)

    def _submit(self, slot: _Slot) -> None:
        """The job in a slot to its worker."""
        parts = {part.key: part for part in slot.job.parts}
        new = {key: part for key, part in parts.items() if (slot.address, key) not in self.given}
        if new:  # once to a worker, not with every job
            try:
                self.client.run(_give, new, workers=[slot.address])
            except Exception as error:  # most likely it has gone since the last look
                job, slot.job = slot.job, None
                self.queue.died(job, f"a worker did not take what is to be measured ({type(error).__name__}: {error})")
                return
            self.given |= {(slot.address, key) for key in new}
        light = [replace(job, parts=()) if job else None for job in (slot.job, slot.following)]
        slot.future = self.client.submit(_on_worker, *light, list(parts), *self.options, workers=[slot.address],
                                         allow_other_workers=False, resources=slot.resources, pure=False)

    def _take_in(self, slot: _Slot) -> bool:
        """Write what a slot's worker has measured; False where there is nothing, because it failed or died."""
        from distributed import KilledWorker

        try:
            results = slot.future.result(timeout=FETCH)
        except Exception as error:
            if slot.future.status in ("error", "cancelled"):
                if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                    self.stop = error
                self.given = {pair for pair in self.given if pair[0] != slot.address}
                job, slot.job, slot.future = slot.job, None, None
                self.queue.died(job, DIED if isinstance(error, KilledWorker) else
                                f"{type(error).__name__} on the worker: {error}")
            return False  # else: lost with its worker, as the next look at the workers will show
        job, slot.job, slot.future = slot.job, None, None
        for part, rows in zip(job.parts, results, strict=True):
            self.queue.write(job, part, rows)
        self.queue.finish(job)
        return True

    def _wait(self) -> None:
        from distributed import wait

        running = [slot.future for slot in self.slots if slot.future is not None and not slot.future.done()]
        with suppress(TimeoutError):
            wait(running, timeout=POLL, return_when="FIRST_COMPLETED") if running else time.sleep(POLL)


def _give(parts: dict[str, Part], dask_worker=None) -> None:
    """Keep parts in a worker's process, and have Dask not pause it for the memory that weights take.

    A paused worker begins nothing, so the job that is meant for it would wait for ever. Memory limits that a nanny or
    SLURM keeps still hold.
    """
    from distributed import Status

    _parts.update(parts)
    if dask_worker is not None:
        dask_worker.memory_manager.memory_pause_fraction = False
        if dask_worker.status == Status.paused:
            dask_worker.status = Status.running


def _leave(revision: str, *options) -> None:
    _unwanted.add(revision)  # a job that still runs here may yet begin to fetch it
    if options in _downloads:
        _downloads[options].close()


def _on_worker(job: Job, following: Job | None, parts: list[str], disk: int | None, keep: bool) -> list[list[dict]]:
    """`measured`, in a worker's process, whose downloads outlive the job."""
    downloads = _downloads.setdefault((disk, keep), Downloads(disk, keep))
    ahead = following.at.files.revision if following and following.at.files else None
    _unwanted.difference_update({job.at.files and job.at.files.revision, ahead})
    _import_transformers()
    try:
        whole = replace(job, parts=tuple(_parts[key] for key in parts))
        return [rows for _, rows in measured(whole, following, downloads)]
    finally:
        if ahead in _unwanted:
            downloads.close()


def _import_transformers() -> None:
    """By one thread of a worker: of several that begin at once, all but one would see half of it, and fail."""
    with _importing:
        from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer  # noqa: F401

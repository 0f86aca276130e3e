"""Clusters for tests: Dask on loopback, and processes of their own that start at once and can be killed.

Importing torch and transformers takes a new process five seconds. So one process, the nursery, imports everything once,
runs nothing, and forks a child for each that is asked for, which then is what the command line would have made: a
worker or a scheduler of Dask, or `python -m reptrace`. conftest.py hands on the fixtures.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from limits import SOON, line

NURSERY = """
import json, os, signal, sys, traceback
import datasets, pyarrow.parquet, scipy.linalg, tenacity, torch
import reptrace.report.figures, reptrace.models.hidden_states, reptrace.measures.spectra
import reptrace.sweeps.dispatch, reptrace.sweeps.sweep
from distributed.cli.dask_scheduler import main as scheduler
from distributed.cli.dask_worker import main as worker
from reptrace.__main__ import main as reptrace
from transformers.models.gpt_neox import modeling_gpt_neox
print("ready", flush=True)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how a child ended: it says so itself
for line in sys.stdin:
    name, arguments, log = json.loads(line)
    child = os.fork()
    if child:
        print(child, flush=True)
        continue
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT, 0o666), 1)
    os.dup2(1, 2)
    try:
        code = globals()[name](arguments)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    with open(log + ".code", "w") as file:
        file.write(str(code or 0))
    os._exit(0)
"""


class Child(psutil.Process):
    """A process from the nursery; what it printed, on either stream, is in `log`."""

    def __init__(self, pid: int, log: Path):
        super().__init__(pid)
        self.log = log

    @property
    def printed(self) -> str:
        return self.log.read_text()

    def code(self, timeout: float = SOON) -> int | None:
        """Its exit code once it has ended; None if it was killed."""
        self.wait(timeout)
        file = self.log.with_name(f"{self.log.name}.code")
        return int(file.read_text()) if file.exists() else None


class Nursery:
    """Starts children, and kills those that are left when the block ends."""

    def __init__(self, process: subprocess.Popen, folder: Path):
        self.process, self.folder, self.children = process, folder, []

    def start(self, what: str, *arguments: object) -> Child:
        """A child that is the "worker", the "scheduler" or "reptrace" with these arguments of its command line."""
        log = self.folder / f"{len(self.children)}-{what}.log"
        self.process.stdin.write(json.dumps([what, list(map(str, arguments)), str(log)]) + "\n")
        self.process.stdin.flush()
        self.children.append(Child(int(line(self.process)), log))
        return self.children[-1]

    def worker(self, client, *options: object) -> Child:
        """A worker of one thread for a client's scheduler."""
        return self.start("worker", client.scheduler.address, "--host", "127.0.0.1", "--nthreads", 1, "--memory-limit",
                          0, "--no-nanny", "--no-dashboard", "--death-timeout", 15, "--local-directory", self.folder,
                          *options)

    def end(self) -> None:
        for child in self.children:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(self.children, 5)
        self.children = []


@pytest.fixture(scope="session")
def started_once(tmp_path_factory) -> Iterator[Nursery]:
    folder = tmp_path_factory.mktemp("children")
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(folder / "hub"),
                   "DASK_TEMPORARY_DIRECTORY": str(folder)}
    with subprocess.Popen([sys.executable, "-c", NURSERY], env=environment, text=True, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as process:
        assert line(process, 3 * SOON) == "ready\n"  # a busy machine may take so long to import everything
        yield Nursery(process, folder)
        process.kill()


@pytest.fixture
def nursery(started_once, tmp_path) -> Iterator[Nursery]:
    """Processes for one test; those that still run are killed at its end."""
    started_once.folder = tmp_path
    yield started_once
    started_once.end()


@pytest.fixture
def dask_here(tmp_path, monkeypatch) -> None:
    """Importing dask_jobqueue writes a file in the home's .config/dask, and a scheduler a folder in /tmp: not here."""
    import dask

    monkeypatch.setattr(dask.config, "PATH", str(tmp_path))
    with dask.config.set({"temporary-directory": str(tmp_path)}):
        yield


# without an address it takes port 8787, and warns where another has it
NO_DASHBOARD = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}


@pytest.fixture
def loopback(dask_here) -> Iterator:
    """The client of a scheduler in this process, on 127.0.0.1, without workers."""
    with scheduler() as client:
        yield client


@pytest.fixture
def side_by_side(nursery, dask_here, monkeypatch) -> None:
    """`workers=2` takes workers of the nursery in place of new processes, of which sweeps/test_dispatch.py has a test.
    """
    @contextmanager
    def local_cluster(workers: int, device: str | None = None) -> Iterator:
        with scheduler() as client:
            for _ in range(workers):
                nursery.worker(client)
            yield client

    monkeypatch.setattr("reptrace.sweeps.cluster.local_cluster", local_cluster)


@contextmanager
def scheduler(**settings) -> Iterator:
    import dask
    from distributed import Client, Scheduler, SpecCluster

    options = {"host": "127.0.0.1", "port": 0, **NO_DASHBOARD}
    with (dask.config.set(settings),
          SpecCluster(workers={}, scheduler={"cls": Scheduler, "options": options}, silence_logs=40) as cluster,
          Client(cluster, timeout=SOON) as client):
        yield client


def wait_until(true: Callable[[], object], what: str, seconds: float = SOON) -> None:
    """Look until something is so; a failure says what was waited for."""
    stop = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < stop, f"waited {seconds} s in vain until {what}"
        time.sleep(0.02)

"""A SLURM of one node on this machine's loopback, for the tests to submit jobs to.

``one_node()`` starts munged, slurmctld and slurmd in a temporary folder with a configuration, a munge key and a socket
of their own, on free ports, so that neither a SLURM nor a munged that is already here notices. It needs root and
Debian's slurmctld, slurmd, slurm-client and munge; without them the fixture ``slurm`` skips. A test file uses it by::

    pytest_plugins = ["slurm"]
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from limits import SOON, kill

COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "sinfo", "setpriv")

# Every daemon is told its paths, and 127.0.0.1 wherever one can be told an address. config_overrides: the node counts
# the processors and the memory written here, whatever the machine has, so any machine will do.
CONFIGURATION = """\
ClusterName=reptrace
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
ReturnToService=2
InactiveLimit=0
KillWait=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory_mb} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Slurm:
    """A running SLURM. SLURM_CONF in this process's environment names it, so sbatch, squeue and the rest find it."""

    folder: Path  #: configuration, logs, state and spool; gone with the SLURM

    def node(self) -> str:
        """The node's state in sinfo's words ("idle", "mixed", "allocated"), or "" while the controller is silent."""
        try:
            return self._ask("sinfo", "--noheader", "--format=%T")
        except subprocess.CalledProcessError:
            return ""

    def jobs(self) -> list[int]:
        """The ids of the jobs in the queue: pending, running or completing."""
        return [int(job) for job in self._ask("squeue", "--noheader", "--format=%A").split()]

    def _ask(self, *command: str) -> str:
        return subprocess.run([_path(command[0]), *command[1:]], env=self._environment(), capture_output=True,
                              text=True, timeout=20, check=True).stdout.strip()

    def _environment(self) -> dict[str, str]:
        return {**_without_slurm(), "SLURM_CONF": str(self.folder / "slurm.conf")}


def missing() -> str:
    """Why no SLURM can be started here, or "" where one can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "starting a SLURM needs root"
    absent = [command for command in COMMANDS if not _path(command)]
    return f"{', '.join(absent)} not installed (Debian: slurmctld slurmd slurm-client munge)" if absent else ""


@contextmanager
def one_node(cpus: int = 4, memory_mb: int = 8000, timeout: float = SOON) -> Iterator[Slurm]:
    """Start a SLURM of one idle node; on leaving, however that comes, end its jobs and its daemons and its folder.

    Within, SLURM_CONF in ``os.environ`` names its configuration.
    """
    with ExitStack() as stack:
        # Not pytest's folder: the name of a Unix socket may have 107 characters.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-")))
        for name in ("state", "spool", "log"):
            (folder / name).mkdir()
        key = folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        host = socket.gethostname().split(".")[0]
        controller_port, node_port = _free_ports(2)
        configuration = folder / "slurm.conf"
        configuration.write_text(CONFIGURATION.format(
            folder=folder, host=host, controller_port=controller_port, node_port=node_port, cpus=cpus,
            memory_mb=memory_mb))

        slurm, stop = Slurm(folder), time.monotonic() + timeout
        daemons: dict[str, subprocess.Popen] = {}

        def start(name: str, *arguments: str) -> None:
            daemons[name] = stack.enter_context(_daemon(slurm, name, *arguments))

        def wait(ready: Callable[[], bool], wanted: str) -> None:
            while not ready():
                ended = [name for name, process in daemons.items() if process.poll() is not None]
                if ended or time.monotonic() > stop:
                    logs = "".join(f"\n--- {file.name}\n{file.read_text()[-2000:]}" for file in folder.glob("log/*"))
                    raise RuntimeError((f"{' and '.join(ended)} ended while {wanted} was waited for" if ended else
                                        f"{wanted} was waited for in vain, {timeout} s in all") + logs)
                time.sleep(0.05)

        # --force: munged would rather not run as root, nor have its socket in a folder that only root can enter.
        start("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket",
              f"--pid-file={folder}/munged.pid", f"--log-file={folder}/log/munged", f"--seed-file={folder}/munge.seed",
              "--num-threads=2")
        wait((folder / "munge.socket").exists, "munged's socket")
        start("slurmctld", "-D", "-f", str(configuration))
        wait(lambda: _listens(controller_port), "slurmctld's port")
        stack.callback(_end_steps, slurm)  # what outlived slurmd
        start("slurmd", "-D", "-f", str(configuration))
        wait(lambda: slurm.node() == "idle", "an idle node")

        stack.callback(_end_jobs, slurm)  # while all three daemons are still there to do it
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name in set(os.environ) - set(_without_slurm()):
            patch.delenv(name)
        patch.setenv("SLURM_CONF", str(configuration))
        yield slurm


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """A SLURM of one node with four processors, started once for the session and named by SLURM_CONF from then on."""
    if reason := missing():
        pytest.skip(reason)
    with one_node() as running:
        yield running


def _path(command: str) -> str | None:
    """Where a command is: the daemons live in /usr/sbin, which is not on everybody's path."""
    return shutil.which(command, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def _without_slurm() -> dict[str, str]:
    """This process's environment without what another SLURM may have put there (these tests may be its job)."""
    return {name: value for name, value in os.environ.items()
            if not name.startswith(("SLURM_", "SLURMD_", "SBATCH_", "SQUEUE_", "SCANCEL_", "SINFO_"))}


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _listens(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def _daemon(slurm: Slurm, name: str, *arguments: str) -> Iterator[subprocess.Popen]:
    """A daemon in the foreground; terminated on leaving, and by the kernel should this process be killed.

    In a session of its own: control-C at the terminal is for pytest, which then stops the daemons in their order.
    """
    with (slurm.folder / "log" / name).open("ab") as log:
        process = subprocess.Popen([_path("setpriv"), "--pdeathsig", "TERM", _path(name), *arguments],
                                   env=slurm._environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                   start_new_session=True, cwd=slurm.folder)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            kill(process)


def _end_jobs(slurm: Slurm, timeout: float = SOON) -> None:
    """Cancel what is in the queue and wait until it is empty, so that no step is left to outlive slurmd."""
    stop = time.monotonic() + timeout
    with suppress(subprocess.SubprocessError):  # no daemon is left to ask: _end_steps sees to the rest
        if slurm.jobs():
            slurm._ask("scancel", "--user=root")
        while slurm.jobs() and time.monotonic() < stop:
            time.sleep(0.1)


def _end_steps(slurm: Slurm) -> None:
    """Kill what slurmd left: slurmstepd, known by its folder, and a job's processes, by what SLURM put around them."""
    configuration, folder, left = slurm._environment()["SLURM_CONF"], str(slurm.folder.resolve()), []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it ended meanwhile, or is the kernel's
            if process.name() == "slurmstepd":
                ours = process.cwd() == folder  # it writes its title over its environment
            else:
                environment = process.environ()
                ours = environment.get("SLURM_CONF") == configuration and "SLURM_JOB_ID" in environment
            if ours:
                process.kill()
                left.append(process)
    psutil.wait_procs(left, 5)

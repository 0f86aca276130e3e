"""Tables of results with provenance: one Parquet file a measurement, written atomically, done once.

A store is a folder. Each measurement has an identity, the facts that would change its result; its file is named by the
identity's hash, so looking up what is done needs no index, any number of processes may write, and a process killed at
any moment leaves a whole record or none.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

import pandas as pd
from filelock import FileLock, Timeout

from reptrace.support.processes import cores

RECORDED_PACKAGES = ("numpy", "scipy", "tokenizers", "torch", "transformers")


class RecordError(RuntimeError):
    """A stored record cannot be read."""


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write a file whole or not at all: to a temporary neighbour, flushed to disk, then renamed over the target."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".partial")
    except OSError as error:
        raise type(error)(error.errno, f"cannot write to folder {str(path.parent)!r} ({error.strerror}): choose "
                                       "another one, or mend its permissions or space") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise type(error)(error.errno, f"could not write {str(path)!r} ({error.strerror}); what was there before is "
                                       "untouched. Free some space and run again: what is done is kept") from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def name_of(identity: Mapping) -> str:
    """What a file is named by that holds what an identity (a JSON-able mapping) stands for."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]


class Store:
    """Records in a folder, each under the hash of its identity.

    Parameters
    ----------
    folder : str or Path
        Created when the first record is written.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def path(self, identity: Mapping) -> Path:
        """Where the record of this identity (a JSON-able mapping) is or would be kept."""
        return self.folder / f"{name_of(identity)}.parquet"

    def done(self, identity: Mapping) -> bool:
        """Whether a good record is there; a recorded failure is not one, so it is tried again."""
        path = self.path(identity)
        return path.exists() and not (self.read(path)["status"] == "failed").any()

    def write(self, identity: Mapping, rows: list[Mapping]) -> None:
        """Write the rows of one measurement, identity and provenance included; replaces an earlier record of it."""
        common = {"identity": json.dumps(identity, sort_keys=True), "status": "measured", "reason": "", **provenance()}
        frame = pd.DataFrame([{**common, **row} for row in rows])
        write_atomically(self.path(identity), frame.to_parquet(index=False))

    def claim(self, identity: Mapping) -> FileLock | None:
        """The right to make this record, held until it is released; None while another process has it.

        A lock of the operating system: it ends with the process that holds it, however that ends, and reaches across
        machines on shared storage that keeps such locks (NFS 4, Lustre mounted with flock).
        """
        folder = self.folder / ".claims"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise type(error)(error.errno, f"cannot write to folder {str(self.folder)!r} ({error.strerror}): choose "
                                           "another one, or mend its permissions or space") from error
        lock = FileLock(folder / f"{self.path(identity).stem}.lock", thread_local=False)
        try:
            return lock.acquire(timeout=0).lock
        except Timeout:
            return None

    def table(self, identities: list[Mapping] | None = None) -> pd.DataFrame:
        """All records, or those of the given identities that exist, as one table."""
        paths = sorted(self.folder.glob("*.parquet")) if identities is None else map(self.path, identities)
        frames = [self.read(path) for path in paths if path.exists()]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["status", "reason"])

    @staticmethod
    def read(path: Path, columns: list[str] | None = None) -> pd.DataFrame:
        """One record, or these columns of it. A damaged file raises RecordError, which names it."""
        try:
            return pd.read_parquet(path, columns=columns)
        except Exception as error:
            raise RecordError(f"the record {str(path)!r} is damaged ({type(error).__name__}: {error}). Delete that "
                              "file and run again: it alone is measured anew.") from error


def attempt(measurement: Callable[[], list[Mapping]]) -> list[dict]:
    """Rows of a measurement with its wall time and provenance; a failure is one row with its reason.

    Running out of disk is not a failed measurement: it is raised, and stops the work.
    """
    started = time.perf_counter()
    try:
        rows = measurement()
        if not rows:
            raise ValueError("the measurement returned no rows.")
        return [{**provenance(), **row, "wall_seconds": time.perf_counter() - started} for row in rows]
    except Exception as error:  # whatever went wrong with one checkpoint, the others go on
        if out_of_disk(error):
            raise
        return [{**provenance(), "status": "failed", "reason": f"{type(error).__name__}: {error}"}]


def out_of_disk(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


@cache
def provenance() -> dict[str, str]:
    """What made a record: version of the code and of the packages that decide the numbers, Python, processor."""
    packages = {name: metadata.version(name) for name in RECORDED_PACKAGES}
    return {"code": code_version(), "packages": json.dumps(packages), "python": platform.python_version(),
            "machine": f"{platform.system()} {platform.machine()}, {cores()} cores"}


@cache
def code_version() -> str:
    """Package version and, in a git checkout, the commit (with "+changed" where files differ from it)."""
    version = metadata.version("reptrace")
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit, changed = (
            subprocess.run([*git, *command], capture_output=True, text=True, check=True, timeout=30).stdout.strip()
            for command in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]))
    except (OSError, subprocess.SubprocessError):
        return version
    return f"{version} ({commit}{'+changed' if changed else ''})"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

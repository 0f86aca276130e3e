"""Weights on their way: the next checkpoint is fetched while this one is measured, and each is deleted when measured.

Everything is fetched into a hub cache of reptrace's own, by huggingface_hub, and deleted by its cache API, whole
revisions at a time. What lies complete in the user's own cache is read from there and never touched.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from reptrace.hub import SHA256, Files, HubError, asked, repository_folder

ABANDONED = 600  # seconds without a byte after which a partial file is taken for a killed process's


class ChecksumError(OSError):
    """A downloaded file is not what the hub announced; the message names it."""


def weights_cache() -> Path:
    """Folder that swept weights are fetched into: `reptrace` inside HF_HOME, which on a cluster is often scratch."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "reptrace"


class Downloads:
    """Revisions fetched by one process.

    Parameters
    ----------
    disk : int, optional
        Bytes that may lie on the disk at once. Default: two checkpoints, this one and the next.
    keep : bool, default False
        Leave the weights where they are once they were measured.
    cache : Path, optional
        Default `weights_cache()`.
    """

    def __init__(self, disk: int | None = None, keep: bool = False, cache: Path | None = None):
        self.disk, self.keep, self.cache = disk, keep, cache or weights_cache()
        self._fetching: dict[str, Future] = {}  # by commit
        self._locks: dict[str, FileLock] = {}
        self._mutex, self._one_at_a_time = threading.Lock(), threading.Lock()

    @contextmanager
    def holding(self, wanted: Files, following: Files | None = None) -> Iterator[Path]:
        """The cache that holds a revision, for as long as it is measured; meanwhile the following one is fetched."""
        try:
            cache = self._start(wanted).result()
            if following and following.commit != wanted.commit and self._fits(wanted, following):
                self._start(following)
            yield cache
        finally:
            self.release(wanted.commit)

    def release(self, commit: str) -> None:
        """Delete a revision that was fetched here (whole files of a failed download stay, for the next call)."""
        with self._mutex:
            future, lock = self._fetching.pop(commit, None), self._locks.pop(commit, None)
        done = future is not None and future.done() and not future.exception()
        if done and future.result() == self.cache and not self.keep:
            delete(self.cache, commit)
        if lock is not None:
            lock.release()

    def close(self) -> None:
        """Delete what was fetched and not measured."""
        for commit in list(self._fetching):
            self.release(commit)

    def _start(self, wanted: Files) -> Future:
        with self._mutex:
            if wanted.commit not in self._fetching:
                self._fetching[wanted.commit] = future = Future()
                # a daemon: an interrupted sweep does not wait for the end of a download
                threading.Thread(target=self._run, args=(wanted, future), daemon=True).start()
            return self._fetching[wanted.commit]

    def _run(self, wanted: Files, future: Future) -> None:
        try:
            with self._one_at_a_time:
                future.set_result(self._fetch(wanted))
        except BaseException as error:
            future.set_exception(error)

    def _fits(self, *several: Files) -> bool:
        return self.disk is None or sum(wanted.bytes for wanted in several) <= self.disk

    def _fetch(self, wanted: Files) -> Path:
        """Where the revision now is: the user's cache if it is complete there, else reptrace's own."""
        from huggingface_hub import constants

        users = Path(constants.HF_HUB_CACHE)
        if not missing(users, wanted):
            return users
        if not self._fits(wanted):
            raise ValueError(f"a checkpoint of {wanted.repository!r} takes {wanted.bytes / 1e9:.1f} GB, the disk "
                             f"budget is {self.disk / 1e9:.1f} GB: raise it (disk=, --disk).")
        lock = FileLock(self._lock_path(wanted), thread_local=False)
        lock.acquire()  # another process that measures the same revision here would delete it
        self._locks[wanted.commit] = lock
        self._make_room(wanted)
        fetch(wanted, self.cache)
        return self.cache

    def _lock_path(self, wanted: Files) -> Path:
        path = self.cache / ".in-use" / f"{wanted.commit}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _make_room(self, wanted: Files) -> None:
        """Delete what failed downloads and killed sweeps left behind, and check that the rest will fit."""
        if not self.keep:
            delete_left_behind(self.cache, {*self._fetching, wanted.commit})
        for path in self.cache.glob("models--*/blobs/*.incomplete"):
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > ABANDONED:
                    path.unlink()
        needed = sum(wanted.needed[name][0] for name in missing(self.cache, wanted))
        free = shutil.disk_usage(self.cache).free
        if needed > free:
            raise OSError(errno.ENOSPC, f"{wanted.repository!r} needs {needed / 1e9:.1f} GB more in "
                                        f"{str(self.cache)!r}, {free / 1e9:.1f} GB are free: free some space, or set "
                                        "HF_HOME to a larger disk")


def missing(cache: Path, wanted: Files) -> list[str]:
    """Names of files of a revision that a cache lacks."""
    from huggingface_hub import try_to_load_from_cache

    return [name for name in wanted.needed
            if not isinstance(try_to_load_from_cache(wanted.repository, name, cache, wanted.commit), str)]


def fetch(wanted: Files, cache: Path) -> None:
    """Download what is missing of a revision and check every hash.

    huggingface_hub goes on where a file was cut off, as long as this call lasts; whole files are kept for the next.

    Raises
    ------
    HubError
        The connection was lost for good, or the hub refuses.
    ChecksumError
        Names the file; it is deleted, so that the next call fetches it again.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    before = missing(cache, wanted)
    disable_progress_bars()
    try:
        asked(wanted.repository, lambda: snapshot_download(
            wanted.repository, revision=wanted.commit, cache_dir=cache, allow_patterns=list(wanted.needed),
            max_workers=4), wanted.commit)
    finally:
        enable_progress_bars()
    if still := missing(cache, wanted):
        raise HubError(f"{wanted.repository!r} at {wanted.commit[:12]}: {', '.join(still[:3])} could not be "
                       "downloaded; the next call tries again.")
    for name in before:
        _check(cache, wanted, name)


def delete(cache: Path, commit: str) -> None:
    """Delete one revision from a cache, with the blobs that no other revision needs."""
    from huggingface_hub import scan_cache_dir

    with suppress(KeyError):
        scan_cache_dir(cache).delete_revisions(commit).execute()


def delete_left_behind(cache: Path, wanted: set[str]) -> None:
    """Delete revisions that are neither wanted nor in use by a living process (a killed one holds no lock)."""
    for folder in cache.glob("models--*/snapshots/*"):
        if folder.name in wanted:
            continue
        lock = FileLock(cache / ".in-use" / f"{folder.name}.lock", thread_local=False)
        with suppress(Timeout), lock.acquire(timeout=0):
            delete(cache, folder.name)


def _check(cache: Path, wanted: Files, name: str) -> None:
    size, expected = wanted.needed[name]
    path = repository_folder(cache, wanted.repository) / "snapshots" / wanted.commit / name
    blob = Path(os.path.realpath(path))
    if not expected or not SHA256.fullmatch(expected):
        return
    with open(blob, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        path.unlink()
        blob.unlink(missing_ok=True)
        raise ChecksumError(f"{name} of {wanted.repository!r} at {wanted.commit[:12]} has SHA-256 {found[:12]}..., "
                            f"the hub announced {expected[:12]}... ({size} bytes): it was deleted, the next call "
                            "fetches it again.")

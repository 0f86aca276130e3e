"""Weights on their way: the next checkpoint is fetched while this one is measured, and each is deleted when measured.

Everything is fetched into a hub cache of reptrace's own, by huggingface_hub, and deleted by its cache API, whole
revisions at a time; what a killed process left that belongs to none is deleted file by file. What lies complete in the
user's own cache is read from there and never touched. Models that lie in folders of one commit have a cache each,
inside that one, so that each is a revision which can be deleted by itself.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from filelock import FileLock, Timeout
from tqdm import tqdm

from reptrace.checkpoints.hub import SHA256, Files, HubError, asked, repository_folder

WHOLE = "cache"  # name of the lock of a whole cache
FOLDERS = "folders"  # where in a cache those for folders of repositories are
ABANDONED = 600  # seconds without a byte after which a partial file is taken for a killed process's


class ChecksumError(OSError):
    """A downloaded file is not what the hub announced; the message names it."""


def weights_cache() -> Path:
    """Folder that swept weights are fetched into: `reptrace` inside HF_HOME, which on a cluster is often scratch."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "reptrace"


@dataclass(eq=False)
class _Revision:
    """A revision that is on its way, or there: `future` is the cache it is in; locked while it is in reptrace's own."""

    files: Files
    future: Future = field(default_factory=Future)
    lock: FileLock | None = None
    held: int = 0  # by so many measurements
    dropped: threading.Event = field(default_factory=threading.Event)


class Downloads:
    """Revisions fetched by one process, whose threads may share it.

    Parameters
    ----------
    disk : int, optional
        Bytes that may lie on the disk at once. Default: two checkpoints for each that is measured, this and the next.
    keep : bool, default False
        Leave the weights where they are once they were measured, however many bytes they become.
    cache : Path, optional
        Default `weights_cache()`.
    """

    def __init__(self, disk: int | None = None, keep: bool = False, cache: Path | None = None):
        self.disk, self.keep, self.cache = disk, keep, cache or weights_cache()
        self._revisions: dict[str, _Revision] = {}  # by commit and folder, the oldest first
        self._places = 1  # that were seen to measure at once
        self._changed, self._one_at_a_time = threading.Condition(), threading.Lock()

    @contextmanager
    def holding(self, wanted: Files, following: Files | None = None) -> Iterator[Path]:
        """The cache that holds a revision, for as long as it is measured; meanwhile the following one is fetched."""
        with self._changed:
            revision = self._start(wanted)
            revision.held += 1
            self._drop_stale()
        try:
            cache = revision.future.result()
            with self._changed:
                if following and self._fits(following, [each for each in self._revisions.values() if self._counts(each)
                                                        and each.files.revision != following.revision]):
                    self._start(following)
            yield cache
        finally:
            with self._changed:
                revision.held -= 1
                if not revision.held:
                    self._drop(revision)

    def close(self) -> None:
        """Delete what was fetched and not measured, and end what is on its way."""
        with self._changed:
            for revision in [each for each in self._revisions.values() if not each.held]:
                self._drop(revision)

    def _start(self, files: Files) -> _Revision:
        if files.revision not in self._revisions:
            self._revisions[files.revision] = revision = _Revision(files)
            threading.Thread(target=self._run, args=(revision,), daemon=True).start()
        return self._revisions[files.revision]

    def _run(self, revision: _Revision) -> None:
        with self._one_at_a_time:
            cache = error = None
            try:
                cache = self._fetch(revision)
            except BaseException as caught:
                error = caught
            with self._changed:
                revision.future.set_exception(error) if error else revision.future.set_result(cache)
                if revision.dropped.is_set():
                    self._delete(revision)

    def _drop(self, revision: _Revision) -> None:
        """Forget a revision: delete it, or have its download end."""
        self._revisions.pop(revision.files.revision)
        revision.dropped.set()
        if revision.future.done():
            self._delete(revision)
        self._changed.notify_all()

    def _drop_stale(self) -> None:
        """Drop what an earlier sweep had fetched ahead: each other place that measures has one ahead at most."""
        held = [each for each in self._revisions.values() if each.held]
        idle = [each for each in self._revisions.values() if not each.held]
        self._places = max(self._places, len(held))
        for revision in idle[: max(0, len(idle) - self._places + 1)]:
            self._drop(revision)

    def _delete(self, revision: _Revision) -> None:
        """Delete a revision that was fetched here (whole files of a failed download stay, for the next call)."""
        if revision.lock is not None:
            try:
                if not self.keep and not revision.future.exception():
                    delete(cache_for(revision.files, self.cache), revision.files.commit)
            finally:
                revision.lock.release()

    def _counts(self, revision: _Revision) -> bool:
        """Whether a revision lies in reptrace's own cache, or may come to lie there."""
        return not revision.future.done() or revision.lock is not None

    def _fits(self, wanted: Files, others: list[_Revision]) -> bool:
        return self.disk is None or wanted.bytes + sum(each.files.bytes for each in others) <= self.disk

    def _fetch(self, revision: _Revision) -> Path:
        """Where the revision now is: the user's cache if it is complete there, else reptrace's own."""
        from huggingface_hub import constants

        wanted, users = revision.files, Path(constants.HF_HUB_CACHE)
        if not missing(users, wanted):
            return users
        if not self._fits(wanted, []):
            raise ValueError(f"a checkpoint of {wanted.repository!r} takes {wanted.bytes / 1e9:.1f} GB, the disk "
                             f"budget is {self.disk / 1e9:.1f} GB: raise it (disk=, --disk).")
        cache = cache_for(wanted, self.cache)
        lock = _lock(cache, wanted.commit)  # another process that measures the same revision here would delete it
        try:
            lock.acquire(cancel_check=revision.dropped.is_set)
        except Timeout:
            raise _unwanted(wanted) from None
        revision.lock = lock
        self._make_room(revision, cache)
        fetch(wanted, cache, revision.dropped)
        return cache

    def _make_room(self, revision: _Revision, cache: Path) -> None:
        """Wait for the budget, delete what failed downloads and killed sweeps left, and look at the disk's free space.
        """
        wanted = revision.files
        with self._changed:
            while not self.keep and not revision.dropped.is_set():
                others = [each for each in self._revisions.values() if each.lock and each is not revision]
                if self._fits(wanted, others):
                    break
                idle = [each for each in others if not each.held]
                self._drop(idle[0]) if idle else self._changed.wait()
            mine = [wanted, *(each.files for each in self._revisions.values() if each.lock)]
        if not self.keep:
            for each in [self.cache, *self.cache.glob(f"{FOLDERS}/*")]:
                delete_left_behind(each, {files.commit for files in mine if cache_for(files, self.cache) == each})
        needed = sum(wanted.needed[name][0] for name in missing(cache, wanted))
        free = shutil.disk_usage(cache).free
        if needed > free:
            raise OSError(errno.ENOSPC, f"{wanted.repository!r} needs {needed / 1e9:.1f} GB more in "
                                        f"{str(cache)!r}, {free / 1e9:.1f} GB are free: free some space, or set "
                                        "HF_HOME to a larger disk")


def cache_for(wanted: Files, cache: Path) -> Path:
    """The cache that a revision is fetched into: `cache`, or the one in it for folders of that name."""
    return cache / FOLDERS / quote(wanted.folder, safe="") if wanted.folder else cache


def missing(cache: Path, wanted: Files) -> list[str]:
    """Names of files of a revision that a cache lacks."""
    from huggingface_hub import try_to_load_from_cache

    return [name for name in wanted.needed
            if not isinstance(try_to_load_from_cache(wanted.repository, name, cache, wanted.commit), str)]


def fetch(wanted: Files, cache: Path, dropped: threading.Event | None = None) -> None:
    """Download what is missing of a revision and check every hash, also of what was there.

    huggingface_hub goes on where a file was cut off, as long as this call lasts; whole files are kept for the next.
    Once `dropped` is set the download ends.

    Raises
    ------
    HubError
        The connection was lost for good, or the hub refuses.
    ChecksumError
        Names the file; it is deleted, so that the next call fetches it again.
    """
    from huggingface_hub import hf_hub_download

    class Progress(tqdm):  # huggingface_hub tells it of every piece
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **{**options, "disable": True})

        def update(self, n=1):
            if dropped and dropped.is_set():
                raise _unwanted(wanted)

    def one(name: str) -> None:
        Progress().update()
        asked(wanted.repository, lambda: hf_hub_download(
            wanted.repository, name, revision=wanted.commit, cache_dir=cache, tqdm_class=Progress), wanted.commit)

    for _ in range(2):  # once more where a file that was there has just gone with another revision
        with _lock(cache):  # its repository's folder would go with the last revision in it
            _snapshot(cache, wanted).mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(one, missing(cache, wanted)))
        with _lock(cache):
            still = missing(cache, wanted)
        if not still:
            break
    else:
        raise HubError(f"{wanted.repository!r} at {wanted.commit[:12]}: {', '.join(still[:3])} could not be "
                       "downloaded; the next call tries again.")
    for name in wanted.needed:
        _check(cache, wanted, name)


def delete(cache: Path, commit: str) -> None:
    """Delete one revision from a cache, with the blobs that no other revision needs."""
    with _lock(cache):
        _delete(cache, commit)


def delete_left_behind(cache: Path, mine: set[str]) -> None:
    """Delete what failed downloads and killed processes left, which hold no lock.

    That is every revision but `mine` and those that living processes use, and, where there is none of these, partial
    files and blobs that belong to no revision. Elsewhere partial files go once they are old.
    """
    with _lock(cache):
        left = {folder.name for folder in cache.glob("models--*/snapshots/*")}
        known = left | {path.stem for path in (cache / ".in-use").glob("*.lock")}
        used = {commit for commit in known - mine - {WHOLE} if not _free(cache, commit)}
        for commit in left - mine - used:
            _delete(cache, commit)
        belonging = {_blob(path) for path in cache.glob("models--*/snapshots/*/**/*") if path.is_symlink()}
        belonging |= {Path(os.path.realpath(blob)) for blob in belonging}  # a store that repositories share
        shared = {path for path in cache.glob("blobs/??/*") if SHA256.fullmatch(path.name)}
        for blob in {*cache.glob("models--*/blobs/*"), *shared} - belonging:
            with suppress(FileNotFoundError):
                if not used or (blob.suffix == ".incomplete" and time.time() - blob.stat().st_mtime > ABANDONED):
                    blob.unlink()


def _delete(cache: Path, commit: str) -> None:
    from huggingface_hub import scan_cache_dir

    for link in cache.glob("models--*/snapshots/*/**/*"):
        if not link.exists():  # its blob is gone: the scan would pass over the whole repository
            link.unlink(missing_ok=True)
    found = scan_cache_dir(cache)
    if any(revision.commit_hash == commit for repository in found.repos for revision in repository.revisions):
        with suppress(KeyError):
            found.delete_revisions(commit).execute()


def _unwanted(wanted: Files) -> HubError:
    return HubError(f"{wanted.repository!r} at {wanted.commit[:12]} is no longer wanted: its download was ended.")


def _lock(cache: Path, commit: str = WHOLE) -> FileLock:
    """The lock of a revision in a cache, or that of short work on the whole cache: the system's, gone with its process.
    """
    path = cache / ".in-use" / f"{commit}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path, thread_local=False)


def _free(cache: Path, commit: str) -> bool:
    with suppress(Timeout), _lock(cache, commit).acquire(timeout=0):
        return True
    return False


def _snapshot(cache: Path, wanted: Files) -> Path:
    return repository_folder(cache, wanted.repository) / "snapshots" / wanted.commit


def _blob(link: Path) -> Path:
    return Path(os.path.abspath(link.parent / os.readlink(link)))


def _check(cache: Path, wanted: Files, name: str) -> None:
    size, expected = wanted.needed[name]
    if not expected or not SHA256.fullmatch(expected):
        return
    path = _snapshot(cache, wanted) / name
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        with _lock(cache):
            blob = os.path.realpath(path)
            for link in [*repository_folder(cache, wanted.repository).rglob("*"), Path(blob)]:
                if os.path.realpath(link) == blob:  # links of other revisions too
                    link.unlink(missing_ok=True)
        raise ChecksumError(f"{name} of {wanted.repository!r} at {wanted.commit[:12]} has SHA-256 {found[:12]}..., "
                            f"the hub announced {expected[:12]}... ({size} bytes): it was deleted, the next call "
                            "fetches it again.")

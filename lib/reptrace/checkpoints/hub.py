"""What the hub, or a cache of it, says of a repository: its branches, their commits, the files of a commit.

Answers come with their reason when there is none: a repository that is gated, missing or out of reach. Short failures
(rate limits, server errors, lost connections) are tried again, with waits that grow.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tqdm import tqdm

from reptrace.checkpoints import gguf_files
from reptrace.checkpoints.weights import SMALL, WeightsError, read_json, weight_files
from reptrace.support.arguments import near, near_folders

SHA256 = re.compile(r"[0-9a-f]{64}")
COMMIT = re.compile(r"[0-9a-f]{40}")
ATTEMPTS, LONGEST_WAIT = 5, 600  # of one request; seconds between two (the hub counts requests by 5 minutes)
# When one thread loses its connection, the client closes what all of them share, and may have none for a moment.
CLOSED = re.compile("has been closed|'NoneType' object has no attribute '(request|stream|get)'")
ANSWER = 60  # seconds to wait for one; huggingface_hub's own client would wait for ever, but for files


class HubError(RuntimeError):
    """The hub has no such repository, refuses it, or cannot be reached; the message says which and what to try."""


@dataclass(frozen=True, eq=False)
class Files:
    """The files of one commit that opening the model needs: name -> (bytes, SHA-256 where the hub states one)."""

    repository: str
    commit: str
    needed: Mapping[str, tuple[int, str | None]]
    weight_names: frozenset[str] = frozenset()

    @property
    def bytes(self) -> int:
        return sum(size for size, _ in self.needed.values())

    @property
    def weights(self) -> frozenset[tuple[str, str]]:
        """Names and hashes of the weight files: two commits with the same ones have the same weights."""
        named = ((name, self.needed[name][1]) for name in self.weight_names)
        return frozenset((name, digest) for name, digest in named if digest)


def branches(repository: str, cache_dir: str | Path | None = None) -> dict[str, str]:
    """Branch -> commit hash: of a cache if `cache_dir` is given, else of the hub. Empty where a cache has none.

    Raises
    ------
    HubError
        The hub does not answer, does not know the repository or refuses it.
    """
    if cache_dir is not None:
        refs = repository_folder(cache_dir, repository) / "refs"
        files = [path for path in refs.rglob("*") if path.is_file()] if refs.is_dir() else []
        return {str(path.relative_to(refs)): path.read_text().strip() for path in files}
    listed = asked(repository, lambda: _refs(repository))["branches"]
    return {branch["name"]: branch["targetCommit"] for branch in listed}


def commit_of(repository: str, revision: str | None = None, cache_dir: str | Path | None = None) -> str:
    """Commit hash that a revision stands for, on the hub or, out of its reach, in the cache; itself if in neither."""
    from huggingface_hub import constants

    revision = revision or "main"
    if COMMIT.fullmatch(revision):
        return revision
    if cache_dir is None and not constants.HF_HUB_OFFLINE:
        with suppress(HubError):  # no network, or no such revision: opening the model says which
            return _info(repository, revision).sha
    ref = repository_folder(cache_dir or constants.HF_HUB_CACHE, repository) / "refs" / revision
    return ref.read_text().strip() if ref.is_file() else revision


def repository_folder(cache_dir: str | Path, repository: str) -> Path:
    """Folder of a repository inside a hub cache."""
    return Path(cache_dir) / ("models--" + repository.replace("/", "--"))


def reachable() -> bool:
    """Whether the hub may be asked at all (HF_HUB_OFFLINE is not set)."""
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE


def files(repository: str, revision: str) -> Files:
    """Files of a commit that opening its model needs, with sizes and hashes, as `weights.weight_files` finds them."""
    return _files(repository, revision if COMMIT.fullmatch(revision) else _info(repository, revision).sha)


@lru_cache(maxsize=4096)  # a commit never changes
def _files(repository: str, commit: str) -> Files:
    siblings = _info(repository, commit, files_metadata=True).siblings or []
    listed = {s.rfilename: (s.size or 0, s.lfs.sha256 if s.lfs else None) for s in siblings}
    try:
        chosen = weight_files(listed, lambda name: _json(repository, commit, name))
    except (FileNotFoundError, WeightsError) as error:
        raise HubError(f"{repository!r} at {commit[:12]} cannot be opened: {error}") from error
    needed = {*chosen, *(name for name in listed if SMALL.fullmatch(name))}
    return Files(repository, commit, {name: listed[name] for name in sorted(needed)}, frozenset(chosen))


def _json(repository: str, commit: str, name: str) -> dict:
    """The content of a small file of a commit."""
    from huggingface_hub import hf_hub_download

    with tempfile.TemporaryDirectory() as folder:
        path = asked(repository, lambda: hf_hub_download(repository, name, revision=commit, local_dir=folder), commit)
        return read_json(Path(path))


def files_of_all(pairs: Iterable[tuple[str, str]], progress: bool = True) -> dict[tuple[str, str], Files | HubError]:
    """`files` of many (repository, commit) pairs, eight requests at a time; an error stands in its place."""
    pairs = list(dict.fromkeys(pairs))

    def ask(pair):
        try:
            return files(*pair)
        except HubError as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        bar = tqdm(pool.map(ask, pairs), total=len(pairs), desc="comparing files", unit="revision", leave=False,
                   disable=not progress or len(pairs) < 8)
        return dict(zip(pairs, bar, strict=True))


def checked_name(name: str) -> str:
    """A model's name as it is, or the folder that "~" in it stands for; of a folder with one GGUF file, that file's.

    Raises
    ------
    FileNotFoundError
        It can only be a path, and there is no such folder: says which ones are like it.
    GGUFError
        A folder with several GGUF files.
    """
    if not name.strip():
        raise ValueError("a model is named by its folder or its repository (OWNER/NAME), got an empty name.")
    try:
        path = Path(name).expanduser()
    except RuntimeError:  # no such user
        path = Path(name)
    if path.is_dir():
        return str(gguf_files.in_folder(path) or (path if name.startswith("~") else name))
    if gguf_files.is_gguf(path):
        return str(path) if name.startswith("~") else name
    if path.is_file():
        raise FileNotFoundError(f"{name!r} is a file; a model is the folder that holds it with its config.json: "
                                f"{str(path.parent)!r}. (A GGUF file would be one by itself; this is none.)")
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or name.endswith("/") or "\\" in name:
        raise FileNotFoundError(f"there is no folder {name!r}.{near_folders(path)}")
    return name


def _info(repository: str, revision: str, **options):
    from huggingface_hub import HfApi

    return asked(repository, lambda: HfApi().model_info(repository, revision=revision, timeout=ANSWER, **options),
                 revision)


def _refs(repository: str) -> dict:
    """What `HfApi().list_repo_refs` asks for, which takes no time limit."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    response = get_session().get(f"{constants.ENDPOINT}/api/models/{repository}/refs", headers=build_hf_headers(),
                                 timeout=ANSWER)
    hf_raise_for_status(response)
    return response.json()


def asked(repository: str, request: Callable, revision: str | None = None):
    """The answer to a request, tried again after short failures; every other failure of the hub as a HubError.

    What is wrong with this machine (no space left, no permission) is let through as it is.
    """
    import httpx2
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from tenacity import Retrying, retry_if_exception, stop_after_attempt

    def short(error) -> bool:
        if isinstance(error, HfHubHTTPError):
            return error.response.status_code == 429 or error.response.status_code >= 500
        return isinstance(error, httpx2.TransportError) and not isinstance(error, httpx2.ConnectError)

    def plain():
        try:
            return request()
        except LocalEntryNotFoundError as error:  # looked for in the cache only after this had gone wrong
            raise error.__cause__ or error from None
        except (RuntimeError, AttributeError) as error:
            if not CLOSED.search(str(error)):
                raise
            raise httpx2.ReadError(str(error)) from error

    at = f"{repository!r}{f' at revision {revision!r}' if revision else ''}"
    try:
        return Retrying(retry=retry_if_exception(short), stop=stop_after_attempt(ATTEMPTS), wait=_wait,
                        reraise=True)(plain)
    except GatedRepoError as error:
        raise HubError(f"{at} is gated: accept its terms on its page, then log in (`hf auth login`) or set "
                       "HF_TOKEN.") from error
    except RevisionNotFoundError as error:
        raise HubError(f"{repository!r} has no revision {revision!r}.{_near_revisions(repository, revision)}"
                       ) from error
    except OfflineModeIsEnabled as error:
        raise HubError(f"{at} was not looked up: HF_HUB_OFFLINE is set.") from error
    except HfHubHTTPError as error:
        code = error.response.status_code
        unknown = code == 401 or isinstance(error, RepositoryNotFoundError)
        known = "the hub knows no such repository, or not with this token" if unknown else f"code {code}"
        raise HubError(f"{at}: {known}.") from error
    except (httpx2.HTTPError, OSError) as error:
        if isinstance(error, OSError) and error.errno and not isinstance(error, (ConnectionError, TimeoutError)):
            raise
        raise HubError(f"{at}: the connection to the hub failed ({type(error).__name__}: {error}).") from error


def _wait(state) -> float:
    """Seconds before the next attempt: 1, 2, 4, ..., or what the hub asks for, up to LONGEST_WAIT."""
    from huggingface_hub.utils import parse_ratelimit_headers

    response = getattr(state.outcome.exception(), "response", None)
    headers = response.headers if response is not None else {}
    stated, limit = headers.get("Retry-After", ""), parse_ratelimit_headers(headers)
    asked_for = float(stated) if stated.isdigit() else limit.reset_in_seconds if limit and not limit.remaining else 0
    return min(LONGEST_WAIT, max(2.0 ** (state.attempt_number - 1), asked_for))


def _near_revisions(repository: str, revision: str) -> str:
    try:
        return near(revision, branches(repository))
    except HubError:
        return ""

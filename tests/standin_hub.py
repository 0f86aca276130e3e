"""A stand-in for the Hugging Face Hub on loopback, to which HF_ENDPOINT points the real client libraries.

It answers what huggingface_hub, transformers and datasets ask when they read: refs, info, trees, paths-info and files,
large ones by a redirect to a second port, as the hub redirects to its CDN (the client treats a redirect within one
host differently). Repositories are put in from Python; faults can be ordered; every request is kept in a log. Xet,
which the hub also offers, is not spoken: tests run with HF_HUB_DISABLE_XET. The fixture `hub` (conftest.py) opens it
for a test, and tests/test_standin_hub.py holds it against the real client.
"""

import hashlib
import io
import json
import math
import re
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache, cached_property
from http.server import BaseHTTPRequestHandler
from pathlib import Path, PurePosixPath
from socketserver import ThreadingTCPServer
from urllib.parse import parse_qs, quote, unquote

from limits import NeverWaiting, serve, stop

LARGE = (".safetensors", ".bin", ".parquet")  # kept as LFS files, as on the hub
DATE = "2023-02-13T14:00:00.000Z"
API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(refs|revision|tree|paths-info)(?:/([^/]+))?(?:/(.+))?)?")
RESOLVE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
LFS = re.compile(r"/lfs/([0-9a-f]{64})/(.*)")
RANGE = re.compile(r"bytes=(\d*)-(\d*)")
FAULTS = ("slow", "silent", "cut", "drop", "busy", "error", "missing", "gated", "corrupt")


@dataclass(frozen=True)
class File:
    """Content of a file with the names that git and LFS give it."""

    content: bytes
    large: bool

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def blob(self) -> bytes:
        """What git itself keeps: of a large file only a pointer."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        return pointer.encode() if self.large else self.content

    @cached_property
    def oid(self) -> str:
        return hashlib.sha1(b"blob %d\0%s" % (len(self.blob), self.blob)).hexdigest()

    def metadata(self, checksum: str) -> dict:
        """Size and LFS entry; the hub calls the checksum "sha256" in an info and "oid" in a tree."""
        lfs = {checksum: self.sha256, "size": len(self.content), "pointerSize": len(self.blob)}
        return {"size": len(self.content), **({"lfs": lfs} if self.large else {})}


@dataclass
class Fault:
    """An order to misbehave; see `StandinHub.fault`."""

    kind: str
    patterns: tuple[str, str, str, str]
    times: float
    value: float


@dataclass
class Request:
    """One line of the log: `range` as asked for (None: the whole), `status` 0 for no answer, `sent` bytes of body."""

    method: str
    path: str
    range: str | None
    status: int
    sent: int = 0


class Refusal(Exception):
    """An answer other than the thing asked for; `code` is the X-Error-Code that the client goes by."""

    def __init__(self, status: int, code: str = "", message: str = "", **headers: str):
        super().__init__(message)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.headers |= {"X-Error-Code": code} if code else {}


class StandinHub:
    """Repositories, faults and the log, served on two ports while `up`; otherwise connections are refused.

    Attributes
    ----------
    endpoint : str
        For HF_ENDPOINT. The port is held from the start to the end of the process.
    requests : list of Request, in the order of the answers.
    waits : list of float
        Seconds that the client libraries meant to sleep before another try; the fixture `hub` fills it.
    """

    def __init__(self):
        self.lock = threading.Lock()
        self.servers = [self._bound(0), self._bound(0)]
        self.endpoint, self.cdn = (f"http://127.0.0.1:{server.server_address[1]}" for server in self.servers)
        self.clear()

    def clear(self) -> None:
        """No repositories, no faults, an empty log."""
        self.branches: dict[tuple[str, str], dict[str, str]] = {}  # (kind, repository) -> branch -> commit
        self.commits: dict[tuple[str, str], dict[str, tuple[str, dict[str, File]]]] = {}  # -> commit -> branch, files
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.waits: list[float] = []

    def put(self, repository: str, branch: str, files: dict[str, bytes], kind: str = "models") -> str:
        """Commit `files` (name -> content, all there are) on a branch of one of the "models" or "datasets".

        Returns the commit. Earlier commits of the branch stay to be had by their hash, as in git.
        """
        kept = {name: File(content, name.endswith(LARGE)) for name, content in files.items()}
        listing = [(name, file.oid) for name, file in sorted(kept.items())]
        commit = hashlib.sha1(repr((kind, repository, branch, listing)).encode()).hexdigest()
        self.branches.setdefault((kind, repository), {})[branch] = commit
        self.commits.setdefault((kind, repository), {})[commit] = branch, kept
        return commit

    def fault(self, kind: str, repository: str = "*", branch: str = "*", file: str = "*", method: str = "*",
              times: float = math.inf, value: float | None = None) -> None:
        """Order a fault for the next `times` requests that fit the patterns (fnmatch).

        In requests of the API `file` is "": the pattern "" means those alone, "?*" files alone.

        slow : the body comes at `value` bytes a second
        silent : no answer for `value` seconds, then the connection closes
        cut : the connection closes after the share `value` of the body, default half
        drop : the connection closes without any answer
        busy : 429 with Retry-After of `value` seconds, default 0
        error : status `value`, default 500
        missing : 404, the branch does not exist (refs list it all the same)
        gated : files are refused, 401 without and 403 with a token; info and trees are public, as on the hub
        corrupt : a large file of the right length, one byte of which is not what its sha256 announces
        """
        if kind not in FAULTS:
            raise ValueError(f"a fault is one of {', '.join(FAULTS)}, got {kind!r}.")
        value = {"cut": 0.5, "busy": 0, "error": 500}.get(kind, math.nan) if value is None else value
        self.faults.append(Fault(kind, (method, repository, branch, file), times, value))

    def fetched(self, name: str) -> list[Request]:
        """The log's GET requests of a file, those that were only redirected left out."""
        return [request for request in self.requests if request.method == "GET" and request.status != 302
                and unquote(request.path).endswith(f"/{name}")]

    def strike(self, kind: str, asked: tuple[str, str, str, str]) -> Fault | None:
        """The first order of this kind that fits (method, repository, branch, file), counted as carried out."""
        with self.lock:
            for fault in self.faults:
                if fault.kind == kind and fault.times > 0 and all(map(fnmatchcase, asked, fault.patterns)):
                    fault.times -= 1
                    return fault
        return None

    @contextmanager
    def up(self):
        """Serve until the block ends."""
        self._start()
        try:
            yield self
        finally:
            self._stop()

    @contextmanager
    def down(self):
        """Refuse connections until the block ends; for a server that is up."""
        self._stop()
        try:
            yield
        finally:
            self._start()

    def _bound(self, port: int) -> "Server":
        """A server that holds a port but does not listen: connections are refused."""
        server = Server(("127.0.0.1", port), Handler, bind_and_activate=False)
        server.hub = self
        server.server_bind()
        return server

    def _start(self) -> None:
        for server in self.servers:
            server.server_activate()
        self.threads = [serve(server) for server in self.servers]

    def _stop(self) -> None:
        for number, (server, thread) in enumerate(zip(self.servers, self.threads, strict=True)):
            stop(server, thread)
            self.servers[number] = self._bound(server.server_address[1])


class Server(NeverWaiting, ThreadingTCPServer):
    allow_reuse_address = True
    request_queue_size = 64  # a snapshot opens many connections at once
    hub: StandinHub


class Handler(BaseHTTPRequestHandler):
    """One request, one connection (HTTP/1.0): a hub that goes down leaves none open."""

    def do_GET(self) -> None:
        self.hub, self.asked = self.server.hub, (self.command, "", "", "")
        path, _, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.query = parse_qs(query) | parse_qs(body.decode())
        with suppress(ConnectionError):  # the client hung up
            try:
                if match := API.fullmatch(path):
                    self.api(*(unquote(part) if part else "" for part in match.groups()))
                elif match := RESOLVE.fullmatch(path):
                    self.resolve("datasets" if match[1] else "models", *map(unquote, match.groups()[1:]))
                elif match := LFS.fullmatch(path):
                    self.large(match[1], *map(unquote, match[2].split("/")))
                else:
                    raise Refusal(404, message="Not Found")
            except Refusal as refusal:
                self.send(refusal.status, json.dumps({"error": str(refusal)}).encode(), refusal.headers)

    do_HEAD = do_POST = do_GET

    def log_message(self, *_) -> None:
        """The log is `hub.requests`."""

    def api(self, kind: str, repository: str, what: str, revision: str, path: str) -> None:
        commit, files = self.begin(kind, repository, "" if what == "refs" else revision or "main", "")
        answer = {"refs": lambda: self.refs(self.hub.branches[kind, repository]),
                  "tree": lambda: self.tree(commit, files, path),
                  "paths-info": lambda: self.paths_info(commit, files),
                  }.get(what, lambda: self.info(repository, commit, files))()
        self.send(200, json.dumps(answer).encode(), {"Content-Type": "application/json; charset=utf-8"})

    def refs(self, branches: dict[str, str]) -> dict:
        heads = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}
                 for name, commit in branches.items()]
        return {"branches": heads, "converts": [], "tags": []}

    def info(self, repository: str, commit: str, files: dict[str, File]) -> dict:
        gated = any(fault.kind == "gated" and fnmatchcase(repository, fault.patterns[1]) for fault in self.hub.faults)
        siblings = [{"rfilename": name, **({"blobId": file.oid, **file.metadata("sha256")} if self.on("blobs") else {})}
                    for name, file in files.items()]
        return {"id": repository, "sha": commit, "lastModified": DATE, "private": False, "disabled": False,
                "gated": "auto" if gated else False, "tags": [], "siblings": siblings}

    def tree(self, commit: str, files: dict[str, File], path: str) -> list[dict]:
        inside = [entry for entry in self.entries(commit, files) if not path or entry["path"].startswith(f"{path}/")]
        if path and not inside:
            raise Refusal(404, "EntryNotFound", f"{path} does not exist")
        depth = path.count("/") + bool(path)
        return [entry for entry in inside if self.on("recursive") or entry["path"].count("/") == depth]

    def paths_info(self, commit: str, files: dict[str, File]) -> list[dict]:
        return [entry for entry in self.entries(commit, files) if entry["path"] in self.query.get("paths", [])]

    def entries(self, commit: str, files: dict[str, File]) -> list[dict]:
        """Folders and files of a commit as a tree lists them."""
        last = {"lastCommit": {"id": commit, "title": "Upload", "date": DATE}} if self.on("expand") else {}
        folders = sorted({str(folder) for name in files for folder in PurePosixPath(name).parents} - {"."})
        return [
            *({"type": "directory", "oid": hashlib.sha1(folder.encode()).hexdigest(), "size": 0, "path": folder, **last}
              for folder in folders),
            *({"type": "file", "oid": file.oid, "path": name, **file.metadata("oid"), **last}
              for name, file in files.items()),
        ]

    def resolve(self, kind: str, repository: str, revision: str, name: str) -> None:
        """A small file, or where a large one is."""
        commit, files = self.begin(kind, repository, revision, name)
        if self.strike("gated"):
            raise Refusal(403 if self.headers["Authorization"] else 401, "GatedRepo", f"{repository} is restricted.")
        if name not in files:
            raise Refusal(404, "EntryNotFound", "Entry not found", X_Repo_Commit=commit)
        file, headers = files[name], {"X-Repo-Commit": commit, "ETag": f'"{files[name].oid}"'}
        if not file.large:
            return self.send_content(file.content, headers)
        whose = "/".join(quote(part, safe="") for part in (kind, repository, commit, name))
        return self.send(302, b"", headers | {
            "X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content)),
            "Location": f"{self.hub.cdn}/lfs/{file.sha256}/{whose}"})

    def large(self, sha256: str, kind: str, repository: str, commit: str, name: str) -> None:
        """A large file; the path says whose it is, as a signed address does, so that the faults find it."""
        _, files = self.begin(kind, repository, commit, name)
        content = bytearray(files[name].content)
        if self.strike("corrupt"):
            content[-1] ^= 255
        self.send_content(bytes(content), {"ETag": f'"{sha256}"'})

    def begin(self, kind: str, repository: str, revision: str, file: str) -> tuple[str, dict[str, File]]:
        """Commit and files at a revision (a branch or a commit; "" for none), after the faults that forestall both."""
        branches, commits = (by.get((kind, repository), {}) for by in (self.hub.branches, self.hub.commits))
        commit = branches.get(revision, revision)
        branch, files = commits.get(commit, (revision, {}))
        self.asked = self.command, repository, branch, file
        if silent := self.strike("silent"):
            time.sleep(silent.value)
            raise ConnectionAbortedError
        if self.strike("drop"):
            self.hub.requests.append(Request(self.command, self.path, self.headers["Range"], 0))
            raise ConnectionAbortedError
        if busy := self.strike("busy"):
            raise Refusal(429, message="Too many requests", Retry_After=f"{busy.value:.0f}")
        if error := self.strike("error"):
            raise Refusal(int(error.value), message="Internal error")
        if not branches:
            raise Refusal(404 if self.headers["Authorization"] else 401, "RepoNotFound", "Repository not found")
        if revision and (commit not in commits or self.strike("missing")):
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit, files

    def strike(self, kind: str) -> Fault | None:
        return self.hub.strike(kind, self.asked)

    def on(self, option: str) -> bool:
        return self.query.get(option, [""])[0].lower() in ("true", "1")

    def send_content(self, content: bytes, headers: dict) -> None:
        """A file, or the part of it that a Range header asks for."""
        size, headers = len(content), headers | {"Accept-Ranges": "bytes"}
        match = RANGE.fullmatch(self.headers["Range"] or "")
        if not match:
            return self.send(200, content, headers)
        first, last = match.groups()
        start, stop = (int(first), min(int(last or size) + 1, size)) if first else (max(size - int(last), 0), size)
        if start >= size:
            raise Refusal(416, message="Range not satisfiable", Content_Range=f"bytes */{size}")
        return self.send(206, content[start:stop], headers | {"Content-Range": f"bytes {start}-{stop - 1}/{size}"})

    def send(self, status: int, body: bytes, headers: dict) -> None:
        """The answer, and its line in the log; the body slowly or not wholly if so ordered."""
        line = Request(self.command, self.path, self.headers["Range"], status)
        self.hub.requests.append(line)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD" or not body:
            return
        cut, slow = self.strike("cut"), self.strike("slow")
        stop = int(cut.value * len(body)) if cut else len(body)
        step = max(1, int(slow.value / 20)) if slow else 2**16
        for start in range(0, stop, step):
            piece = body[start : min(start + step, stop)]
            if slow:
                time.sleep(len(piece) / slow.value)
            line.sent += len(piece)  # before it goes: the client may read the log as soon as it has the last byte
            self.wfile.write(piece)


# What to put in


VOCABULARY = 300
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
         "num_attention_heads": 4, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 0,
         "pad_token_id": 1}


@cache
def _template(family: str) -> tuple[bytes, dict]:
    """config.json and initial weights of a tiny model of a transformers family ("gpt_neox", "olmo2", "llama")."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.random.fork_rng():  # a test draws the same numbers whether or not it is the first to come here
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES))
    model.config.architectures = [type(model).__name__]
    return model.config.to_json_string().encode(), model.state_dict()


def tiny_state(family: str, seed: int) -> dict:
    """Weights of a tiny model, name -> tensor: the initial ones and noise, another for every seed."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return {name: value + 0.1 * torch.randn(value.shape, generator=generator)
            for name, value in _template(family)[1].items()}


@cache
def tiny_model(family: str = "gpt_neox", seed: int = 0, weights: str = "safetensors", shards: int = 1) -> dict:
    """Files of a tiny model, its weights as "safetensors" or "bin", in one file or in several with an index."""
    import torch
    from safetensors.torch import save

    def dumped(part: dict) -> bytes:
        if weights == "safetensors":
            return save(part, metadata={"format": "pt"})
        torch.save(part, buffer := io.BytesIO())
        return buffer.getvalue()

    state, stem = tiny_state(family, seed), {"safetensors": "model", "bin": "pytorch_model"}[weights]
    files = {"config.json": _template(family)[0]}
    if shards == 1:
        return files | {f"{stem}.{weights}": dumped(state)}
    place = {name: f"{stem}-{number % shards + 1:05d}-of-{shards:05d}.{weights}" for number, name in enumerate(state)}
    for shard in sorted(set(place.values())):
        files[shard] = dumped({name: state[name] for name in state if place[name] == shard})
    index = {"metadata": {"total_size": sum(value.nbytes for value in state.values())}, "weight_map": place}
    return files | {f"{stem}.{weights}.index.json": json.dumps(index).encode()}


@cache
def tiny_tokenizer(pad: bool = True) -> dict:
    """Files of a byte-level BPE tokenizer; without `pad` it has no pad token, as Pythia's has none."""
    from reptrace.texts.corpora import train_tokenizer

    tokenizer = train_tokenizer(["the quick brown fox jumps over the lazy dog " * 8], VOCABULARY)
    if not pad:
        tokenizer.pad_token = None
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


FINEWEB_CARD = """---
license: odc-by
language:
- en
pretty_name: FineWeb
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*/*
- config_name: sample-10BT
  data_files:
  - split: train
    path: sample/10BT/*
---
# FineWeb
"""


def fineweb(documents: list[str], shards: int = 1, row_group: int = 100) -> dict[str, bytes]:
    """Files of a dataset laid out as HuggingFaceFW/fineweb is, with `documents` as its sample-10BT, in that order."""
    each = math.ceil(len(documents) / shards)
    parts = {f"sample/10BT/{number:03d}_00000.parquet": documents[number * each : (number + 1) * each]
             for number in range(shards)}
    parts["data/CC-MAIN-2013-20/000_00000.parquet"] = ["of the default configuration"]
    return {"README.md": FINEWEB_CARD.encode(), **{name: _parquet(part, row_group) for name, part in parts.items()}}


def _parquet(documents: list[str], row_group: int) -> bytes:
    import pyarrow
    from pyarrow import parquet

    dump = "CC-MAIN-2013-20"
    rows = [{"text": text, "id": f"<urn:uuid:{number:08d}>", "dump": dump, "url": f"http://example.com/{number}",
             "date": "2013-05-18T05:48:54Z", "file_path": f"s3://commoncrawl/crawl-data/{dump}/{number}.warc.gz",
             "language": "en", "language_score": 0.97, "token_count": len(text.split())}
            for number, text in enumerate(documents)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), buffer := io.BytesIO(), row_group_size=row_group)
    return buffer.getvalue()

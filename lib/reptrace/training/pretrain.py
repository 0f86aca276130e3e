"""Small GPT-NeoX suites trained from scratch on a corpus, with checkpoints evenly spaced on a log scale.

Runs are trained by `lean`, in processes of one thread each, side by side. A checkpoint becomes a revision of a local
repository in hub cache layout (safetensors, no optimizer state), so `from_pretrained(repository, revision="step64",
cache_dir=...)` reads it like a Pythia branch; its averaged weights, of a repository of their own. An interrupted run
goes on from its last saved state, to the same weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from reptrace.checkpoints.hub import repository_folder
from reptrace.checkpoints.listing import Checkpoint, revisions, step_of
from reptrace.records.store import Store, write_atomically
from reptrace.support.processes import KEEP_BUFFERS, cores
from reptrace.texts.corpora import Corpus, train_tokenizer
from reptrace.texts.frequencies import NATURAL, REMAPPINGS, Remapping
from reptrace.training.runs import Run, log_spaced

MESSAGES, DONE = "messages.txt", "done\n"  # of a training process: what it wrote to standard error; a run's end
STATE = "state.pt"  # in a run's folder in `training`: what it goes on from
REPORT_EVERY = 8  # steps between two reports of a process


class Suite:
    """A set of runs on one training text, in a folder: trained on demand, each run and each checkpoint once.

    Parameters
    ----------
    runs : list of Run
    corpus : Corpus
        Training text; its fingerprint must be the runs'. All runs have tokens for digits, or none.
    folder : Path
        Holds `hub` (the repositories), `training` (what a run needs to resume; emptied at its end), `tokens`, `logs`.
    """

    def __init__(self, runs: Sequence[Run], corpus: Corpus, folder: str | Path):
        self.runs, self.corpus, self.folder = list(runs), corpus, Path(folder)
        for run in self.runs:
            if run.corpus != corpus.fingerprint:
                raise ValueError(f"{run.repository} is to be trained on text {run.corpus}, not {corpus.fingerprint}.")
        if len({run.digits for run in self.runs}) > 1:
            raise ValueError("some of the runs have a token for each digit, others not: make two suites of them.")
        self.digits = any(run.digits for run in self.runs)

    @property
    def hub(self) -> str:
        return str(self.folder / "hub")

    def tokenizer(self, vocabulary: int):
        """The BPE tokenizer of this text with so many entries; trained once, then read."""
        from transformers import PreTrainedTokenizerFast

        kept = self._text_file(vocabulary, "tokenizer")
        if not kept.exists():
            tokenizer = train_tokenizer(self.corpus.documents, vocabulary, self.digits)
            with tempfile.TemporaryDirectory() as folder:
                tokenizer.save_pretrained(folder)
                files = {path.name: path.read_text() for path in sorted(Path(folder).iterdir())}
            write_atomically(kept, json.dumps(files).encode())
        with tempfile.TemporaryDirectory() as folder:
            _unpack(kept, Path(folder))
            return PreTrainedTokenizerFast.from_pretrained(folder)

    def tokens(self, vocabulary: int) -> Path:
        """File of the text's token ids (uint16), end-of-text after each document; made once."""
        kept = self._text_file(vocabulary, "tokens")
        if not kept.exists():
            tokenizer = self.tokenizer(vocabulary)
            pieces = []
            documents = self.corpus.documents
            for start in tqdm(range(0, len(documents), 2048), desc="tokenizing", unit="batch", leave=False):
                encoded = tokenizer(documents[start : start + 2048], add_special_tokens=False)["input_ids"]
                pieces += [np.array([*ids, tokenizer.eos_token_id], dtype=np.uint16) for ids in encoded]
            write_atomically(kept, np.concatenate(pieces).tobytes())
        return kept

    def remapping(self, run: Run) -> Remapping | None:
        """How the run's token ids were remapped; None where they were not."""
        if run.frequencies == NATURAL:
            return None
        ids = np.fromfile(self.tokens(run.vocabulary), dtype=np.uint16)
        return REMAPPINGS[run.frequencies](np.bincount(ids, minlength=run.vocabulary))

    def token_file(self, run: Run) -> Path:
        """File of the token ids that a run is trained on: `tokens`, remapped where the run says so; made once."""
        plain, remapping = self.tokens(run.vocabulary), self.remapping(run)
        if remapping is None:
            return plain
        kept = plain.with_suffix(f".{run.frequencies}.tokens")
        if not kept.exists():
            write_atomically(kept, remapping.draw(np.fromfile(plain, dtype=np.uint16)).tobytes())
        return kept

    def train(self, workers: int | None = None, progress: bool = True) -> None:
        """Train what is missing, `workers` runs side by side (default: one a core), the longest first."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / "training.lock"):  # another process on the same folder waits, then finds it done
            self._train(workers or cores(), progress)

    def _train(self, workers: int, progress: bool) -> None:
        missing = [run for run in self.runs if not self.trained(run)]
        files = {run: (self.token_file(run), self._text_file(run.vocabulary, "tokenizer")) for run in missing}
        for run in self.runs:
            if run not in missing:  # what a kill at the very end of a run left behind
                shutil.rmtree(_work_folder(self.folder, run), ignore_errors=True)
        missing.sort(key=lambda run: -run.steps * run.tokens_per_step * run.parameters)
        total = sum(run.steps * run.tokens_per_step for run in missing)
        lock = threading.Lock()
        hidden = not progress or not missing
        with tqdm(total=total, desc="training", unit="tok", unit_scale=True, disable=hidden) as bar:
            def advance(tokens: int) -> None:
                with lock:
                    bar.update(tokens)

            with _Children() as children, ThreadPoolExecutor(workers) as pool:
                list(pool.map(lambda run: children.train(run, self.folder, *files[run], advance), missing))

    def train_here(self, run: Run, report: Callable[[int], None], device: str = "cpu") -> None:
        """Train one run to its end in this process, on one thread; `report` is given each step that it tells."""
        if not self.trained(run):
            work = _work_folder(self.folder, run)
            work.mkdir(parents=True, exist_ok=True)
            _train(run, self.folder, self.token_file(run), self._text_file(run.vocabulary, "tokenizer"), report,
                   device)
            shutil.rmtree(work, ignore_errors=True)  # another process that waited may do it, too

    def trained(self, run: Run) -> bool:
        """Whether the run has come to its end."""
        return "main" in revisions(run.repository, self.hub)

    def checkpoints(self, run: Run, averaged: bool = False) -> list[Checkpoint]:
        """What there is of a run by now, in order of steps; or of its averaged weights."""
        repository = run.averaged_repository if averaged else run.repository
        steps = sorted(step for name in revisions(repository, self.hub) if (step := step_of(name)) is not None)
        return [Checkpoint(repository, f"step{step}", step, step * run.tokens_per_step, self.hub) for step in steps]

    def log(self, run: Run):
        """Loss, gradient norm and learning rate by step and tokens (a table), see `Log`."""
        return Store(self.folder / "logs").table([run.identity])

    def _text_file(self, vocabulary: int, kind: str) -> Path:
        return self.folder / "tokens" / f"{self.corpus.fingerprint}-{vocabulary}{'-digits' * self.digits}.{kind}"


def publish(files: Path, repository: str, revision: str, cache_dir: str | Path) -> None:
    """Make a folder's files a revision of a repository in a hub cache; the revision appears last, and whole.

    The layout is huggingface_hub's: blobs by content hash, a snapshot of links a commit, a ref a revision.
    """
    root = repository_folder(cache_dir, repository)
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files.iterdir())}
    commit = hashlib.sha1(json.dumps(digests, sort_keys=True).encode()).hexdigest()
    snapshot = root / "snapshots" / commit
    snapshot.mkdir(parents=True, exist_ok=True)
    for name, digest in digests.items():
        if not (root / "blobs" / digest).exists():
            write_atomically(root / "blobs" / digest, (files / name).read_bytes())
        if not (snapshot / name).is_symlink():
            (snapshot / name).symlink_to(Path("../../blobs") / digest)
    write_atomically(root / "refs" / revision, commit.encode())


class _Children:
    """Processes that train runs, one after the other, each on one thread. A context: they end with it.

    A run's process is one that trained others before, where there is one: to start takes as long as a short run.
    """

    def __init__(self):
        self.idle: list[subprocess.Popen] = []

    def __enter__(self) -> _Children:
        return self

    def __exit__(self, *error) -> None:
        for child in self.idle:
            child.communicate()  # the end of its orders is its own

    def train(self, run: Run, folder: Path, tokens: Path, tokenizer: Path, advance) -> None:
        """Train a run; its process reports its step on a pipe, "done" at the end, and ends with this process."""
        work = _work_folder(folder, run)
        work.mkdir(parents=True, exist_ok=True)
        try:
            child = self.idle.pop()
        except IndexError:
            child = _child()
        order = {"run": asdict(run), "folder": str(folder), "tokens": str(tokens), "tokenizer": str(tokenizer)}
        try:
            with suppress(BrokenPipeError):  # it died meanwhile; said below
                print(json.dumps(order), file=child.stdin, flush=True)
            done = 0
            for line in child.stdout:
                if line == DONE:
                    break
                step = int(line)
                advance((step - done) * run.tokens_per_step)
                done = step
            else:
                child.communicate()
                last = _read(work / MESSAGES).strip().splitlines()[-1:]
                raise RuntimeError(f"training {run.repository} ended with code {child.returncode}: {' '.join(last)} "
                                   f"(all of it: {work / MESSAGES}). Checkpoints so far are kept; the next call goes "
                                   "on from there.")
        except BaseException:
            child.kill()
            child.communicate()
            raise
        self.idle.append(child)
        shutil.rmtree(work)


def _child() -> subprocess.Popen:
    environment = {**os.environ, **KEEP_BUFFERS, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
                   "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen([sys.executable, "-m", "reptrace.training.pretrain"], stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, text=True, env=environment)


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _train(run: Run, folder: Path, tokens: Path, tokenizer: Path, report: Callable[[int], None],
           device: str = "cpu") -> None:
    """Train one run to its end in this process, from its last saved state if there is one."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    from reptrace.training.lean import AVERAGING, Loop

    disable_progress_bar()  # of each model that is written
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    work = _work_folder(folder, run)
    with FileLock(work / "lock"):
        if "main" in revisions(run.repository, str(folder / "hub")):  # done by another process, which this waited for
            return
        loop, state = Loop(run, np.memmap(tokens, np.uint16, "c"), AVERAGING, device), work / STATE
        log = Log(run, loop.load(state) if state.exists() else [], device)
        keep, averaged = set(run.checkpoint_steps), set(run.averaged_steps)
        save = set(range(run.save_every, run.steps, run.save_every))
        rows = save | set(log_spaced(run.steps, per_doubling=8))  # a mean since the last row must not span a resumption
        stops = keep | rows | {*range(0, run.steps, REPORT_EVERY), run.steps}
        for step in sorted(stop for stop in stops if stop >= loop.step):
            if step > loop.step:
                log.add(step - loop.step, loop.advance(step - loop.step))
                report(step)
            if step in averaged:
                _keep(loop.averaged_model, run.averaged_repository, step, folder, tokenizer)
            if step in keep:
                _keep(lambda: loop.model, run.repository, step, folder, tokenizer)
            if step in rows:
                log.close(step)
            if step in save:
                loop.save(state, log.rows)
        Store(folder / "logs").write(run.identity, log.rows)
        for repository in [run.averaged_repository] * bool(averaged) + [run.repository]:  # whose main ends the run
            last = repository_folder(folder / "hub", repository) / "refs" / f"step{run.steps}"
            write_atomically(last.with_name("main"), last.read_bytes())


class Log:
    """Rows of a run's log: losses and gradient norms are means since the row before.

    Parameters
    ----------
    run : Run
    rows : list of dict
        Written by an earlier process up to the state that this one goes on from.
    device : str, default "cpu"
    """

    def __init__(self, run: Run, rows: list[dict], device: str = "cpu"):
        self.run, self.rows = run, rows
        self._on = {"device": device, "dtype": "bfloat16" if device == "cuda" else "float32"}
        self.started = time.perf_counter() - (rows[-1]["wall_seconds"] if rows else 0)
        self._steps, self._sums, self._rate = 0, np.zeros(2), 0.0

    def add(self, steps: int, means: Mapping[str, float]) -> None:
        """What `Loop.advance` said of so many steps."""
        self._steps += steps
        self._sums += steps * np.array([means["loss"], means["gradient_norm"]])
        self._rate = means["learning_rate"]

    def close(self, step: int) -> None:
        """End a row, if there was a step in it."""
        if self._steps:
            loss, norm = (self._sums / self._steps).tolist()
            self.rows.append({"step": step, "tokens": step * self.run.tokens_per_step, "loss": loss,
                              "gradient_norm": norm, "learning_rate": self._rate, "seed": self.run.seed,
                              **self._on, "wall_seconds": time.perf_counter() - self.started})
        self._steps, self._sums = 0, np.zeros(2)


def _keep(model: Callable, repository: str, step: int, folder: Path, tokenizer: Path) -> None:
    """Publish a model, which is made only if it is not there yet, as a revision."""
    if f"step{step}" in revisions(repository, str(folder / "hub")):
        return
    with tempfile.TemporaryDirectory(dir=folder / "training") as files:
        model().save_pretrained(files)
        _unpack(tokenizer, Path(files))
        publish(Path(files), repository, f"step{step}", folder / "hub")


def _work_folder(folder: Path, run: Run) -> Path:
    return folder / "training" / run.repository.split("/")[1]


def _unpack(packed: Path, folder: Path) -> None:
    for name, text in json.loads(packed.read_text()).items():
        (folder / name).write_text(text)


def main() -> None:
    """A child of `Suite.train`: reads runs from standard input, a line each, writes their steps to standard output."""
    for line in sys.stdin:
        order = json.loads(line)
        run, folder = Run(**order["run"]), Path(order["folder"])
        with open(_work_folder(folder, run) / MESSAGES, "a") as messages:
            os.dup2(messages.fileno(), sys.stderr.fileno())
        # a closed pipe, the parent's death, ends this process too
        _train(run, folder, Path(order["tokens"]), Path(order["tokenizer"]), lambda step: print(step, flush=True))
        print(DONE, end="", flush=True)


if __name__ == "__main__":
    main()

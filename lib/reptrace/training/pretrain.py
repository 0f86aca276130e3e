"""Small GPT-NeoX suites trained from scratch on a corpus, with checkpoints evenly spaced on a log scale.

transformers' Trainer does the training: resuming, logging, gradient norms, schedules and callbacks are its own. Runs
are trained by processes of one thread each, side by side. A checkpoint becomes a revision of a local repository in
hub cache layout (safetensors, no optimizer state), so `from_pretrained(repository, revision="step64", cache_dir=...)`
reads it like a Pythia branch. An interrupted run goes on from its last whole Trainer checkpoint, to the same weights.
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
from collections.abc import Sequence
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
from reptrace.training.runs import Run, block_order, blocks_of, log_spaced

MESSAGES, DONE = "messages.txt", "done\n"  # of a training process: what it wrote to standard error; a run's end


class Suite:
    """A set of runs on one training text, in a folder: trained on demand, each run and each checkpoint once.

    Parameters
    ----------
    runs : list of Run
    corpus : Corpus
        Training text; its fingerprint must be the runs'.
    folder : Path
        Holds `hub` (the repositories), `training` (what a run needs to resume; emptied at its end), `tokens`, `logs`.
    """

    def __init__(self, runs: Sequence[Run], corpus: Corpus, folder: str | Path):
        self.runs, self.corpus, self.folder = list(runs), corpus, Path(folder)
        for run in self.runs:
            if run.corpus != corpus.fingerprint:
                raise ValueError(f"{run.repository} is to be trained on text {run.corpus}, not {corpus.fingerprint}.")

    @property
    def hub(self) -> str:
        return str(self.folder / "hub")

    def tokenizer(self, vocabulary: int):
        """The BPE tokenizer of this text with so many entries; trained once, then read."""
        from transformers import PreTrainedTokenizerFast

        kept = self._text_file(vocabulary, "tokenizer")
        if not kept.exists():
            tokenizer = train_tokenizer(self.corpus.documents, vocabulary)
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

    def trained(self, run: Run) -> bool:
        """Whether the run has come to its end."""
        return "main" in revisions(run.repository, self.hub)

    def checkpoints(self, run: Run) -> list[Checkpoint]:
        """What there is of a run by now, in order of steps."""
        steps = sorted(step for name in revisions(run.repository, self.hub) if (step := step_of(name)) is not None)
        return [Checkpoint(run.repository, f"step{step}", step, step * run.tokens_per_step, self.hub) for step in steps]

    def log(self, run: Run):
        """Loss, gradient norm and learning rate by step and tokens (a table); loss is the mean since the row before."""
        return Store(self.folder / "logs").table([run.identity])

    def _text_file(self, vocabulary: int, kind: str) -> Path:
        return self.folder / "tokens" / f"{self.corpus.fingerprint}-{vocabulary}.{kind}"


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


def _train(run: Run, folder: Path, tokens: Path, tokenizer: Path) -> None:
    """Train one run to its end in this process, from its last whole Trainer checkpoint if there is one."""
    import torch
    from transformers import GPTNeoXForCausalLM, PrinterCallback, Trainer, TrainingArguments, set_seed
    from transformers.utils.logging import disable_progress_bar

    class ConvertingTrainer(Trainer):
        """Resumes by from_pretrained: the Trainer's own loading skips renamed weights, here the unembedding, and leaves
        them random without a word (transformers issue 48805)."""

        def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
            saved = GPTNeoXForCausalLM.from_pretrained(resume_from_checkpoint)
            (model or self.model).load_state_dict(saved.state_dict())

    disable_progress_bar()
    started = time.perf_counter()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    work = _work_folder(folder, run)
    with FileLock(work / "lock"):
        set_seed(run.seed)
        model = GPTNeoXForCausalLM(run.config)
        arguments = TrainingArguments(
            output_dir=str(work / "state"), max_steps=run.steps, per_device_train_batch_size=run.batch,
            learning_rate=run.learning_rate, warmup_steps=run.warmup_steps, lr_scheduler_type=run.schedule,
            weight_decay=run.weight_decay, adam_beta2=0.95, max_grad_norm=run.gradient_clip, optim="adamw_torch_fused",
            seed=run.seed, train_sampling_strategy="sequential", use_cpu=True, logging_strategy="no",
            save_strategy="steps", save_steps=run.save_every, report_to="none", disable_tqdm=True,
            dataloader_num_workers=0, dataloader_pin_memory=False)
        trainer = ConvertingTrainer(model, arguments, train_dataset=_Blocks(tokens, run),
                                    compute_loss_func=squared_error if run.loss == "squared error" else None,
                                    callbacks=[_keeper(run, folder, tokenizer)])
        trainer.remove_callback(PrinterCallback)  # standard output carries the steps
        trainer.train(resume_from_checkpoint=_last_whole(work / "state"))
        rows = [{"step": row["step"], "tokens": row["step"] * run.tokens_per_step, "loss": row["loss"],
                 "gradient_norm": row["grad_norm"], "learning_rate": row["learning_rate"], "seed": run.seed,
                 "device": "cpu", "dtype": "float32", "wall_seconds": time.perf_counter() - started}
                for row in trainer.state.log_history if "loss" in row]
        Store(folder / "logs").write(run.identity, rows)
        hub = folder / "hub"
        last = repository_folder(hub, run.repository) / "refs" / f"step{run.steps}"
        write_atomically(last.with_name("main"), last.read_bytes())


def squared_error(outputs, labels, num_items_in_batch=None):
    """Squared distance of the logits to the one-hot next token, summed over the vocabulary, mean over tokens.

    Parameters
    ----------
    outputs : a model's output with `logits`, shape (batch, length, V)
    labels : integer tensor, shape (batch, length); logits at one position are compared with the label of the next
    num_items_in_batch : ignored; the Trainer passes it
    """
    logits, following = outputs.logits[:, :-1], labels[:, 1:]
    # |z - e_y|^2 = |z|^2 - 2 z_y + 1, without the one-hot matrix
    hit = logits.gather(-1, following.unsqueeze(-1)).squeeze(-1)
    return (logits.square().sum(-1) - 2 * hit + 1).mean()


class _Blocks:
    """Every training sequence of a run, in order: stretches of `context` tokens, shuffled anew in each pass.

    The order is fixed here, and taken sequentially, because a Trainer resumed after its first epoch shuffles otherwise
    than one that was never stopped.
    """

    def __init__(self, tokens: Path, run: Run):
        ids = np.memmap(tokens, dtype=np.uint16, mode="r")
        self.blocks = blocks_of(ids, run)
        self.order = block_order(len(self.blocks), run)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict:
        import torch

        ids = torch.from_numpy(self.blocks[self.order[index]].astype(np.int64))
        return {"input_ids": ids, "labels": ids}


def _keeper(run: Run, folder: Path, tokenizer: Path):
    """Trainer callback: publishes the revisions, logs at log-spaced steps, reports progress, marks whole saves."""
    from transformers import TrainerCallback

    keep, log = set(run.checkpoint_steps), set(log_spaced(run.steps, per_doubling=8))
    log |= set(range(0, run.steps, run.save_every))  # the mean loss since the last entry must not span a resumption

    class Keeper(TrainerCallback):
        def _publish(self, model, step: int) -> None:
            if step not in keep or f"step{step}" in revisions(run.repository, str(folder / "hub")):
                return
            with tempfile.TemporaryDirectory(dir=folder / "training") as files:
                model.save_pretrained(files)
                _unpack(tokenizer, Path(files))
                publish(Path(files), run.repository, f"step{step}", folder / "hub")

        def on_train_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 0:
                self._publish(model, 0)

        def on_step_end(self, args, state, control, model=None, **kwargs):
            self._publish(model, state.global_step)
            control.should_log = state.global_step in log
            if state.global_step % 8 == 0 or state.global_step == run.steps:
                print(state.global_step, flush=True)  # a closed pipe, the parent's death, ends this process too
            return control

        def on_save(self, args, state, control, **kwargs):
            write_atomically(Path(args.output_dir) / f"checkpoint-{state.global_step}" / "whole", b"")
            _thin_out(Path(args.output_dir))

    return Keeper()


def _work_folder(folder: Path, run: Run) -> Path:
    return folder / "training" / run.repository.split("/")[1]


def _last_whole(state: Path) -> str | None:
    whole = sorted(state.glob("checkpoint-*/whole"), key=lambda path: step_of(path.parent.name))
    return str(whole[-1].parent) if whole else None


def _thin_out(state: Path) -> None:
    """Keep the last whole Trainer checkpoint only."""
    last = _last_whole(state)
    for path in state.glob("checkpoint-*"):
        if str(path) != last:
            shutil.rmtree(path)


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
        _train(run, folder, Path(order["tokens"]), Path(order["tokenizer"]))
        print(DONE, end="", flush=True)


if __name__ == "__main__":
    main()

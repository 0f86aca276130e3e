"""Supervised tuning of checkpoints on pairs of prompt and answer, by TRL, on the GPUs of one machine at a time.

A tuning is a part of a sweep's job, so it goes wherever sweeps go (one machine, a Dask cluster, SLURM); it runs in
processes of its own, one a GPU, that `accelerate launch` starts. What dies goes on from the last checkpoint in the
tuning's folder, which every worker must see under the same name. At its end stand the model, and the loss on held-out
pairs of the same set and of another.

What the processes do stands in `tuning_process`.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

from reptrace.checkpoints import weights
from reptrace.records.store import write_atomically
from reptrace.sweeps.evaluation import own_tokenizer
from reptrace.sweeps.jobs import Job, Opened, Part
from reptrace.sweeps.located import place

METHOD = 1  # raised by hand when the same settings tune, or measure, differently
RESULT, ORDER, MESSAGES, FINAL = "result.json", "order.json", "messages.txt", "final"  # in a tuning's folder


@dataclass(frozen=True)
class Tuning:
    """How a model is tuned; the defaults are the paper's. `processes` and `per_device` decide only how fast.

    Parameters
    ----------
    seed : int, order of the pairs
    max_length : tokens of a pair
    batch, accumulation : int
        Their product is the number of pairs of a step, on all GPUs together; the summed loss is divided by the latter.
    learning_rate, warmup, epochs : peak rate, share of the steps in which it rises, passes; it falls linearly to 0
    loss_pairs, loss_length : held-out pairs at most, of each set, and tokens of one
    processes : int, GPUs of a machine, or processes where it has none
    per_device : int, pairs that pass through a GPU at once
    save_steps : int, steps between two checkpoints
    """

    seed: int = 0
    max_length: int = 4096
    batch: int = 16
    accumulation: int = 16
    learning_rate: float = 1e-5
    warmup: float = 0.1
    epochs: int = 2
    loss_pairs: int = 10_000
    loss_length: int = 1024
    processes: int = 4
    per_device: int = 4
    save_steps: int = 100

    def __post_init__(self):
        if self.batch * self.accumulation % (self.processes * self.per_device):
            raise ValueError(f"{self.processes} processes x per_device = {self.per_device} pairs must divide the "
                             f"{self.batch * self.accumulation} pairs of a step (batch x accumulation).")

    @property
    def identity(self) -> dict:
        return {name: value for name, value in asdict(self).items()
                if name not in ("processes", "per_device", "save_steps")}


@dataclass(frozen=True, eq=False)
class TuningPart(Part):
    """A tuning of every checkpoint: a row (loss_in, loss_out with `_stderr`, `_pairs` and `_left_out`; steps, folder).

    Parameters
    ----------
    tuning : Tuning
    name : of the set that is trained on
    pairs : {"train": file, "in": file, "out": file}
        JSON lines with prompt and completion, which every worker sees under these names, as it does `folder`.
    fingerprints : of what these files hold, by the same keys
    folder : holds a folder for each tuning, with the tuned model in `final`
    """

    tuning: Tuning
    name: str
    pairs: Mapping[str, str]
    fingerprints: Mapping[str, str]
    folder: str | Path = field(compare=False)

    opens = False  # its own processes open the model
    reads = True

    def identity(self, job: Job) -> dict:
        return {"tuning": self.tuning.identity, "tuning_method": METHOD, "device": job.opening.device,
                "dtype": job.opening.dtype, "beside": job.at.beside, "pairs": dict(self.fingerprints)}

    def facts(self, job: Job) -> dict:
        return {**place(job.checkpoint), "weights": job.at.weights, "tuned_on": self.name, **self.tuning.identity,
                "processes": self.tuning.processes, "per_device": self.tuning.per_device}

    def rows(self, opened: Opened, progress: bool) -> list[dict]:
        job = opened.job
        folder = self.place_of(job)
        if not (folder / RESULT).exists():
            order = self._order(opened, folder)
            write_atomically(folder / ORDER, json.dumps(order, indent=2).encode())
            launch(folder, self.tuning.processes, job.opening.device)
        return [{**json.loads((folder / RESULT).read_text()), "folder": str(folder / FINAL)}]

    def place_of(self, job: Job) -> Path:
        """The folder of a checkpoint's tuning."""
        digest = hashlib.sha256(json.dumps(job.identity(self), sort_keys=True).encode()).hexdigest()
        named = "-".join(filter(None, (Path(job.checkpoint.model).name, job.checkpoint.revision)))
        return Path(self.folder) / f"{named}-{self.name}-seed{self.tuning.seed}-{digest[:8]}"

    def _order(self, opened: Opened, folder: Path) -> dict:
        """What the processes are told."""
        job, point = opened.job, opened.job.checkpoint
        tokenizer = opened.once("tokenizer", partial(own_tokenizer, job))
        check_ends(tokenizer)
        tokenizer.save_pretrained(folder / "tokenizer")
        return {"model": point.model, "revision": None if weights.is_here(point.model) else job.at.weights,
                "cache_dir": str(opened.cache_dir or point.cache_dir or "") or None, "device": job.opening.device,
                "dtype": job.opening.dtype, "tuning": asdict(self.tuning), "pairs": dict(self.pairs)}


def check_ends(tokenizer) -> None:
    """ValueError unless there are an end token and a pad token that differ: where they are one, an end that is to be
    learnt looks like padding."""
    if None in (tokenizer.eos_token_id, tokenizer.pad_token_id) or tokenizer.eos_token_id == tokenizer.pad_token_id:
        raise ValueError(f"the tokenizer's end token is {tokenizer.eos_token!r} and its pad token "
                         f"{tokenizer.pad_token!r}: tuning needs both, and two different ones.")


def launch(folder: Path, processes: int, device: str) -> None:
    """Do the order in a folder, in processes that `accelerate launch` starts, one a GPU.

    Raises
    ------
    ValueError
        The machine has fewer GPUs.
    RuntimeError
        They ended without a result; the message has their last words and says where the others are.
    """
    import torch

    gpu = device.startswith("cuda")
    if gpu and torch.cuda.device_count() < processes:
        raise ValueError(f"{processes} processes were asked for, one a GPU, and this worker sees "
                         f"{torch.cuda.device_count()} GPUs: lower `processes`, or give the worker a whole machine.")
    where = ["--multi_gpu"] if processes > 1 else [] if gpu else ["--cpu"]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--num_processes",
               str(processes), "--main_process_port", "0", "--mixed_precision", "bf16" if gpu else "no",
               "--dynamo_backend", "no", *where, "-m", "reptrace.training.tuning_process", str(folder)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if gpu and processes == 1:  # of several it would take all, with as many times the pairs
        environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    with open(folder / MESSAGES, "a") as messages:
        ended = _run(command, messages, environment)
    if ended or not (folder / RESULT).exists():
        lines = (folder / MESSAGES).read_text().splitlines()
        said = [line for line in lines if "Error: " in line and not line.startswith((" ", "subprocess."))]
        raise RuntimeError(f"the tuning in {str(folder)!r} ended with code {ended}: {' '.join(said[-1:])} (all of it: "
                           f"{folder / MESSAGES}). Its checkpoints are kept; the next call goes on from the last.")


def _run(command: list[str], messages: IO, environment: Mapping[str, str]) -> int:
    """The exit code of a command; with this process, however that ends, its processes end: their input is closed."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=messages, stderr=subprocess.STDOUT,
                          env=environment) as child:
        try:
            return child.wait()
        except BaseException:
            child.kill()
            raise

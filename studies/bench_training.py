"""Speed of the lean training loop against transformers' Trainer: one core, one model, the same batches.

`make bench` calls `rows`. Both run in turn, several times; a step's seconds are those of the steps after the first few.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from reptrace.training.lean import AVERAGING, Loop, initial_model
from reptrace.training.runs import Run, block_order, blocks_of

BATCHES = (4, 8, 16, 64)  # sequences of CONTEXT tokens; the default suite's is 8
WIDTH, LAYERS, VOCABULARY, CONTEXT = 32, 2, 2048, 64
FIRST, STEPS, REPEATS = 20, 200, 3  # steps that are not timed, and that are
REQUIRED = 1.3  # at the default suite's batch


def rows(ids: np.ndarray) -> list[dict]:
    """A row a batch size for the table of `make bench`, trained on token ids below VOCABULARY, uint16."""
    with one_thread():
        return [of_batch(batch, ids) for batch in BATCHES]


def of_batch(batch: int, ids: np.ndarray) -> dict:
    run = Run(width=WIDTH, layers=LAYERS, steps=FIRST + STEPS, seed=0, vocabulary=VOCABULARY, context=CONTEXT,
              batch=batch, learning_rate=0.005, warmup_steps=FIRST, schedule="constant_with_warmup", weight_decay=0.01,
              corpus="bench")
    taken = [(lean(run, ids), trainer(run, ids)) for _ in range(REPEATS)]
    ours, theirs = (statistics.median(seconds) for seconds in zip(*taken, strict=True))
    return {"what": f"training step, width {WIDTH}, {LAYERS} blocks, {batch} sequences of {CONTEXT} tokens",
            "against": "transformers Trainer, adamw_torch_fused", "seconds": ours, "against_seconds": theirs,
            "required": REQUIRED if batch == 8 else 0, "repeats": REPEATS, "threads": torch.get_num_threads(),
            "tokens_per_second": run.tokens_per_step / ours, "note": "an average of the weights is kept beside ours"}


def lean(run: Run, ids: np.ndarray) -> float:
    """Seconds a step."""
    loop = Loop(run, ids, AVERAGING)
    loop.advance(FIRST)
    started = time.perf_counter()
    loop.advance(STEPS)
    return (time.perf_counter() - started) / STEPS


def trainer(run: Run, ids: np.ndarray) -> float:
    """Seconds a step, without logs, checkpoints or progress bars."""
    blocks = torch.from_numpy(blocks_of(ids, run).astype(np.int64))
    batches = [{"input_ids": blocks[k], "labels": blocks[k]} for k in block_order(len(blocks), run)]
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=run.steps, per_device_train_batch_size=run.batch, use_cpu=True,
            learning_rate=run.learning_rate, warmup_steps=run.warmup_steps, lr_scheduler_type=run.schedule,
            weight_decay=run.weight_decay, adam_beta2=0.95, max_grad_norm=run.gradient_clip,
            optim="adamw_torch_fused", train_sampling_strategy="sequential", logging_strategy="no", save_strategy="no",
            report_to="none", disable_tqdm=True, dataloader_pin_memory=False)
        Trainer(initial_model(run), arguments, train_dataset=batches, callbacks=[clock]).train()
    return (clock.ended - clock.started) / STEPS


class Clock(TrainerCallback):
    """When the first steps were done, and the last."""

    def on_step_end(self, args, state, control, **more):
        self.ended = time.perf_counter()
        if state.global_step == FIRST:
            self.started = self.ended


@contextmanager
def one_thread() -> Iterator[None]:
    """What a run of a suite is given."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

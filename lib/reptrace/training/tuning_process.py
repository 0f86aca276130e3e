"""What the processes of a tuning do (`tuning`): TRL's SFTTrainer on pairs of prompt and answer, and losses at the end.

The loss is summed over the answers' tokens, as in Li et al. (arXiv 2509.23024): every token of a step counts alike, and
a step with more of them moves the weights more. TRL divides a step's sum by a number that it is told, its tokens; here
it is told `accumulation`, always. That is what open-instruct, which the paper used, does with --reduce_loss sum where
a machine takes `batch` pairs at once; it is the same whatever number of processes share a step. Nothing is clipped.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from reptrace.models import loading
from reptrace.models.scoring import score
from reptrace.records.store import write_atomically
from reptrace.training.tuning import FINAL, ORDER, RESULT, Tuning

STATE = "trainer_state.json"  # which the Trainer writes last of a checkpoint


class SummedTrainer(SFTTrainer):
    """SFTTrainer whose loss is the sum over all tokens of a step, on all processes, divided by `divisor`."""

    divisor = 1

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if num_items_in_batch is not None:
            num_items_in_batch = torch.as_tensor(self.divisor)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


def tune(folder: Path) -> None:
    """Do the order in a folder, from its last whole checkpoint if there is one; the first process writes the result."""
    order = json.loads((folder / ORDER).read_text())
    tuning, tokenizer = Tuning(**order["tuning"]), loading.load_tokenizer(str(folder / "tokenizer"))
    # on the CPU: the trainer takes it to the GPU of this process
    model = loading.load(order["model"], order["revision"], order["cache_dir"], "cpu", "float32", head=True)
    pairs = {name: [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]
             for name, path in order["pairs"].items()}
    gpu = order["device"].startswith("cuda")
    trainer = trainer_of(model, tokenizer, pairs["train"], tuning, folder, bf16=gpu, use_cpu=not gpu,
                         dataloader_pin_memory=gpu)
    last = last_checkpoint(folder)
    for checkpoint in folder.glob("checkpoint-*") if trainer.is_world_process_zero() else ():
        if not _is_whole(checkpoint):  # the Trainer would keep it as the newest
            shutil.rmtree(checkpoint)
    trainer.train(resume_from_checkpoint=last)
    trainer.save_model(str(folder / FINAL))
    if trainer.is_world_process_zero():
        tuned = trainer.accelerator.unwrap_model(trainer.model).to(getattr(torch, order["dtype"]))
        found = {f"loss_{name}{part}": value for name in ("in", "out") for part, value in
                 held_out_loss(tuned, tokenizer, pairs[name], tuning.loss_length, tuning.per_device).items()}
        result = {"steps": trainer.state.global_step, "train_pairs": len(pairs["train"]), **found}
        write_atomically(folder / RESULT, json.dumps(result).encode())
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)  # with Adam's state three times as large as the model


def trainer_of(model, tokenizer, pairs: Sequence[Mapping], tuning: Tuning, folder: Path, **arguments) -> SummedTrainer:
    """A trainer of this process, one of `WORLD_SIZE`, on pairs of prompt and completion; on the CPU unless told."""
    settings = {
        "per_device_train_batch_size": tuning.per_device, "max_length": tuning.max_length, "seed": tuning.seed,
        "gradient_accumulation_steps": tuning.batch * tuning.accumulation // tuning.per_device
        // int(os.environ.get("WORLD_SIZE", 1)),
        "learning_rate": tuning.learning_rate, "lr_scheduler_type": "linear", "warmup_steps": tuning.warmup,
        "num_train_epochs": tuning.epochs, "weight_decay": 0.0, "max_grad_norm": 0.0, "bf16": False, "use_cpu": True,
        "dataloader_pin_memory": False, "activation_checkpointing": False, "report_to": "none", "disable_tqdm": True,
        "logging_steps": 10, "save_steps": tuning.save_steps, "save_total_limit": 1}
    rows = [{"prompt": pair["prompt"], "completion": pair["completion"]} for pair in pairs]
    trainer = SummedTrainer(model, SFTConfig(str(folder), **settings | arguments), processing_class=tokenizer,
                            train_dataset=Dataset.from_list(rows))
    trainer.divisor = tuning.accumulation
    return trainer


def last_checkpoint(folder: Path) -> str | None:
    """The last one that was written whole."""
    whole = filter(_is_whole, folder.glob("checkpoint-*"))
    last = max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
    return None if last is None else str(last)


def _is_whole(checkpoint: Path) -> bool:
    try:
        return bool(json.loads((checkpoint / STATE).read_text()))
    except (FileNotFoundError, ValueError):
        return False


def held_out_loss(model, tokenizer, pairs: Sequence[Mapping], length: int, batch_size: int) -> dict:
    """Mean loss of the answers' tokens and their end, given the prompts, in nats a token.

    Pairs are cut to `length` tokens; those of which no token of the answer is left are counted (`_left_out`). "" is the
    sum of -ln P over the number of tokens, `_stderr` that ratio's, for pairs drawn independently.
    """
    prompts, whole = ([tokenizer(text)["input_ids"] for text in texts] for texts in (
        [pair["prompt"] for pair in pairs], [pair["prompt"] + pair["completion"] for pair in pairs]))
    kept = [(len(prompt), [*ids, tokenizer.eos_token_id][:length]) for prompt, ids in zip(prompts, whole, strict=True)
            if len(prompt) < min(length, len(ids))]
    if not kept:
        raise ValueError(f"none of {len(pairs)} held-out pairs has a token of its answer among its first {length}.")
    starts, sequences = zip(*kept, strict=True)
    sums = -score(model, sequences, starts, batch_size).log_probability
    counts, size = np.array([len(ids) for ids in sequences]) - starts, len(sums)
    mean = sums.sum() / counts.sum()
    spread = ((sums - mean * counts) ** 2).sum() * size / (size - 1) if size > 1 else math.nan
    return {"": float(mean), "_stderr": math.sqrt(spread) / float(counts.sum()), "_pairs": size,
            "_left_out": len(pairs) - size}


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # nothing comes but its end
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    tune(Path(sys.argv[1]))

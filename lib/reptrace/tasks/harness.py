"""lm-eval (EleutherAI's evaluation harness) in memory: its tasks by name, our models before it, its results as rows.

lm-eval decides what a task asks and how an answer counts. Here it is only kept quiet, told of tasks in folders of ours,
and stopped from reading its 14,685 own ones (22 s) where none of them is asked for.
"""

from __future__ import annotations

import copy
import io
import json
import logging
import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from reptrace.models.hidden_states import NonFiniteError
from reptrace.models.positions import Rotaries, context
from reptrace.models.scoring import score
from reptrace.support.arguments import near
from reptrace.support.fingerprints import files_fingerprint
from reptrace.tasks import task_files
from reptrace.texts.ngrams import NgramModel
from reptrace.texts.probes import without_draws
from reptrace.texts.token_ids import reading_fingerprint

BOOTSTRAPS = 1000  # for metrics that are no mean, such as lambada's perplexity
ENCODED_TEXTS = 200_000
FILES = 16  # whose tasks are kept
_of_files: dict[tuple, list] = {}
_one_at_a_time = threading.RLock()  # of this process's threads


def run(model, tokenizer, spec: Mapping, batch_size: int | str, limit: int | None, file: str | Path | None,
        folders: Sequence[Path], num_fewshot: int | None = None, progress: bool = False) -> list[dict]:
    """One task (or tag, or group) on one model; rows as of `evaluation.evaluate`. To be called inside `quiet`."""
    from lm_eval import simple_evaluate

    known = manager([spec["task"]], folders)
    with quiet_messages():
        scorer = _language_model(model, tokenizer, batch_size)
        scorer.progress = progress
        with without_draws(scorer.tokenizer):
            results = simple_evaluate(
                scorer, tasks=_tasks(known, spec, file, folders, num_fewshot), num_fewshot=num_fewshot,
                limit=limit, batch_size=batch_size, task_manager=known, bootstrap_iters=BOOTSTRAPS,
                # leaves the caller's generators alone
                random_seed=None, numpy_random_seed=None, torch_random_seed=None)
    return _rows(results, scorer.truncated)


def manager(names: Sequence[str], folders: Sequence[Path]):
    """lm-eval's TaskManager that knows all these names, with its own tasks only where they are needed.

    Raises
    ------
    KeyError
        No such task; says which names are near.
    """
    from lm_eval.tasks import TaskManager

    with quiet_messages():
        found = TaskManager(include_path=list(folders), include_defaults=False)
        if not all(name in found.task_index for name in names):
            found = _with_stock_tasks(tuple(folders))
    for name in names:
        if name not in found.task_index:
            raise KeyError(f"there is no task {name!r}.{near(name, found.task_index)} Names are those of lm-eval "
                           f"and of the YAML files in {', '.join(map(str, folders))}.")
    return found


def _with_stock_tasks(folders: tuple[Path, ...]):
    return _read_stock_tasks(folders, task_files.fingerprint(folders))


@cache
def _read_stock_tasks(folders: tuple[Path, ...], state: str):
    """Read once a process for folders whose files stay the same, by their fingerprint `state`."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=list(folders))


def _tasks(known, spec: Mapping, file: str | Path | None, folders: Sequence[Path], num_fewshot: int | None) -> list:
    """`_built`; with a file, once a process for the same content, and its items as a list: the checkpoints of a suite
    are asked the same, and lm-eval goes over the items four times for each, which takes longer in a data set.

    lm-eval sets all that it changes of a task anew, but for the number of examples.
    """
    if file is None or not Path(file).is_file():
        return _built(known, spec, file)
    key = (json.dumps(spec, sort_keys=True, default=repr), files_fingerprint([("", Path(file))]),
           task_files.fingerprint(folders), num_fewshot)
    if key not in _of_files:
        if len(_of_files) >= FILES:
            _of_files.clear()
        _of_files[key] = _built(known, spec, file)
        for task in _of_files[key]:
            task.dataset = {split: list(items) for split, items in task.dataset.items()}
    return _of_files[key]


def _built(known, spec: Mapping, file: str | Path | None) -> list:
    """lm-eval's task objects of one name, more than one for a tag; `file` takes the place of the data set."""
    # The manager's own `load` takes other keys only for tasks it does not know.
    from lm_eval.tasks._factory import TaskFactory

    entry, overrides = known.task_index[spec["task"]], {key: spec[key] for key in spec if key != "task"}
    if file is not None:
        if not Path(file).is_file():
            raise FileNotFoundError(f"there is no file {str(file)!r} with data for the task {spec['task']!r}.")
        keys = ("training_split", "validation_split", "test_split", "fewshot_split")
        splits = sorted({(entry.cfg or {}).get(key) for key in keys} - {None})
        cache = Path(file).parent / "datasets" / files_fingerprint([("", Path(file))])  # its own: by times
        overrides |= {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {
            "data_files": dict.fromkeys(splits, str(file)), "cache_dir": str(cache)}}
    built = TaskFactory().build(entry, overrides=overrides or None, registry=known.task_index)
    return built if isinstance(built, list) else [built]


def _language_model(model, tokenizer, batch_size: int | str):
    if isinstance(model, NgramModel):
        return _ngram_class()(model, tokenizer)
    # The softmax in float32 at least, where lm-eval would take a bfloat16 model's own dtype; a copy of the tokenizer,
    # because lm-eval may give it a padding token; the model's own context, whatever the tokenizer says of it.
    scorer = _scorer_class()(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size,
                             max_length=context(model.config),
                             softmax_dtype=torch.promote_types(model.dtype, torch.float32))
    scorer.encoded = _encoded_by(reading_fingerprint(tokenizer), scorer.add_bos_token)
    return scorer


@lru_cache(4)
def _encoded_by(tokenizer: str, add_bos_token: bool | None) -> dict:
    """text -> token ids, of a tokenizer by its fingerprint: one and the same may read otherwise once it was changed."""
    return {}


@cache
def _scorer_class():
    from lm_eval.models.huggingface import HFLM

    class Scorer(HFLM):
        """Encodes a text once for all its choices and for all checkpoints that come with the same tokenizer,
        and computes no logits that nobody reads: both otherwise take longer than a small model's blocks."""

        truncated = 0  # prompts that were cut on the left to fit the context
        progress = False

        def _loglikelihood_tokens(self, requests, disable_tqdm=False, override_bs=None):
            longest = self.max_length
            sequences = [[*context, *continuation][-longest - 1 :] for _, context, continuation in requests]
            starts = [len(sequence) - len(continuation)
                      for sequence, (_, _, continuation) in zip(sequences, requests, strict=True)]
            if min(starts, default=1) < 1:
                raise ValueError(f"an answer is longer than the model's context of {longest} tokens.")
            self.truncated += sum(len(context) + len(continuation) > longest + 1
                                  for _, context, continuation in requests)
            size = self._detect_batch_size() if self.batch_size == "auto" else self.batch_size
            found = score(self.model, sequences, starts, override_bs or size, self.progress)
            return list(zip(found.log_probability.tolist(), found.greedy.tolist(), strict=True))

        def generate_until(self, requests, disable_tqdm=False):
            size = self.batch_size_per_gpu
            try:
                if Rotaries(self.model):  # angles would be those of the longest prompt
                    self.batch_size_per_gpu = 1
                return super().generate_until(requests, disable_tqdm)
            finally:
                self.batch_size_per_gpu = size

        def tok_encode(self, string, *args, **options):
            key = (string, *args, *sorted(options.items()))
            if key not in self.encoded:
                if len(self.encoded) >= ENCODED_TEXTS:
                    self.encoded.clear()
                self.encoded[key] = tuple(super().tok_encode(string, *args, **options))
            return list(self.encoded[key])

    return Scorer


@cache
def _ngram_class():
    from lm_eval.api.model import TemplateLM

    class NgramLM(TemplateLM):
        """An n-gram model, for tasks that compare log-likelihoods."""

        def __init__(self, model: NgramModel, tokenizer):
            super().__init__()
            self.model, self.tokenizer, self.truncated = model, tokenizer, 0

        @property
        def eot_token_id(self):
            return self.tokenizer.eos_token_id

        def tok_encode(self, string, add_special_tokens=None, **options):
            return self.tokenizer(string, add_special_tokens=False)["input_ids"]

        def _loglikelihood_tokens(self, requests, **options):
            return [(float(score), False) for score in self.model.score([ids for _, *ids in requests])]

        def loglikelihood_rolling(self, requests, disable_tqdm=False):
            raise NotImplementedError("an n-gram model answers tasks that compare log-likelihoods, no others.")

        generate_until = loglikelihood_rolling

    return NgramLM


def _rows(results: Mapping, truncated: int) -> list[dict]:
    samples = results["samples"]
    _check_finite(samples)
    rows = []
    for task, found in results["results"].items():
        counts = results["n-samples"].get(task, {})  # a group has none
        for key, value in found.items():
            metric, _, kept = key.partition(",")
            if not kept or metric.endswith("_stderr"):
                continue
            stderr = found.get(f"{metric}_stderr,{kept}")
            items = [item[metric] for item in samples.get(task, []) if item["filter"] == kept and metric in item]
            plain = bool(items) and all(isinstance(item, (int, float, np.number)) for item in items)
            rows.append({
                "task": task, "version": str(results["versions"].get(task)), "metric": metric, "filter": kept,
                "value": float(value), "stderr": float(stderr) if isinstance(stderr, (int, float)) else math.nan,
                "samples": counts.get("effective", found["sample_len"]), "available": counts.get("original"),
                "shots": results["n-shot"].get(task), "truncated": truncated,
                "higher_is_better": results["higher_is_better"].get(task, {}).get(metric),
                "items": list(map(float, items)) if plain else None})
    return rows


def _check_finite(samples: Mapping[str, list[dict]]) -> None:
    """NaN would win every choice: numpy's argmax takes it for the largest number."""
    for task, items in samples.items():
        for item in items:
            for response in item["filtered_resps"]:
                score = response[0] if isinstance(response, tuple) else None
                if isinstance(score, float) and not math.isfinite(score):
                    raise NonFiniteError(f"the log-likelihood of an answer to item {item['doc_id']} of {task!r} is "
                                         f"{score}: damaged weights, or a dtype whose range is too small.")


@contextmanager
def quiet(progress: bool = False) -> Iterator[None]:
    """lm-eval without its bars (unless `progress`), its prints, its child processes, and its look at pip and git.

    For the whole process, so one thread at a time: others (a Dask worker may have many) wait here.
    """
    with _one_at_a_time, _quieted(progress):
        yield


@contextmanager
def _quieted(progress: bool) -> Iterator[None]:
    import datasets
    from lm_eval import evaluator
    from lm_eval.api import model, task
    from lm_eval.models import huggingface

    def bar(*args, **options):
        return tqdm(*args, **{**options, "disable": not progress})

    # What it would add to its results takes seconds of `pip list` and the like; records have provenance of their own.
    changed = [(evaluator, "add_env_info", lambda results: None), (evaluator, "get_git_commit_hash", lambda: None),
               *((module, "tqdm", bar) for module in (task, model, huggingface))]
    originals = [(module, name, getattr(module, name)) for module, name, _ in changed]
    bars, serial = datasets.are_progress_bars_disabled(), os.environ.get("DISABLE_MULTIPROC")
    try:
        datasets.disable_progress_bars()
        os.environ["DISABLE_MULTIPROC"] = "1"  # its bootstrap would start a process a core
        for module, name, value in changed:
            setattr(module, name, value)
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        for module, name, value in originals:
            setattr(module, name, value)
        if serial is None:
            os.environ.pop("DISABLE_MULTIPROC", None)
        if not bars:
            datasets.enable_progress_bars()


@contextmanager
def quiet_messages() -> Iterator[list[str]]:
    """lm-eval's log messages from WARNING on, in a list and nowhere else."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("lm_eval")
    with _one_at_a_time:
        before = logger.handlers, logger.propagate, logger.level
        try:
            logger.handlers, logger.propagate = [handler], False
            logger.setLevel(logging.WARNING)
            yield messages
        finally:
            logger.handlers, logger.propagate = before[:2]
            logger.setLevel(before[2])

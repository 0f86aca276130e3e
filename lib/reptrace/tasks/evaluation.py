"""Tasks, and the loss on held-out text, on a model in memory: rows with standard errors, for records.

lm-eval runs the tasks on a model that is already open, so a small suite, a Pythia branch and a model with directions
removed (`eigendirections`) are treated alike. Stock tasks go by lm-eval's names. Those of the small suites are the YAML
files in the folder `local` beside this module; what they ask comes from `items`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from reptrace.models import batches
from reptrace.models.decoders import devices_of, vocabulary
from reptrace.models.hidden_states import NonFiniteError
from reptrace.models.independence import passes_alone
from reptrace.models.modes import evaluating
from reptrace.models.positions import context, rotaries
from reptrace.support import arguments
from reptrace.tasks import harness
from reptrace.texts.ngrams import NgramModel
from reptrace.texts.token_ids import checked_sequences

LOCAL = Path(__file__).with_name("local")
LOSS = "loss"  # asked for like a task, though none of lm-eval's


def evaluate(model, tokenizer, tasks: Sequence[str | Mapping], batch_size: int | str, limit: int | None = None,
             data: Mapping[str, str | Path] | None = None, include: Sequence[str | Path] = (),
             num_fewshot: int | None = None, progress: bool = False) -> list[dict]:
    """Results of lm-eval's tasks on a model in memory, a row for each metric of each task.

    Parameters
    ----------
    model : transformers causal LM on its device, or NgramModel
        Left as it is, its training mode too.
    tokenizer : transformers tokenizer
    tasks : names of tasks, groups or tags, or one; or {"task": name, key: value} where a key of the task's YAML differs
        Local tasks are known at once. For any other, all of lm-eval's own are read: 22 s, once a process.
    batch_size : int or "auto"
        Requests a batch. (Where lm-eval is not told, it takes one at a time.)
    limit : int, optional
        Only the first so many items.
    data : mapping of task -> path, optional
        JSON lines in place of the data set that the task names, for all its splits. The local tasks need it: see
        `items.make`.
    include : folders with further YAML tasks
    num_fewshot : int, optional
        Examples before each question; default the task's own number, or 0.
    progress : bool, default False
        Show lm-eval's progress bars.

    Returns
    -------
    list of dict
        task, version, metric, filter, value, stderr (lm-eval's: for a mean, that of independent items; nan where it
        knows none), samples (items answered), available (items there are), shots, higher_is_better, truncated
        (requests whose prompt was cut on the left to fit the context), items (the metric's value for each item, in
        their order, to compare two models item by item; None where it has no such values).

    Raises
    ------
    KeyError
        No such task; says which names are near.
    ValueError
        No tasks; a local task without its data; a batch size that is not positive.
    NonFiniteError
        A log-likelihood is NaN or infinite.
    """
    batches.check_batch_size(batch_size)
    specs, folders = [spec_of(task) for task in as_tasks(tasks)], folders_of(include)
    check_data(data)
    if not specs:
        raise ValueError("there are no tasks to run.")
    for name in {spec["task"] for spec in specs} & {path.stem for path in LOCAL.glob("*.yaml")} - set(data or {}):
        raise ValueError(f"the task {name!r} asks what a file made by items.make holds: pass data={{{name!r}: path}}.")
    harness.manager([spec["task"] for spec in specs], folders)  # a wrong name is told before anything runs
    with harness.quiet(progress), nullcontext() if isinstance(model, NgramModel) else evaluating(model):
        return [row for spec in specs for row in harness.run(
            model, tokenizer, spec, batch_size, limit, (data or {}).get(spec["task"]), folders, num_fewshot, progress)]


def loss(model, sequences: Sequence[Sequence[int]], batch_size: int, progress: bool = False) -> dict:
    """Mean loss on token sequences, in nats a token, as a row like those of `evaluate`.

    Parameters
    ----------
    model : transformers causal LM on its device; left as it is
    sequences : lists of token ids, of two tokens or more each: the first is given, not predicted
    batch_size : int, in sequences
    progress : bool, default False

    Returns
    -------
    dict
        `value`: the sum of -ln P of all predicted tokens over their number; logits in float32 at least, sums in
        float64. `stderr`: of that ratio, for sequences drawn independently. `items`: each sequence's own mean.
    """
    batches.check_batch_size(batch_size)
    sequences = checked_sequences(sequences, vocabulary(model), context(model.config), least=2)
    sums, lengths = np.zeros(len(sequences)), list(map(len, sequences))
    with (torch.inference_mode(), evaluating(model), rotaries(model) as rotary,
          batches.progress_bar(lengths, "loss", progress) as advance):
        size = 1 if passes_alone(model, sequences, rotary) else batch_size
        for rows in batches.of_size(lengths, size, rotary.kind):
            rotary.reset()
            sums[rows] = _nats(model, [sequences[row] for row in rows])
            advance(rows)
    if not np.isfinite(sums).all():
        raise NonFiniteError(f"the loss of sequence {int(np.isfinite(sums).argmin())} is NaN or infinite.")
    counts, size = np.array(lengths) - 1, len(sums)
    mean = sums.sum() / counts.sum()
    spread = ((sums - mean * counts) ** 2).sum() * size / (size - 1) if size > 1 else math.nan
    return {"task": LOSS, "version": "1", "metric": "nats_per_token", "filter": "none", "value": float(mean),
            "stderr": math.sqrt(spread) / float(counts.sum()), "samples": size, "available": size, "shots": 0,
            "truncated": 0, "higher_is_better": False, "items": (sums / counts).tolist()}


def paired_change(before, after) -> tuple[float, float, float]:
    """Mean difference of two models' values on the same items, after minus before, with its 95 % interval.

    Normal approximation of the paired difference, as lm-eval's standard errors are of each by itself; items are taken
    as independent.
    """
    difference = np.asarray(after, float) - np.asarray(before, float)
    if difference.ndim != 1 or len(difference) < 2:
        raise ValueError(f"paired values of two items or more are needed, got shape {difference.shape}.")
    mean, half = difference.mean(), 1.96 * difference.std(ddof=1) / math.sqrt(len(difference))
    return float(mean), float(mean - half), float(mean + half)


def _nats(model, sequences: Sequence[np.ndarray]) -> np.ndarray:
    """Sum of -ln P over the predicted tokens of each sequence; float64, shape (batch,)."""
    device = devices_of(model)[0]
    ids, last = (tensor.to(device) for tensor in batches.padded(sequences))
    # Padded on the right and causal: no real token sees the padding.
    logits = model(input_ids=ids, use_cache=False).logits
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    targets = ids.roll(-1, 1)  # the last position's too, which is not counted: without it, all logits would be copied
    nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    nats = nats.view(targets.shape)
    real = torch.arange(nats.shape[1], device=device) < last[:, None]
    return torch.where(real, nats, 0).double().sum(1).cpu().numpy()


def as_tasks(given) -> list:
    """What is asked, as a list; a single name, mapping or other object counts as a list of one."""
    return [given] if isinstance(given, (str, Mapping)) or not isinstance(given, Iterable) else list(given)


def check_data(data: Mapping | None) -> None:
    if data is not None and not isinstance(data, Mapping):
        raise TypeError(f"data says which file each task asks, as {{task: path}}; got {arguments.shown(data)}.")


def spec_of(task: str | Mapping) -> dict:
    return {"task": task} if isinstance(task, str) else dict(task)


def folders_of(include: Sequence[str | Path]) -> list[Path]:
    include = arguments.names(include, "folders of tasks")
    for folder in include:
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"there is no folder of tasks {str(folder)!r}.")
    return [LOCAL, *map(Path, include)]

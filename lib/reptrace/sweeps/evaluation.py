"""Tasks, losses and memorization over checkpoints of any suite: rows for records, each measured once.

A checkpoint is opened once, LM head included, for all that it lacks, and not at all where it lacks nothing. What fails
is a recorded gap, tried again by the next call. Weights from the hub are fetched ahead and deleted, as in a sweep.
"""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from importlib import metadata
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from reptrace.checkpoints.downloads import Downloads
from reptrace.checkpoints.hub import Files
from reptrace.checkpoints.suites import Checkpoint, as_checkpoints
from reptrace.checkpoints.weights import SMALL
from reptrace.memorization.questions import Questions
from reptrace.models import hidden_states, loading
from reptrace.models.eigendirections import Projection, directions
from reptrace.records.store import Store
from reptrace.support import arguments
from reptrace.support.fingerprints import files_fingerprint
from reptrace.support.processes import end_with_parent
from reptrace.sweeps.measurement import check_unchanged, identity_of, open_at, place
from reptrace.sweeps.sweep import located
from reptrace.tasks import evaluation, harness, task_files
from reptrace.texts.probes import Probe
from reptrace.texts.token_ids import reading_fingerprint

METHOD = 2  # raised by hand when tasks, losses or memorization are measured differently from the same inputs


def evaluate_checkpoints(checkpoints: Sequence[Checkpoint], asked: Sequence[str | Mapping | Questions], store: Store,
                         batch_size: int, limit: int | None = None, data: Mapping[str, str | Path] | None = None,
                         include: Sequence[str | Path] = (), probe: Probe | None = None,
                         projections: Sequence[Projection | None] = (None,), workers: int = 1,
                         tokenizer=None, device: str | None = None, dtype: str | None = None,
                         trust: Sequence[str] = (), progress: bool = True) -> pd.DataFrame:
    """Tasks, loss and memorization on checkpoints, each done once and kept in the store.

    Interrupted at any moment, the next call goes on.

    Parameters
    ----------
    checkpoints : list of Checkpoint, or one; those with a known fault are rows with status "quarantined"
    asked : names of tasks, or what else `evaluation.evaluate` takes; "loss" for `evaluation.loss` on the probe;
        `Questions`; or one of these
    store : Store
    batch_size, data, include : see `evaluation.evaluate`
    limit : int, optional
        Only the first so many items of a task, and sequences for the loss.
    probe : Probe, optional
        Held-out sequences for "loss" and for the directions of projections.
    projections : list of Projection or None, default (None,)
        What is done to the states before the LM head; None: nothing.
    workers : int, default 1
        Checkpoints side by side, each in a process of its own with one thread: worth it for small models on a CPU.
    tokenizer : transformers tokenizer, optional; default each checkpoint's own
    device, dtype : see `loading.placement`
    trust : repositories whose own code may run
    progress : bool, default True

    Returns
    -------
    pandas.DataFrame
        Rows of `evaluation.evaluate`, `evaluation.loss` and `Questions.memorization` by checkpoint, projection and what
        was asked, in the orders given; with the checkpoint's place in its run, the projection's fields (k, kind, about,
        chosen, direction_seed), `status` and `reason`.
    """
    placement = loading.placement(device, dtype)
    checkpoints, folders = as_checkpoints(checkpoints), evaluation.folders_of(include)
    trust = arguments.trusted(trust)
    projections = (projections,) if projections is None or isinstance(projections, Projection) else tuple(projections)
    evaluation.check_data(data)
    specs = [each if isinstance(each, Questions) else evaluation.spec_of(each) for each in evaluation.as_tasks(asked)]
    stock = [spec["task"] for spec in specs if _is_task(spec)]
    if probe is not None and not isinstance(probe, Probe):
        raise TypeError("probe must be a Probe (reptrace.texts.corpora.probe(corpus, tokenizer, sequences)), got "
                        f"{arguments.shown(probe)}.")
    if probe is None and (any(map(_is_loss, specs)) or any(projections)):
        raise ValueError("the loss, and the directions of projections, are a probe's: pass probe=...")
    if stock:
        harness.manager(stock, folders)  # a wrong name is an error now, not a gap in every checkpoint
    files = task_files.fingerprints(folders) if stock else {}
    definitions = [_definition(spec, data or {}, files) for spec in specs]
    places = located([point for point in checkpoints if not point.fault], progress, trust)
    plan = _Plan(tuple(specs), tuple(definitions), projections, batch_size, limit, data,
                 arguments.names(include, "folders of tasks"), probe, tokenizer, placement, trust,
                 {point: _beside_the_weights(Path(point.model)) for point in places if Path(point.model).is_dir()},
                 progress and workers < 2)
    missing = [place for place in places.items()
               if not all(store.done(identity) for identity, *_ in plan.parts(*place))]
    with tqdm(total=len(missing), desc="tasks", unit="checkpoint", disable=not progress or not missing) as bar:
        if workers > 1 and len(missing) > 1:
            _side_by_side(plan, missing, store, workers, bar)
        else:
            _one_by_one(plan, missing, store, bar)
    tables = [_table(plan, point, places.get(point), store) for point in checkpoints]
    return pd.concat(tables, ignore_index=True)


@dataclass(frozen=True, eq=False)
class _Plan:
    """What is to be measured on every checkpoint, and how."""

    specs: tuple
    definitions: tuple[dict, ...]
    projections: tuple[Projection | None, ...]
    batch_size: int
    limit: int | None
    data: Mapping | None
    include: tuple
    probe: Probe | None = field(repr=False)
    tokenizer: object = field(repr=False)
    placement: tuple[str, str]
    trust: tuple[str, ...]
    beside: Mapping[Checkpoint, str]  # which tokenizer and the like, in a folder; a commit stands for all its files
    progress: bool  # within a checkpoint

    @cached_property
    def reading(self) -> str:
        return reading_fingerprint(self.tokenizer)

    def parts(self, point: Checkpoint, at) -> Iterator[tuple[dict, object, Projection | None]]:
        """(identity, what is asked, projection) of each record of a checkpoint."""
        device, dtype = self.placement
        reads = {"beside": self.beside[point]} if point in self.beside else {}
        reads |= {"tokenizer": self.reading} if self.tokenizer is not None else {}
        for projection in self.projections:
            for spec, definition in zip(self.specs, self.definitions, strict=True):
                needs_probe = bool(projection) or _is_loss(spec)
                yield {**identity_of(point, at.weights, self.trust), "definition": definition,
                       "limit": None if isinstance(spec, Questions) else self.limit, "batch_size": self.batch_size,
                       "device": device, "dtype": dtype, "projection": asdict(projection) if projection else None,
                       "probe": self.probe.fingerprint if needs_probe else None, "evaluation_method": METHOD,
                       **({} if _is_loss(spec) else reads)}, spec, projection

    def measure(self, point: Checkpoint, at, store: Store, downloads: Downloads | None = None,
                following: Files | None = None) -> None:
        """Measure what a checkpoint lacks, and write it."""
        device, dtype = self.placement
        facts = {"weights": at.weights, "device": device, "dtype_forward": dtype, "batch_size": str(self.batch_size)}
        with ExitStack() as held:
            opened = _Opened(self, point, at, lambda: held.enter_context(downloads.holding(at.files, following)))
            for identity, spec, projection in self.parts(point, at):
                store.measure(identity, partial(opened.rows, spec, projection), {"task": _name(spec), **facts})


class _Opened:
    """A checkpoint: its weights, tokenizer and directions are fetched, opened or measured when first asked for."""

    def __init__(self, plan: _Plan, point: Checkpoint, at, fetch: Callable):
        self.plan, self.point, self.at, self.fetch = plan, point, at, fetch
        self.found: dict = {}

    def rows(self, spec, projection: Projection | None) -> list[dict]:
        rows, point = self._rows(spec, projection), self.point
        check_unchanged(point, self.at, arguments.is_trusted(point.model, self.plan.trust))
        if point in self.plan.beside and self.plan.beside[point] != _beside_the_weights(Path(point.model)):
            raise ValueError(f"the tokenizer's files in {point.model!r} were written anew while it was measured: run "
                             "again once they stay as they are.")
        return rows

    def _rows(self, spec, projection: Projection | None) -> list[dict]:
        model, plan = self._once("model", self._model), self.plan
        with projection.applied(model, *self._once("directions", self._directions)) if projection else nullcontext():
            if isinstance(spec, Questions):
                return [spec.memorization(model, self._once("tokenizer", self._tokenizer), plan.batch_size,
                                          plan.progress)]
            if _is_loss(spec):
                return [evaluation.loss(model, plan.probe.sequences[: plan.limit], plan.batch_size, plan.progress)]
            return evaluation.evaluate(model, self._once("tokenizer", self._tokenizer), [spec], plan.batch_size,
                                       plan.limit, plan.data, plan.include, progress=plan.progress)

    def _model(self):
        cache_dir = self.fetch() if self.at.files else None
        return open_at(self.point, self.at, cache_dir, *self.plan.placement,
                       trust_remote_code=arguments.is_trusted(self.point.model, self.plan.trust), head=True)

    def _directions(self):
        return directions(hidden_states.last_token_states(
            self.found["model"], self.plan.probe.sequences, batch_size=self.plan.batch_size)["final"])

    def _tokenizer(self):
        if self.plan.tokenizer is not None:
            return self.plan.tokenizer
        point, folder = self.point, Path(self.point.model).is_dir()
        return loading.load_tokenizer(point.model, None if folder else self.at.weights, point.cache_dir,
                                      trust_remote_code=arguments.is_trusted(point.model, self.plan.trust))

    def _once(self, name: str, make: Callable):
        """What was made before; what failed before fails again, without another try."""
        if name not in self.found:
            try:
                self.found[name] = make()
            except Exception as error:
                self.found[name] = error
        if isinstance(self.found[name], Exception):
            raise self.found[name]
        return self.found[name]


def _one_by_one(plan: _Plan, missing: Sequence[tuple], store: Store, bar: tqdm) -> None:
    """In this process; the next checkpoint's weights are on their way meanwhile."""
    downloads = Downloads()
    try:
        for number, (point, at) in enumerate(missing):
            later = missing[number + 1][1].files if number + 1 < len(missing) else None
            plan.measure(point, at, store, downloads, later)
            bar.update()
    finally:
        downloads.close()


def _side_by_side(plan: _Plan, missing: Sequence[tuple], store: Store, workers: int, bar: tqdm) -> None:
    """In processes of their own, which are started anew, so that they hold nothing of this one's threads."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(missing)), context, _begin) as pool:
        futures = [pool.submit(_alone, plan, point, at, store) for point, at in missing]
        try:
            for future in as_completed(futures):
                future.result()
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin() -> None:
    end_with_parent()
    torch.set_num_threads(1)


def _alone(plan: _Plan, point: Checkpoint, at, store: Store) -> None:
    downloads = Downloads()
    try:
        plan.measure(point, at, store, downloads)
    finally:
        downloads.close()


def _table(plan: _Plan, point: Checkpoint, at, store: Store) -> pd.DataFrame:
    if at is None:
        return pd.DataFrame([{"status": "quarantined", "reason": point.fault, "task": _name(spec),
                              **_columns(projection), **place(point)}
                             for projection in plan.projections for spec in plan.specs])
    return pd.concat([store.table([identity]).assign(**place(point), **_columns(projection))
                      for identity, _, projection in plan.parts(point, at)])


def _beside_the_weights(folder: Path) -> str:
    """Hash of what a tokenizer and generation read from a model's folder, beside its weights."""
    return files_fingerprint((path.name, path) for path in sorted(folder.iterdir()) if SMALL.fullmatch(path.name))


def _is_task(spec) -> bool:
    return not isinstance(spec, Questions) and spec["task"] != evaluation.LOSS


def _is_loss(spec) -> bool:
    return not isinstance(spec, Questions) and spec["task"] == evaluation.LOSS


def _name(spec) -> str:
    return spec.task if isinstance(spec, Questions) else spec["task"]


def _columns(projection: Projection | None) -> dict:
    fields = asdict(projection) if projection else dict.fromkeys(("k", "kind", "about", "chosen", "seed"))
    return {"direction_seed": fields.pop("seed"), **fields}


def _definition(spec, data: Mapping[str, str | Path], files: Mapping[str, str]) -> dict:
    """What results depend on besides the model: lm-eval, the files of a task in our folders, a data file's content."""
    if not _is_task(spec):
        return {"task": _name(spec)} | ({"questions": spec.fingerprint} if isinstance(spec, Questions) else {})
    name = spec["task"]
    own = [files[name].encode()] if name in files else []  # lm-eval's tasks are those of its version
    given = [Path(data[name]).read_bytes()] if name in data else []
    digest = hashlib.sha256(b"\0".join([*own, *given]))
    return {**spec, "files": digest.hexdigest()[:16], "lm_eval": metadata.version("lm_eval")}

"""Tasks, losses and memorization over checkpoints of any suite: rows for records, each measured once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from importlib import metadata
from pathlib import Path

import pandas as pd

from reptrace.checkpoints import weights
from reptrace.checkpoints.listing import Checkpoint, as_checkpoints
from reptrace.memorization.questions import Questions
from reptrace.models import loading
from reptrace.models.eigendirections import Projection, directions
from reptrace.models.hidden_states import last_token_states
from reptrace.models.remembering import remembering
from reptrace.records.store import Store
from reptrace.support import arguments
from reptrace.sweeps.dispatch import Means, run
from reptrace.sweeps.jobs import Job, Opened, Part
from reptrace.sweeps.located import Opening, place
from reptrace.tasks import evaluation, harness, task_files
from reptrace.texts.probes import Probe
from reptrace.texts.token_ids import reading_fingerprint

METHOD = 2  # raised by hand when tasks, losses or memorization are measured differently from the same inputs


def evaluate_checkpoints(checkpoints: Sequence[Checkpoint], asked: Sequence[str | Mapping | Questions], store: Store,
                         batch_size: int, limit: int | None = None, data: Mapping[str, str | Path] | None = None,
                         include: Sequence[str | Path] = (), probe: Probe | None = None,
                         projections: Sequence[Projection | None] = (None,), tokenizer=None, device: str | None = None,
                         dtype: str | None = None, trust: Sequence[str] = (), faulty: bool = False,
                         **means) -> pd.DataFrame:
    """Tasks, loss and memorization on checkpoints, each done once and kept in the store.

    Interrupted at any moment, the next call goes on; several calls may share a store.

    Parameters
    ----------
    checkpoints : list of Checkpoint, or one
    asked, batch_size, limit, data, include, probe, projections, tokenizer : see `task_parts`
    store : Store
    device, dtype, trust : see `Opening`
    faulty : bool, default False
        Ask checkpoints with a known fault too; otherwise they are rows with status "quarantined".
    means : see `dispatch.Means`
        With a cluster, the folders of `include` and the files of `data` must be there for its workers under the same
        names, with the same content.

    Returns
    -------
    pandas.DataFrame
        Rows of `evaluation.evaluate`, `evaluation.loss` and `Questions.memorization` by checkpoint, projection and what
        was asked, in the orders given; with the checkpoint's place in its run, the projection's fields (k, kind, about,
        chosen, direction_seed), `status` and `reason`.
    """
    points, means = as_checkpoints(checkpoints), Means(**means)
    parts = task_parts(asked, batch_size, limit, data, include, probe, projections, tokenizer)
    (jobs,) = run([(points, parts)], store, Opening(device, dtype, trust), means, faulty)
    return table_of(points, parts, jobs, store)


def task_parts(asked: Sequence[str | Mapping | Questions], batch_size: int = 16, limit: int | None = None,
               data: Mapping[str, str | Path] | None = None, include: Sequence[str | Path] = (),
               probe: Probe | None = None, projections: Sequence[Projection | None] = (None,), tokenizer=None
               ) -> list[TaskPart]:
    """What is asked of every checkpoint, checked: a wrong name is an error now, not a gap in every checkpoint.

    Parameters
    ----------
    asked : names of tasks, or what else `evaluation.evaluate` takes; "loss" for `evaluation.loss` on the probe;
        `Questions`; or one of these
    batch_size, data, include : see `evaluation.evaluate`
    limit : int, optional
        Only the first so many items of a task, and sequences for the loss.
    probe : Probe, optional
        Held-out sequences for "loss" and for the directions of projections.
    projections : list of Projection or None, default (None,)
        What is done to the states before the LM head; None: nothing.
    tokenizer : transformers tokenizer, optional; default each checkpoint's own
    """
    folders = evaluation.folders_of(include)
    projections = (projections,) if projections is None or isinstance(projections, Projection) else tuple(projections)
    evaluation.check_data(data)
    specs = [each if isinstance(each, Questions) else evaluation.spec_of(each) for each in evaluation.as_tasks(asked)]
    if probe is not None and not isinstance(probe, Probe):
        raise TypeError("probe must be a Probe (reptrace.texts.corpora.probe(corpus, tokenizer, sequences)), got "
                        f"{arguments.shown(probe)}.")
    if probe is None and (any(map(_is_loss, specs)) or any(projections)):
        raise ValueError("the loss, and the directions of projections, are a probe's: pass probe=...")
    stock = [spec["task"] for spec in specs if _is_task(spec)]
    if stock:
        harness.manager(stock, folders)
    files = task_files.fingerprints(folders) if stock else {}
    reading = "" if tokenizer is None else reading_fingerprint(tokenizer)
    return [TaskPart(spec, _definition(spec, data or {}, files), projection, batch_size, limit, data,
                     arguments.names(include, "folders of tasks"), probe if projection or _is_loss(spec) else None,
                     None if _is_loss(spec) else tokenizer, reading)
            for projection in projections for spec in specs]


@dataclass(frozen=True)
class Asked:
    """Tasks that a sweep asks besides its geometry; the fields are arguments of `task_parts`."""

    tasks: Sequence[str | Mapping | Questions]
    batch_size: int = 16
    limit: int | None = None
    data: Mapping[str, str | Path] | None = None
    include: Sequence[str | Path] = ()
    tokenizer: object = field(default=None, repr=False)

    def parts(self, probe: Probe | None) -> list[TaskPart]:
        return task_parts(self.tasks, self.batch_size, self.limit, self.data, self.include, probe,
                          tokenizer=self.tokenizer)


@dataclass(frozen=True, eq=False)
class TaskPart(Part):
    """A task of lm-eval, the loss, or memorization, under one projection."""

    spec: Mapping | Questions = field(repr=False)
    definition: Mapping
    projection: Projection | None
    batch_size: int
    limit: int | None
    data: Mapping | None
    include: tuple
    probe: Probe | None = field(repr=False)
    tokenizer: object = field(repr=False)
    reading: str

    head = True

    @property
    def name(self) -> str:
        return _name(self.spec)

    @property
    def reads(self) -> bool:
        """Whether it reads text, by a tokenizer."""
        return not _is_loss(self.spec)

    @property
    def columns(self) -> dict:
        found = asdict(self.projection) if self.projection else {each.name: None for each in fields(Projection)}
        return {"direction_seed": found.pop("seed"), **found}

    def identity(self, job: Job) -> dict:
        reads = {"beside": job.at.beside} if job.at.beside else {}
        reads |= {"tokenizer": self.reading} if self.reading else {}
        return {"definition": self.definition, "limit": None if isinstance(self.spec, Questions) else self.limit,
                "batch_size": self.batch_size, "device": job.opening.device, "dtype": job.opening.dtype,
                "projection": asdict(self.projection) if self.projection else None,
                "probe": self.probe.fingerprint if self.probe else None, "evaluation_method": METHOD,
                **(reads if self.reads else {})}

    def facts(self, job: Job) -> dict:
        return {"task": self.name, "weights": job.at.weights, **(job.at.stored or {}), "device": job.opening.device,
                "dtype_forward": job.opening.dtype, "batch_size": str(self.batch_size)}

    def rows(self, opened: Opened, progress: bool) -> list[dict]:
        model = opened.model
        with self._projected(opened):
            if isinstance(self.spec, Questions):
                return [self.spec.memorization(model, self._tokenizer(opened), self.batch_size, progress)]
            if _is_loss(self.spec):
                return [evaluation.loss(model, self.probe.sequences[: self.limit], self.batch_size, progress)]
            self._check_definition(opened)
            return evaluation.evaluate(model, self._tokenizer(opened), [self.spec], self.batch_size, self.limit,
                                       self.data, self.include, progress=progress)

    @contextmanager
    def _projected(self, opened: Opened) -> Iterator[None]:
        if not self.projection:
            yield
            return
        kept = opened.once("decoder's outputs", dict)
        with self.projection.applied(opened.model, *self._directions(opened)), remembering(opened.model, kept):
            yield

    def _check_definition(self, opened: Opened) -> None:
        """ValueError where the task's files, or lm-eval, are not here what they were where the task was asked."""
        files = opened.once(("files", self.include),
                            lambda: task_files.fingerprints(evaluation.folders_of(self.include)))
        if _definition(self.spec, self.data or {}, files) != self.definition:
            raise ValueError(f"the files of the task {self.name!r}, its data or lm-eval's version "
                             f"({metadata.version('lm_eval')}) are not those that were there when it was asked: "
                             "were they changed meanwhile, or are a worker's others?")

    def _directions(self, opened: Opened):
        return opened.once(("directions", self.probe.fingerprint, self.batch_size), lambda: directions(
            last_token_states(opened.model, self.probe.sequences, batch_size=self.batch_size)["final"]))

    def _tokenizer(self, opened: Opened):
        return self.tokenizer or opened.once("tokenizer", partial(own_tokenizer, opened.job))


def table_of(checkpoints: Sequence[Checkpoint], parts: Sequence[TaskPart], jobs: Sequence[Job], store: Store
             ) -> pd.DataFrame:
    """What the store holds of these jobs, in the order of the checkpoints, with gaps and known faults."""
    by_point, tables = {job.checkpoint: job for job in jobs}, []
    for point in checkpoints:
        for part in parts:
            if point in by_point:
                table = store.table([by_point[point].identity(part)])
            else:
                table = pd.DataFrame([{"status": "quarantined", "reason": point.fault, "task": part.name}])
            tables.append(table.assign(**place(point), **part.columns))
    return pd.concat(tables, ignore_index=True)


def own_tokenizer(job: Job):
    """The tokenizer stored with a job's checkpoint."""
    point, here = job.checkpoint, weights.is_here(job.checkpoint.model)
    return loading.load_tokenizer(point.model, None if here else job.at.weights, point.cache_dir,
                                  trust_remote_code=job.opening.trusts(point))


def _is_task(spec) -> bool:
    return not isinstance(spec, Questions) and spec["task"] != evaluation.LOSS


def _is_loss(spec) -> bool:
    return not isinstance(spec, Questions) and spec["task"] == evaluation.LOSS


def _name(spec) -> str:
    return spec.task if isinstance(spec, Questions) else spec["task"]


def _definition(spec, data: Mapping[str, str | Path], files: Mapping[str, str]) -> dict:
    """What results depend on besides the model: lm-eval, the files of a task in our folders, a data file's content."""
    if not _is_task(spec):
        return {"task": _name(spec)} | ({"questions": spec.fingerprint} if isinstance(spec, Questions) else {})
    name = spec["task"]
    own = [files[name].encode()] if name in files else []  # lm-eval's tasks are those of its version
    given = [Path(data[name]).read_bytes()] if name in data else []
    digest = hashlib.sha256(b"\0".join([*own, *given]))
    return {**spec, "files": digest.hexdigest()[:16], "lm_eval": metadata.version("lm_eval")}

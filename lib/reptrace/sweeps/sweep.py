"""Suites x what is measured -> records: what is missing is measured, what is there is read.

One checkpoint is one job: its weights are fetched and opened once for all probes, layers and tasks. This module says
what there is to do; `measurement` and `evaluation` say what doing it is, and `dispatch` gets it done, here or on a
cluster.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from reptrace.checkpoints import hub, suites
from reptrace.checkpoints.listing import Checkpoint, as_checkpoints
from reptrace.checkpoints.selection import refine as refine_selection
from reptrace.checkpoints.selection import spread, with_faults
from reptrace.measures.measure import OF_THE_RUN, REFERENCES
from reptrace.records.joining import joined, shared
from reptrace.records.store import Store
from reptrace.support import arguments
from reptrace.sweeps import evaluation
from reptrace.sweeps.dispatch import Means, run
from reptrace.sweeps.jobs import Job
from reptrace.sweeps.located import Opening, on_hub, place
from reptrace.sweeps.measurement import GeometryPart, Settings, facts_of
from reptrace.sweeps.tokenizers import tokenizer_of
from reptrace.sweeps.twins import same_geometry, same_weights
from reptrace.texts import corpora
from reptrace.texts.corpora import ProbeSpec
from reptrace.texts.probes import Probe

NOTHING = "a sweep needs a suite and a text at least, or a suite and a task, by name."
OF_A_TEXT = ProbeSpec.__dataclass_fields__
MEASURED = ("layer", "rankme", "rankme_stderr", "alpha", "alpha_stderr", "alpha_r2", "largest_influence",
            "half_variance", "wall_seconds")
PLACE = ("model", "revision", "stage", "step", "tokens", "fault", "same_weights_as", "same_geometry_as", "suite")


@dataclass(frozen=True)
class SuiteSpec:
    """Which checkpoints of which registered suites.

    Parameters
    ----------
    names : names of suites (`python -m reptrace suites` lists them)
    count : int, optional
        Checkpoints of each suite, spread on a log scale (`selection.spread`); default all.
    refine : int, default 0
        So many more of each suite afterwards, where its RankMe bends (`selection.refine`).
    suite_files : further YAML files of suites
    stages : only these stages of each suite; default all
    faulty : bool, default False
        Measure checkpoints with a known fault too; otherwise they are rows with status "quarantined".
    """

    names: str | Sequence[str]
    count: int | None = None
    refine: int = 0
    suite_files: Sequence[str | Path] = ()
    stages: Sequence[str] = ()
    faulty: bool = False

    def checkpoints(self) -> dict[str, list[Checkpoint]]:
        """All that there are of each suite, in its order."""
        names, stages = arguments.names(self.names, "suites"), arguments.names(self.stages, "stages")
        files = arguments.names(self.suite_files, "files of suites")
        return {name: suites.suite(name, *files).of_stages(stages).checkpoints() for name in names}


class Swept(NamedTuple):
    """What `measure_suites` measured: see `sweep` and `evaluation.evaluate_checkpoints`; None where it was not asked
    for. Both tables have a column `suite`."""

    geometry: pd.DataFrame | None
    tasks: pd.DataFrame | None


def sweep(names: str | Sequence[str], texts: str | ProbeSpec | Sequence[str | ProbeSpec], folder: str | Path,
          **options) -> pd.DataFrame:
    """Geometry of registered suites on texts.

    Parameters
    ----------
    names, texts, folder : see `measure_suites`
    options : fields of `SuiteSpec`, `Settings`, `Opening` and `Means`

    Returns
    -------
    pandas.DataFrame as of `trace`, with columns `suite` and `same_geometry_as` (a second detector of wrong weights, see
    `twins.same_geometry`); known faults stand in it as "quarantined".
    """
    if not _specs(texts):
        raise ValueError(NOTHING)
    which, *how = _values({"names": names, **options}, SuiteSpec, Settings, Opening, Means)
    return measure_suites(which, texts, folder, None, *how).geometry


def _values(options: dict, *kinds: type) -> list:
    """Options by the values that they are fields of; batches as memory allows, unless another size is given."""
    options = {"batch_size": "auto", **options}
    fields = [kind.__dataclass_fields__ for kind in kinds]
    if unknown := set(options) - set().union(*fields):
        of_text = " Those of a text go with it, as ProbeSpec(text, ...)." if unknown & set(OF_A_TEXT) else ""
        raise TypeError(f"there is no option {', '.join(sorted(unknown))}; there are "
                        f"{', '.join(name for each in fields for name in each)}.{of_text}")
    return [kind(**{name: options[name] for name in each if name in options})
            for kind, each in zip(kinds, fields, strict=True)]


def measure_suites(which: SuiteSpec, texts: str | ProbeSpec | Sequence[str | ProbeSpec], folder: str | Path,
                   asked: evaluation.Asked | None, settings: Settings, opening: Opening, means: Means) -> Swept:
    """Registered suites, on texts and on tasks: which checkpoints there are, which to measure, and the measuring.

    Parameters
    ----------
    which : SuiteSpec
    texts : ProbeSpec, or the name of a text (see `corpora.open_text`), or several
        Every suite's own tokenizer turns each into a probe.
    folder : str or Path
        Holds `records`, `probes` (the documents' hashes) and `corpora`.
    asked : Asked or None
        Tasks, too. "loss" is that on the first text.
    settings, opening, means : how checkpoints are measured and opened, and by what means
    """
    folder, specs = Path(folder), _specs(texts)
    known = which.checkpoints()
    if not known or not (specs or asked):
        raise ValueError(NOTHING)
    _check_reference(settings, None)
    if which.refine and not (specs and "rankme" in settings.measures):
        raise ValueError("refining goes where RankMe bends: that takes a text, and rankme among the measures.")
    if which.refine and settings.needs.intersection(OF_THE_RUN):
        raise ValueError("refining puts checkpoints between others, which then have another previous one: ask for cka "
                         "in a second call, without refining.")
    texts = {spec: spec.corpus(folder / "corpora") for spec in specs}
    for each in texts.values():
        corpora.report_passed_over(each)
    longest = max((spec.max_length for spec in specs), default=0)
    tokenizers = {name: tokenizer_of(points, longest, opening.trust) for name, points in known.items() if specs}
    found = []
    for name, points in known.items():
        probes = [spec.probe(text, tokenizers[name]) for spec, text in texts.items()]
        for probe in probes:
            probe.pin(folder / "probes")
        parts = [GeometryPart(probe, settings) for probe in probes]
        tasks = asked.parts(probes[0] if probes else None) if asked else []
        geometry, answers = _one_suite(which, points, parts, tasks, Store(folder / "records"), opening, means)
        found.append([None if table is None else table.assign(suite=name) for table in (geometry, answers)])
    return Swept(*(pd.concat(tables, ignore_index=True) if tables[0] is not None else None
                   for tables in zip(*found, strict=True)))


def _one_suite(which: SuiteSpec, points: Sequence[Checkpoint], parts: Sequence[GeometryPart],
               tasks: Sequence[evaluation.TaskPart], store: Store, opening: Opening, means: Means) -> Swept:
    twins = report_twins(points, means.progress)
    chosen = with_faults(spread(points, which.count), points)  # so that these are seen

    def measured(points: Sequence[Checkpoint]) -> Swept:
        (jobs,) = run([(points, [*parts, *tasks])], store, opening, means, which.faulty)
        return Swept(table_of(points, parts, jobs, store) if parts else None,
                     evaluation.table_of(points, tasks, jobs, store) if tasks else None)

    geometry, answers = measured(chosen)
    left, untried = which.refine if parts else 0, [point for point in points if point not in chosen]
    while left > 0 and (more := next_ones(geometry, untried, -(-left // 2))):
        left -= len(more)
        untried = [point for point in untried if point not in more]
        further = measured(more)
        geometry = in_order(pd.concat([geometry, further.geometry]), points)
        answers = in_order(pd.concat([answers, further.tasks]), points) if tasks else None
    if parts:
        suspects = report_suspects(geometry)
        keys = list(zip(geometry.model, geometry.revision, strict=True))
        others = {(point.model, point.revision): text for point, text in twins.items()}
        geometry = geometry.assign(same_weights_as=[others.get(key) for key in keys],
                                   same_geometry_as=[suspects.get(key) for key in keys])
    return Swept(geometry, answers)


def _specs(texts) -> tuple[ProbeSpec, ...]:
    """Texts by name, or with what is to be taken of them."""
    given = (texts,) if isinstance(texts, ProbeSpec) else texts
    if isinstance(given, Iterable) and not isinstance(given, (str, bytes)):
        given = tuple(given)
        if all(isinstance(each, ProbeSpec) for each in given):
            return given
    return tuple(ProbeSpec(name) for name in arguments.names(given, "sources of text"))


def with_others(table: pd.DataFrame, store: Store) -> pd.DataFrame:
    """A table of `trace`, its rows joined with what other calls on the same store measured of the same states.

    A record that compares with other checkpoints than a row does, because the run has grown since, is passed over, and
    so are others' failures: they are no gaps of this table. Where a row compares with none, the newest of other records
    counts.
    """
    rows = table[table.status == "measured"]
    if not len(rows):
        return table
    own: dict[str, list] = {}
    for _, row in rows.drop_duplicates(["identity", *(name for name in PLACE if name in rows)]).iterrows():
        own.setdefault(shared(row.identity), []).append(row)
    found, known = [table], set(rows.identity)
    newest = sorted(store.folder.glob("*.parquet"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in newest:
        facts = store.read(path, ["identity", "status"])
        identity = facts.identity[0]
        if identity not in known and facts.status.eq("measured").any() and "probe" in json.loads(identity):
            found += [store.read(path)[facts.status == "measured"].assign(**_place_of(row))
                      for row in own.get(shared(identity), ()) if _compatible(row.identity, identity)]
    return joined(pd.concat(found, ignore_index=True)) if len(found) > 1 else table


def _place_of(row: pd.Series) -> dict:
    return {name: row[name] for name in PLACE if name in row}


def _compatible(one: str, other: str) -> bool:
    """Whether two identities name no different reference for the same need."""
    one, other = json.loads(one), json.loads(other)
    return all(one[name] == other[name] for name in REFERENCES if name in one and name in other)


def in_order(table: pd.DataFrame, points: Sequence[Checkpoint]) -> pd.DataFrame:
    """Rows in the order of the checkpoints."""
    number = {(point.model, point.revision): number for number, point in enumerate(points)}
    rows = [number[key] for key in zip(table.model, table.revision, strict=True)]
    return table.iloc[np.argsort(rows, kind="stable")].reset_index(drop=True)


def next_ones(table: pd.DataFrame, points: Sequence[Checkpoint], count: int) -> list[Checkpoint]:
    """What to measure next, by the last layer and the first probe of a table."""
    rows = table[(table.probe_fingerprint == table.probe_fingerprint.iloc[0])
                 & (table.layer == table.layer.dropna().iloc[-1])] if table.layer.notna().any() else table.iloc[:0]
    return refine_selection(rows, points, count)


def report_suspects(table: pd.DataFrame) -> dict[tuple[str, str], str]:
    """Two names with one spectrum, said on standard error: see `twins.same_geometry`."""
    suspects = same_geometry(table)
    for (model, revision), text in suspects.items():
        tqdm.write(f"{model}@{revision} has the spectrum of {text}: one of them serves wrong weights", file=sys.stderr)
    return suspects


def report_twins(points: Sequence[Checkpoint], progress: bool = True) -> dict[Checkpoint, str]:
    """Compare the weight files of all revisions of a suite by their hashes, and say which are identical."""
    online = [point for point in points if on_hub(point) and point.commit]
    found = hub.files_of_all([(point.model, point.commit) for point in online], progress)
    files = {point: found[point.model, point.commit] for point in online}
    twins = same_weights({point: each for point, each in files.items() if isinstance(each, hub.Files)})
    for point, others in twins.items():
        if not point.fault:
            tqdm.write(f"{point.label} serves the weights of {others}", file=sys.stderr)
    return twins


def trace(checkpoints: Sequence[Checkpoint], probe: Probe | Sequence[Probe], store: Store, *,
          faulty: bool = False, reference: Checkpoint | None = None, **options) -> pd.DataFrame:
    """Spectrum, RankMe and alpha of every checkpoint on every probe at every chosen layer, with standard errors.

    A checkpoint already in the store with the same weights, probe and settings is not measured again, not even when
    several sweeps over one store run at once; one that failed is tried again. Interrupted at any moment, the next call
    goes on. Weights from the hub are fetched ahead, checked by their hashes and deleted once measured.

    Parameters
    ----------
    checkpoints : list of Checkpoint, or one (`suites` lists those of a name, a folder or a repository)
        One run in its order, for measures that compare with its first, last and previous checkpoint: those in the list.
    probe : Probe, or several; the weights are opened once for all
    store : Store
    faulty : bool, default False
        Measure checkpoints with a known fault too; otherwise they are rows with status "quarantined".
    reference : Checkpoint, optional
        What a measure that needs a reference compares each checkpoint with.
    options : fields of `Settings` (layers, ranks, batch_size, here "auto" by default, measures), of `Opening` (device,
        dtype, trust) and of `Means` (workers, client, disk, keep, progress)

    Returns
    -------
    pandas.DataFrame, a row per checkpoint, probe and layer, in the order given, gaps included. `status` is "measured",
    "failed" or "quarantined", `reason` says why; `same_weights_as` names a revision with identical files. What fails
    of a checkpoint beside what could be measured is a row more (`measurement.GeometryPart`).
    """
    (table,) = trace_groups([(checkpoints, probe)], store, *_values(options, Settings, Opening, Means), faulty,
                            reference)
    return table


def trace_groups(groups: Sequence[tuple[Sequence[Checkpoint], Probe | Sequence[Probe]]], store: Store,
                 settings: Settings, opening: Opening, means: Means, faulty: bool = False,
                 reference: Checkpoint | None = None) -> list[pd.DataFrame]:
    """`trace` of several lists of checkpoints, each with its own probes, by the same workers: a table for each."""
    _check_reference(settings, reference)
    groups = [(as_checkpoints(points), [GeometryPart(each, settings) for each in _as_probes(probe)])
              for points, probe in groups]
    jobs = run(groups, store, opening, means, faulty, reference)
    return [table_of(points, parts, each, store) for (points, parts), each in zip(groups, jobs, strict=True)]


def _check_reference(settings: Settings, reference: Checkpoint | None) -> None:
    if ("reference" in settings.needs) != (reference is not None):
        raise ValueError("a reference is needed by measures that compare with one, and by these alone: measures "
                         f"{', '.join(settings.measures)}, reference {reference and reference.label}. `trace` takes "
                         "one (reference=).")


def _as_probes(given: Probe | Sequence[Probe]) -> tuple[Probe, ...]:
    found = (given,) if isinstance(given, Probe) else tuple(given) if isinstance(given, Iterable) else (given,)
    if not found or not all(isinstance(probe, Probe) for probe in found):
        raise TypeError(f"expected a probe, or several, got {arguments.shown(given)}. Of texts: "
                        "probe(Corpus(name, texts), tokenizer, sequences) (reptrace.texts.corpora).")
    return found


def table_of(checkpoints: Sequence[Checkpoint], parts: Sequence[GeometryPart], jobs: Sequence[Job],
             store: Store) -> pd.DataFrame:
    """What the store holds of these jobs, in the order of the checkpoints, with gaps and known faults."""
    by_point = {job.checkpoint: job for job in jobs}
    twins = same_weights({job.checkpoint: job.at.files for job in jobs if job.at.files})
    tables = []
    for point in checkpoints:
        job = by_point.get(point)
        for part in parts:
            if job is None:
                table = pd.DataFrame([{"status": "quarantined", "reason": point.fault, **facts_of(part.probe)}])
            else:
                table = store.table([job.identity(part)])
            tables.append(table.assign(**place(point), same_weights_as=twins.get(point)))
    table = pd.concat(tables, ignore_index=True)
    return table.reindex(columns=[*table.columns, *(name for name in MEASURED if name not in table)])

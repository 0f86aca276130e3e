"""Suites x probes x layers -> records: what is missing is measured, what is there is read.

One checkpoint is one piece of work: its weights are opened once for all probes and layers. This module says what there
is to do; `measurement` says what doing it is, and `dispatch` gets it done, here or on a cluster.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from reptrace.checkpoints import hub, suites, weights
from reptrace.checkpoints.selection import refine as refine_selection
from reptrace.checkpoints.selection import spread
from reptrace.checkpoints.suites import Checkpoint, as_checkpoints
from reptrace.models.positions import context
from reptrace.records.store import Store
from reptrace.support import arguments
from reptrace.sweeps.dispatch import local_cluster, on_a_worker, unfinished, work_off
from reptrace.sweeps.measurement import RANKS, Job, Settings, facts_of, place
from reptrace.sweeps.twins import same_geometry
from reptrace.texts import corpora
from reptrace.texts.probes import Probe

ASKED_FOR_TOKENIZER = 3  # checkpoints of a stage on the hub
MEASURED = ("layer", "rankme", "rankme_stderr", "alpha", "alpha_stderr", "alpha_r2", "largest_influence",
            "half_variance", "wall_seconds")


def sweep(names: str | Sequence[str], texts: str | Sequence[str], folder: str | Path, count: int | None = None,
          refine: int = 0, sequences: int = 15_000, max_length: int = 512, min_length: int = 32, seed: int = 0,
          suite_files: Sequence[str | Path] = (), stages: Sequence[str] = (), field: str = "text",
          **options) -> pd.DataFrame:
    """Registered suites on texts: which checkpoints there are, which to measure, the probes, and the tracing itself.

    Parameters
    ----------
    names : names of suites (`python -m reptrace suites` lists them)
    texts : sources of text, see `corpora.open_text`; every suite's own tokenizer turns each into a probe
    folder : str or Path
        Holds `records`, `probes` (the documents' hashes) and `corpora`.
    count : int, optional
        Checkpoints of each suite, spread on a log scale (`selection.spread`); default all.
    refine : int, default 0
        So many more of each suite afterwards, where its RankMe bends (`selection.refine`).
    sequences, max_length, min_length, seed : see `corpora.probe`
    suite_files : further YAML files of suites
    stages : only these stages of each suite; default all
    field : str, default "text"; which field of a file's or dataset's rows holds the text, see `corpora.open_text`
    options : see `trace`

    Returns
    -------
    pandas.DataFrame as of `trace`, with columns `suite` and `same_geometry_as` (a second detector of wrong weights, see
    `twins.same_geometry`); known faults stand in it as "quarantined".
    """
    folder, progress = Path(folder), options.get("progress", True)
    names, texts = arguments.names(names, "suites"), arguments.names(texts, "sources of text")
    stages, suite_files = arguments.names(stages, "stages"), arguments.names(suite_files, "files of suites")
    trust = arguments.trusted(options.get("trust"))
    if not names or not texts:
        raise ValueError("a sweep needs a suite and a text at least, by name.")
    known = {name: _stages(suites.suite(name, *suite_files), stages) for name in names}
    chosen = {name: with_faults(spread(points, count), points) for name, points in known.items()}
    corpus = {text: corpora.open_text(text, 4 * sequences, folder / "corpora", field) for text in texts}
    for each in corpus.values():
        corpora.report_passed_over(each)
    tokenizers = {name: tokenizer_of(points, max_length, trust) for name, points in known.items()}
    store, tables = Store(folder / "records"), []
    for name, points in known.items():
        tokenizer = tokenizers[name]
        probes = [corpora.probe(corpus[text], tokenizer, sequences, max_length, min_length, seed) for text in texts]
        for probe in probes:
            probe.pin(folder / "probes")
        twins = report_twins(points, progress)
        table, left = trace(chosen[name], probes, store, **options), refine
        untried = [point for point in points if point not in chosen[name]]
        while left > 0 and (more := next_ones(table, untried, -(-left // 2))):
            left -= len(more)
            untried = [point for point in untried if point not in more]
            table = in_order(pd.concat([table, trace(more, probes, store, **options)]), points)
        others = {(point.model, point.revision): text for point, text in twins.items()}
        same = [others.get(key) for key in zip(table.model, table.revision, strict=True)]
        suspects = same_geometry(table)
        for (model, revision), text in suspects.items():
            tqdm.write(f"{model}@{revision} has the spectrum of {text}: one of them serves wrong weights",
                       file=sys.stderr)
        doubts = [suspects.get(key) for key in zip(table.model, table.revision, strict=True)]
        tables.append(table.assign(suite=name, same_weights_as=same, same_geometry_as=doubts))
    return pd.concat(tables, ignore_index=True)


def _stages(suite: suites.Suite, stages: Sequence[str]) -> list[Checkpoint]:
    found = [point for point in suite.checkpoints() if not stages or point.stage in stages]
    if not found:
        raise ValueError(f"{suite.name!r} has no stage {', '.join(stages)}; it has "
                         f"{', '.join(dict.fromkeys(stage.stage for stage in suite.stages))}.")
    return found


def with_faults(chosen: Sequence[Checkpoint], points: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The chosen ones and, so that they are seen, those with a known fault, in the suite's order."""
    wanted = set(chosen)
    return [point for point in points if point in wanted or point.fault]


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


def tokenizer_of(points: Sequence[Checkpoint], max_length: int, trust: Sequence[str] = ()):
    """The tokenizer of a run: its last checkpoint's, or that of the nearest one before which has one.

    Raises
    ------
    FileNotFoundError, ValueError
        None of them has one that can be opened: what is wrong with the last one's.
    ValueError
        The probe's sequences would be longer than the models' context.
    """
    from reptrace.models.loading import load_tokenizer

    trust, failed = arguments.trusted(trust), []
    for point in _with_tokenizers(points):
        where, own_code = _where(point), arguments.is_trusted(point.model, trust)
        try:
            config = configuration_of(point, trust)
            tokenizer = load_tokenizer(*where, trust_remote_code=own_code)
        except (OSError, ValueError, ImportError) as error:
            failed.append(error)
            continue
        check_length(config, max_length, point.label)
        if failed:
            tqdm.write(f"the tokenizer is that of {point.label}: of {len(failed)} later checkpoints none has one that "
                       f"can be opened ({failed[0]})", file=sys.stderr)
        return tokenizer
    raise failed[0]


def configuration_of(point: Checkpoint, trust: Sequence[str] = ()):
    from transformers import AutoConfig

    from reptrace.models.loading import from_pretrained

    return from_pretrained(AutoConfig, *_where(point), trust_remote_code=arguments.is_trusted(point.model, trust))


def check_length(config, max_length: int, label: str) -> None:
    """ValueError where sequences would be longer than a model's context."""
    reach = context(config)
    if reach and max_length > reach:
        raise ValueError(f"sequences of up to {max_length} tokens were asked for, the context of {label} is {reach}: "
                         "lower the maximum length (max_length, --max-length).")


def _where(point: Checkpoint) -> tuple[str, str | None, str | None]:
    revision = None if os.path.isdir(point.model) else point.commit or point.revision
    return point.model, revision, point.cache_dir


def _with_tokenizers(points: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Where to look for a run's tokenizer, in turn: backwards through its checkpoints, good ones first. On the hub,
    where asking takes time, through the last ones of each stage."""
    backwards = [point for point in reversed(points) if not point.fault] or list(reversed(points))
    seen: Counter[tuple] = Counter()
    kept = []
    for point in backwards:
        seen[point.model, point.stage] += 1
        if not on_hub(point) or seen[point.model, point.stage] <= ASKED_FOR_TOKENIZER:
            kept.append(point)
    return kept


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


def trace(checkpoints: Sequence[Checkpoint], probe: Probe | Sequence[Probe], store: Store,
          layers: Sequence[int | str] | str = ("final",), ranks: tuple[int, int] = RANKS,
          batch_size: int | str = "auto", workers: int = 1, device: str | None = None, dtype: str | None = None,
          progress: bool = True, client=None, disk: int | None = None, keep: bool = False, trust: Sequence[str] = (),
          faulty: bool = False) -> pd.DataFrame:
    """Spectrum, RankMe and alpha of every checkpoint on every probe at every chosen layer, with standard errors.

    A checkpoint already in the store with the same weights, probe and settings is not measured again, not even when
    several sweeps over one store run at once; one that failed is tried again. Interrupted at any moment, the next call
    goes on. Weights from the hub are fetched ahead, checked by their hashes and deleted once measured.

    Parameters
    ----------
    checkpoints : list of Checkpoint, or one (`suites` lists those of a name, a folder or a repository)
    probe : Probe, or several; the weights are opened once for all
    store : Store
    layers, ranks, batch_size, device, dtype, trust : see `Settings`
    workers : int, default 1
        Checkpoints measured side by side on this machine, each by a process of its own: one a GPU, or with one thread
        where there is none (worth it for small models).
    client : distributed.Client, optional
        Use the workers of this Dask cluster instead. Weights never pass through it; records come back and are written
        here.
    disk : int, optional
        Bytes of fetched weights that may lie on the disk at once, a worker; default two checkpoints.
    keep : bool, default False
        Do not delete fetched weights.
    faulty : bool, default False
        Measure checkpoints with a known fault too; otherwise they are rows with status "quarantined".

    Returns
    -------
    pandas.DataFrame, a row per checkpoint, probe and layer, in the order given, gaps included. `status` is "measured",
    "failed" or "quarantined", `reason` says why; `same_weights_as` names a revision with identical files.
    """
    settings = placed(Settings(layers, tuple(ranks), batch_size, device, dtype, trust), client)
    (table,) = trace_groups([(checkpoints, probe)], store, settings, workers, progress, client, disk, keep, faulty)
    return table


def trace_groups(groups: Sequence[tuple[Sequence[Checkpoint], Probe | Sequence[Probe]]], store: Store,
                 settings: Settings, workers: int = 1, progress: bool = True, client=None, disk: int | None = None,
                 keep: bool = False, faulty: bool = False) -> list[pd.DataFrame]:
    """`trace` of several lists of checkpoints, each with its own probes, by the same workers: a table for each.

    Worker processes take seconds to start, which many small lists would spend again and again.
    """
    if workers < 1:
        raise ValueError(f"workers must be positive, got {workers}.")
    groups = [(as_checkpoints(points), _as_probes(probe)) for points, probe in groups]
    jobs = [jobs_of(points, probes, settings, progress, faulty) for points, probes in groups]
    missing = unfinished([job for each in jobs for job in each], store)
    check_disk(missing, disk)
    own = client is None and workers > 1 and len(missing) > 1
    with local_cluster(min(workers, len(missing)), settings.device) if own else nullcontext(client) as client:
        work_off(missing, store, client, disk, keep, progress)
    return [table_of(points, probes, each, store) for (points, probes), each in zip(groups, jobs, strict=True)]


def _as_probes(given: Probe | Sequence[Probe]) -> tuple[Probe, ...]:
    found = (given,) if isinstance(given, Probe) else tuple(given) if isinstance(given, Iterable) else (given,)
    if not found or not all(isinstance(probe, Probe) for probe in found):
        raise TypeError(f"expected a probe, or several, got {arguments.shown(given)}. Of texts: "
                        "probe(Corpus(name, texts), tokenizer, sequences) (reptrace.texts.corpora).")
    return found


def placed(settings: Settings, client=None) -> Settings:
    """The settings with device and dtype decided, as a worker sees them where there is a cluster."""
    from reptrace.models.loading import placement

    given = settings.device, settings.dtype
    device, dtype = placement(*given) if client is None else on_a_worker(client, placement, *given)
    return replace(settings, device=device, dtype=dtype)


def check_disk(jobs: Sequence[Job], disk: int | None) -> None:
    """ValueError where the budget does not hold even one of the checkpoints to come."""
    sizes = [(job.files.bytes, job.checkpoint.label) for job in jobs if job.files]
    if disk is not None and sizes and max(sizes)[0] > disk:
        size, label = max(sizes)
        raise ValueError(f"{label} takes {size / 1e9:.3g} GB, the disk budget is {disk / 1e9:.3g} GB: raise it (disk=, "
                         "--disk).")


def jobs_of(checkpoints: Sequence[Checkpoint], probes: Sequence[Probe], settings: Settings, progress: bool = True,
            faulty: bool = False) -> list[Job]:
    """A job for each checkpoint (none for those with a known fault), with its commit and, from the hub, its files."""
    wanted = [point for point in checkpoints if faulty or not point.fault]
    return [Job(point, tuple(probes), settings, *at)
            for point, at in located(wanted, progress, settings.trust).items()]


class Located(NamedTuple):
    """What identifies a checkpoint's weights, and the files to fetch for it (None: it lies here). `trouble` is what the
    hub said instead of its files, or why a folder's weights have no identity. `stamp` is a folder's, see
    `weights.stamp`."""

    weights: str | None
    files: hub.Files | None = None
    trouble: str = ""
    stamp: tuple = ()


def located(checkpoints: Sequence[Checkpoint], progress: bool = True, trust: Sequence[str] = ()
            ) -> dict[Checkpoint, Located]:
    """Where the weights of checkpoints are, each once; `trust`: repositories and folders whose own code may run."""
    wanted, trust = list(dict.fromkeys(checkpoints)), arguments.trusted(trust)
    online = [point for point in wanted if on_hub(point)]
    commits = {point: hub.commit_of(point.model, point.revision, point.cache_dir) if not point.commit else point.commit
               for point in wanted if not os.path.isdir(point.model)}
    found = hub.files_of_all([(point.model, commits[point]) for point in online], progress)
    folders = [point for point in wanted if point not in commits]
    places = {}
    for point in tqdm(folders, desc="reading weights", unit="checkpoint", leave=False,
                      disable=not progress or len(folders) < 2):
        places[point] = _folder(point.model, arguments.is_trusted(point.model, trust))
    for point, commit in commits.items():
        files = found.get((point.model, commit)) if point in online else None
        if isinstance(files, hub.HubError):
            places[point] = Located(commit, trouble=str(files))
        else:
            places[point] = Located(files.commit if files else commit, files)
    return {point: places[point] for point in wanted}


def _folder(folder: str, code: bool) -> Located:
    """A folder by a hash of what opening it reads; its stamp is taken before, to see later whether it has changed."""
    try:
        stamp = weights.stamp(folder, code)
        return Located(weights.fingerprint(folder, code), stamp=stamp)
    except (OSError, ValueError) as error:
        return Located(None, trouble=f"{folder!r}: {error}")


def on_hub(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint is to be fetched: not a folder, not in a cache that was named, and the hub may be asked."""
    return checkpoint.cache_dir is None and not os.path.isdir(checkpoint.model) and hub.reachable()


def table_of(checkpoints: Sequence[Checkpoint], probes: Sequence[Probe], jobs: Sequence[Job],
             store: Store) -> pd.DataFrame:
    """What the store holds of these jobs, in the order of the checkpoints, with gaps and known faults."""
    by_point = {job.checkpoint: job for job in jobs}
    twins = same_weights({job.checkpoint: job.files for job in jobs if job.files})
    tables = []
    for point in checkpoints:
        job = by_point.get(point)
        for probe in probes:
            if job is None:
                table = pd.DataFrame([{"status": "quarantined", "reason": point.fault, **facts_of(probe)}])
            else:
                table = store.table([job.identity(probe)])
            tables.append(table.assign(**place(point), same_weights_as=twins.get(point)))
    table = pd.concat(tables, ignore_index=True)
    return table.reindex(columns=[*table.columns, *(name for name in MEASURED if name not in table)])


def same_weights(files: Mapping[Checkpoint, hub.Files]) -> dict[Checkpoint, str]:
    """Checkpoints that share weight files, by their hashes, with others: which others, and how many of the files."""
    holders: dict[tuple[str, str], list[Checkpoint]] = {}
    for point, found in files.items():
        for file in found.weights:
            holders.setdefault(file, []).append(point)
    shared: dict[Checkpoint, Counter[Checkpoint]] = {}
    for group in holders.values():
        for point in group if len(group) > 1 else []:
            shared.setdefault(point, Counter()).update(other for other in group if other != point)
    return {point: ", ".join(_twin(other, count, len(files[point].weights)) for other, count in others.items())
            for point, others in shared.items()}


def _twin(other: Checkpoint, count: int, of: int) -> str:
    name = other.revision or other.model
    return name if count == of else f"{name} ({count} of {of} files)"

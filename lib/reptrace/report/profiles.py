"""From the parameters of a notebook to its suite, probes and records: the one place where a profile is opened.

The parameters are those of notebooks/params/*.yaml, and each notebook's parameters cell holds the tiny profile's.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import pandas as pd
import yaml

from reptrace.checkpoints import suites
from reptrace.checkpoints.suites import Checkpoint
from reptrace.measures.spectra import Geometry
from reptrace.records.store import Store, provenance
from reptrace.report.archive import VARIABLE, Answers, geometry_of, geometry_row, processor
from reptrace.report.averaged import by_both
from reptrace.support import arguments
from reptrace.support.fingerprints import fingerprint
from reptrace.support.processes import cores
from reptrace.sweeps.dispatch import Means
from reptrace.sweeps.located import Opening
from reptrace.sweeps.measurement import Settings
from reptrace.sweeps.sweep import sweep, trace_groups
from reptrace.sweeps.tokenizers import tokenizer_of
from reptrace.texts import corpora
from reptrace.training.pretrain import Suite
from reptrace.training.runs import Run

ROOT = Path(__file__).parents[3]
CORPORA = ROOT / "build" / "corpora"  # read once for all profiles
TRACKED = ROOT / "data" / "results" / "settings_tried.csv"  # made from the default text, as the other tables there
DEVICE, DTYPE = "cpu", "float32"  # small models gain nothing on a GPU, and the same numbers come out everywhere
BATCH_SIZE = 128  # of the forward pass, in sequences of full length
TRAINING_KEYS = ("vocabulary", "context", "batch", "learning_rate", "warmup_steps", "schedule", "weight_decay")
SUITE_KEYS = ("head_width", "rotary", "decay_steps")  # of a suite or a size, and may be left out
FINAL = "final"  # the layer that the paper measures, see `hidden_states`
ALWAYS = ("suite", "trace", "trace_averaged")  # answers that are kept whether a page asks for them or not
OPTIONAL_KEYS = ("loss", "frequencies", *SUITE_KEYS)  # of a size, see `runs.Run`


@dataclass(frozen=True)
class Profile:
    """A suite of small models, the probe they are measured on, and where it all is kept.

    Parameters
    ----------
    sizes : list of dict
        `width`, `layers`, `tokens` (training tokens) and `seeds` (list); a key of TRAINING_KEYS overrides the suite's,
        one of OPTIONAL_KEYS the suite's or else the default of `runs.Run`.
    training : dict
        TRAINING_KEYS, and what is set of SUITE_KEYS; see `runs.Run`.
    corpus : str
        See `corpora.open_text`.
    sequences, min_length : int
        Of the probe; its sequences are cut at the training context.
    alpha_ranks : (int, int)
        alpha's window of 1-based ranks.
    build : str
        Folder for models and records; a relative one lies in the project.
    archive : str, optional
        Folder of an archive to read from in place of training and measuring, see `archive`.
    """

    sizes: list[dict]
    training: dict
    corpus: str
    sequences: int
    min_length: int
    alpha_ranks: tuple[int, int]
    build: str
    archive: str | None = None

    @classmethod
    def of(cls, parameters: Mapping) -> Profile | HubProfile:
        """From a notebook's variables or a parameters file; keys that are not a profile's are left alone.

        With `suites`, those of the hub instead of a suite trained here: see `HubProfile`.
        """
        if parameters.get("suites"):
            return HubProfile.of(parameters)
        needed = [*TRAINING_KEYS, "sizes", "corpus", "sequences", "min_length", "alpha_ranks", "build"]
        missing = [key for key in needed if key not in parameters]
        if missing:
            raise KeyError(f"the parameters lack {', '.join(missing)}; notebooks/params/tiny.yaml has all of them.")
        sizes = parameters["sizes"]
        sizes = [dict(size) for size in ([sizes] if isinstance(sizes, Mapping) else sizes)]
        sizes = [size | {"seeds": [size["seeds"]]} if isinstance(size.get("seeds"), int) else size for size in sizes]
        return cls(sizes, {key: parameters[key] for key in TRAINING_KEYS + SUITE_KEYS if key in parameters},
                   parameters["corpus"], int(parameters["sequences"]), int(parameters["min_length"]),
                   tuple(parameters["alpha_ranks"]), parameters["build"], os.environ.get(VARIABLE))

    @cached_property
    def folder(self) -> Path:
        return ROOT / self.build

    @cached_property
    def texts(self) -> tuple[corpora.Corpus, corpora.Corpus]:
        """Training part and held-out part of the corpus. A file is looked for in the project, wherever this runs."""
        inside = ROOT / self.corpus
        return corpora.open_text(str(inside) if inside.is_file() else self.corpus, cache=CORPORA).split()

    @cached_property
    def runs(self) -> list[Run]:
        return [self._run(size, seed) for size in self.sizes for seed in size["seeds"]]

    @property
    def sizes_of_runs(self) -> list[list[Run]]:
        """The runs in groups that differ by their seed alone, in the order given."""
        groups: dict[Run, list[Run]] = {}
        for run in self.runs:
            groups.setdefault(replace(run, seed=0), []).append(run)
        return list(groups.values())

    @property
    def scale(self) -> str:
        """Number of runs and sizes, weights and tokens, in words."""
        return scale_of(self.sizes_of_runs)

    @property
    def labels(self) -> dict[Run, str]:
        """A short name for each run: its width, what else sets it apart from others of that width, a further seed."""
        labels = {}
        for group in self.sizes_of_runs:
            first = asdict(group[0])
            twins = [asdict(other[0]) for other in self.sizes_of_runs if other[0].width == first["width"]]
            apart = [f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
                     for key, value in first.items() if key != "seed" and any(twin[key] != value for twin in twins)]
            for k, run in enumerate(group):
                labels[run] = ", ".join([f"d = {run.width}", *apart, *([f"seed {run.seed}"] if k else [])])
        return labels

    @cached_property
    def suite(self) -> Suite:
        return Suite(self.runs, self.texts[0], self.folder)

    @cached_property
    def store(self) -> Store:
        return Store(self.folder / "records")

    @cached_property
    def text(self) -> str:
        """Which text it is, for what depends on it."""
        return self.origin.text

    @cached_property
    def origin(self) -> pd.Series:
        """Parameters, text and provenance of the answers that are kept; ValueError if an archive is of others."""
        found = self.asked("suite", lambda: pd.DataFrame([{
            "parameters": self.describe(), "text": self.texts[0].fingerprint, "processor": processor(),
            "recipe": Run.recipe, **provenance()}])).iloc[0]
        if found.parameters != self.describe():
            raise ValueError(f"the archive in {self.archive!r} is of the suite {found.parameters}, not of "
                             f"{self.describe()}: take its parameters, or make report.")
        return found

    @cached_property
    def answers(self) -> Answers:
        """What notebooks were told: the archive, or, of these parameters, what goes into one."""
        return Answers(self.archive or self.folder / "answers" / fingerprint([self.describe().encode()]))

    def asked(self, name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """A table that `make` makes, which is kept under a name; from an archive, as it was kept."""
        if self.archive:
            return self.answers.read(name)
        table = make()
        self.answers.write(name, table)
        return table

    def log(self, run: Run) -> pd.DataFrame:
        """Training log of a run, see `pretrain`."""
        return self._logs[self._logs.model == run.repository].reset_index(drop=True)

    @cached_property
    def _logs(self) -> pd.DataFrame:
        return self.asked("logs", lambda: pd.concat([self.suite.log(run).assign(model=run.repository)
                                                     for run in self.runs]))

    def points(self, run: Run) -> list[Checkpoint]:
        """The checkpoints of a run, in order of steps."""
        if not self.archive:
            return self.suite.checkpoints(run)
        return [Checkpoint(row.model, row.revision, row.step, row.tokens) for row in self.trace()[run].itertuples()]

    def probe(self, run: Run) -> corpora.Probe:
        """The held-out sequences, as the run's training text is tokenized and remapped; tokenized once for all runs."""
        key = run.vocabulary, run.context, run.frequencies
        if key not in self._probes:
            self._probes[key] = self.probe_of(run, self.texts[1], self.sequences, self.min_length)
        return self._probes[key]

    def probe_of(self, run: Run, corpus: corpora.Corpus, sequences: int, min_length: int,
                 fewest: int | None = None) -> corpora.Probe:
        """The same of any text; parameters as of `probes.probe`."""
        found = corpora.probe(corpus, self.suite.tokenizer(run.vocabulary), sequences, run.context, min_length,
                              fewest=fewest)
        remapping = self.suite.remapping(run)
        return remapping.probe(found) if remapping else found

    @cached_property
    def _probes(self) -> dict[tuple, corpora.Probe]:
        """By vocabulary, context and frequencies."""
        return {}

    def context_of(self, run: Run) -> int:
        """Tokens of a probe sequence at most."""
        return run.context

    @property
    def placed(self) -> dict:
        """How its checkpoints are opened and measured: `opening`, `means` and `batch_size` of a sweep."""
        return {"opening": Opening(DEVICE, DTYPE), "means": Means(cores()), "batch_size": BATCH_SIZE}

    def train(self, progress: bool = True) -> None:
        """Train what is missing of the suite."""
        if not self.archive:
            self.suite.train(progress=progress)
            self.__dict__.pop("_logs", None)

    def trace(self, progress: bool = True) -> dict[Run, pd.DataFrame]:
        """Geometry of every checkpoint of every run at the final layer, measured where it is not in the store."""
        return {run: final(table) for run, table in self.trace_layers(progress).items()}

    def trace_layers(self, progress: bool = True) -> dict[Run, pd.DataFrame]:
        """The same at every layer, before and after the final norm, in one pass: a table a run, a row a layer."""
        return self.by_run(self.asked("trace", lambda: self._traced(
            {run: self.suite.checkpoints(run) for run in self.runs}, BATCH_SIZE, DTYPE, cores(), progress, "all")))

    def trace_averaged(self, progress: bool = True) -> dict[Run, pd.DataFrame]:
        """The same of the averaged weights, which there are from step AVERAGED_FROM on: a table a run that has any."""
        kept = [run for run in self.runs if run.averaged_steps]
        if not kept:
            return {}
        points = {run: self.suite.checkpoints(run, averaged=True) for run in kept} if not self.archive else {}
        return self.by_run(self.asked("trace_averaged", lambda: self._traced(points, BATCH_SIZE, DTYPE, cores(),
                                                                             progress)), averaged=True)

    def trace_at(self, places: Mapping[Run, Sequence[int]], dtype: str, batch_size: int) -> dict[Run, pd.DataFrame]:
        """Geometry of some checkpoints (indices into those of their run) in another precision: a table a run."""
        return self.by_run(self.asked(f"trace_{dtype}_{batch_size}", lambda: self._traced(
            {run: [self.suite.checkpoints(run)[k] for k in its] for run, its in places.items()}, batch_size, dtype)))

    def measured(self, name: str, measure: Callable[[], Geometry]) -> Geometry:
        """A geometry that a notebook measures by itself, kept under a name."""
        return geometry_of(self.asked(name, lambda: pd.DataFrame([geometry_row(measure())])).iloc[0])

    def by_run(self, table: pd.DataFrame, averaged: bool = False) -> dict[Run, pd.DataFrame]:
        """The rows of each run that has any, by the name of its repository, or of that of its averaged weights."""
        named = {run: table[table.model == (run.averaged_repository if averaged else run.repository)].reset_index(
            drop=True) for run in self.runs}
        return {run: rows for run, rows in named.items() if len(rows)}

    def _traced(self, points: Mapping[Run, list[Checkpoint]], batch_size: int, dtype: str, workers: int = 1,
                progress: bool = False, layers: str = FINAL) -> pd.DataFrame:
        alike: dict[tuple, list[Run]] = {}  # of one probe
        for run in points:
            alike.setdefault((run.vocabulary, run.context, run.frequencies), []).append(run)
        groups = [([point for run in runs for point in points[run]], self.probe(runs[0])) for runs in alike.values()]
        settings = Settings(layers, tuple(self.alpha_ranks), batch_size)
        return pd.concat(trace_groups(groups, self.store, settings, Opening(DEVICE, dtype),
                                      Means(workers, progress=progress)), ignore_index=True)

    def describe(self) -> str:
        """The parameters on one line of JSON, for a page's footer."""
        return json.dumps({"sizes": self.sizes, **self.training, "corpus": self.corpus, "sequences": self.sequences,
                           "min_length": self.min_length, "alpha_ranks": list(self.alpha_ranks)})

    def _run(self, size: dict, seed: int) -> Run:
        unknown = set(size) - {"width", "layers", "tokens", "seeds", *TRAINING_KEYS, *OPTIONAL_KEYS}
        if unknown:
            raise ValueError(f"a size has unknown keys {', '.join(sorted(unknown))}; it may have width, layers, "
                             f"tokens, seeds, {', '.join(TRAINING_KEYS + OPTIONAL_KEYS)}.")
        setting = {**self.training, **{key: size[key] for key in TRAINING_KEYS + OPTIONAL_KEYS if key in size}}
        steps = round(float(size["tokens"]) / (setting["batch"] * setting["context"]))
        return Run(width=size["width"], layers=size["layers"], seed=seed, steps=max(1, steps),
                   corpus=self.text, recipe=int(self.origin.recipe), **setting)


@dataclass(frozen=True)
class HubRun:
    """Pretraining of a registered suite, with the attributes of `runs.Run` that pages show; nan where not known."""

    name: str
    layers: float
    width: float
    vocabulary: float
    parameters: float
    steps: int
    training_tokens: int


@dataclass(frozen=True)
class HubProfile:
    """Registered suites of the hub, in place of a suite trained here: what a page asks of either is the same.

    Parameters
    ----------
    suites : list of str
        Names, see `suites.registered`; of each, the stage "pretraining".
    checkpoints, refine : int
        Of each suite, see `sweep.sweep`.
    corpus, sequences, min_length, alpha_ranks, build : as of `Profile`
    context : int
        Tokens of a probe sequence at most.
    """

    suites: tuple[str, ...]
    checkpoints: int
    refine: int
    corpus: str
    sequences: int
    context: int
    min_length: int
    alpha_ranks: tuple[int, int]
    build: str

    STAGE = "pretraining"
    archive = None  # there is one of a suite trained here alone

    @classmethod
    def of(cls, parameters: Mapping) -> HubProfile:
        names = [field for field in cls.__dataclass_fields__ if field in parameters]
        if missing := set(cls.__dataclass_fields__) - set(names):
            raise KeyError(f"the parameters lack {', '.join(sorted(missing))}; notebooks/params/paper.yaml has all.")
        values = {name: parameters[name] for name in names}
        values["suites"] = arguments.names(values["suites"], "suites")
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})

    @cached_property
    def folder(self) -> Path:
        return ROOT / self.build

    @cached_property
    def store(self) -> Store:
        return Store(self.folder / "records")

    @cached_property
    def runs(self) -> list[HubRun]:
        return [self._run(suites.suite(name)) for name in self.suites]

    @property
    def sizes_of_runs(self) -> list[list[HubRun]]:
        return [[run] for run in self.runs]

    @property
    def scale(self) -> str:
        """Number of runs and sizes, weights and tokens, in words."""
        return scale_of(self.sizes_of_runs)

    @property
    def labels(self) -> dict[HubRun, str]:
        return {run: run.name for run in self.runs}

    @property
    def text(self) -> str:
        return self.corpus

    @property
    def spec(self) -> corpora.ProbeSpec:
        return corpora.ProbeSpec(self.corpus, self.sequences, self.context, self.min_length)

    def probe(self, run: HubRun) -> corpora.Probe:
        """The probe that `trace` measures a suite on."""
        return self.probe_of(run, self.spec.corpus(self.folder / "corpora"), self.sequences, self.min_length)

    def probe_of(self, run: HubRun, corpus: corpora.Corpus, sequences: int, min_length: int,
                 fewest: int | None = None) -> corpora.Probe:
        """The same of any text; parameters as of `probes.probe`."""
        points = [point for point in suites.suite(run.name).checkpoints() if point.stage == self.STAGE]
        return corpora.probe(corpus, tokenizer_of(points, self.context), sequences, self.context, min_length,
                             fewest=fewest)

    def context_of(self, run: HubRun) -> int:
        """Tokens of a probe sequence at most."""
        return self.context

    @property
    def placed(self) -> dict:
        """How its checkpoints are opened and measured: `opening`, `means` and `batch_size` of a sweep."""
        return {"opening": Opening(), "means": Means(), "batch_size": "auto"}

    def points(self, run: HubRun) -> list[Checkpoint]:
        """The checkpoints that `trace` measures."""
        chosen = set(self.trace()[run].query("status == 'measured'").revision)
        return [point for point in suites.suite(run.name).checkpoints()
                if point.stage == self.STAGE and point.revision in chosen]

    def asked(self, name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """What `make` makes: of these there is no archive."""
        return make()

    def train(self, progress: bool = True) -> None:
        """Nothing: these were trained by others."""

    def log(self, run: HubRun) -> pd.DataFrame:
        """No rows: the hub keeps no training logs of these."""
        return pd.DataFrame(columns=["tokens", "loss", "gradient_norm", "learning_rate", "wall_seconds"], dtype=float)

    def trace(self, progress: bool = True) -> dict[HubRun, pd.DataFrame]:
        """Geometry of the chosen checkpoints of every suite at the final layer, measured where it is not there yet."""
        return {run: final(table) for run, table in self.trace_layers(progress).items()}

    def trace_layers(self, progress: bool = True) -> dict[HubRun, pd.DataFrame]:
        """The same at every layer, before and after the final norm, in one pass: a table a run, a row a layer."""
        table = sweep(self.suites, self.spec, self.folder, count=self.checkpoints, refine=self.refine,
                      stages=[self.STAGE], ranks=self.alpha_ranks, layers="all", progress=progress)
        return {run: table[table.suite == run.name].reset_index(drop=True) for run in self.runs}

    def trace_averaged(self, progress: bool = True) -> dict[HubRun, pd.DataFrame]:
        """None: the hub keeps no averaged weights of these."""
        return {}

    def describe(self) -> str:
        return json.dumps({name: getattr(self, name) for name in self.__dataclass_fields__})

    def _run(self, suite: suites.Suite) -> HubRun:
        points = [point for point in suite.checkpoints() if point.stage == self.STAGE]
        shape = [suite.shape.get(key, float("nan")) for key in ("layers", "width", "vocabulary", "parameters")]
        return HubRun(suite.name, *shape, points[-1].step, points[-1].tokens)


def final(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the final layer, and gaps, which have none."""
    return table[(table.layer == FINAL) | table.layer.isna()].reset_index(drop=True)


def scale_of(sizes: Sequence[Sequence[Run]] | Sequence[Sequence[HubRun]]) -> str:
    """Of runs in groups of one size each: `sizes_of_runs`."""
    runs = [run for its in sizes for run in its]
    weights, tokens = (span([getattr(run, name) for run in runs]) for name in ("parameters", "training_tokens"))
    of_seeds = [f"{seeds} seeds of {'each' if n == len(sizes) else 'one' if n == 1 else n}"
                for seeds, n in Counter(map(len, sizes)).items() if seeds > 1]
    told = f" ({', '.join(of_seeds)})" if of_seeds else ""
    return (f"{len(runs)} run{'s' * (len(runs) > 1)} of {len(sizes)} size{'s' * (len(sizes) > 1)}{told}, "
            f"{weights} weights, {tokens} training tokens")


def selection(profile: Profile | HubProfile) -> pd.DataFrame | None:
    """The settings from which the sizes of the default suite were chosen, a row a run; None of any other suite.

    They were chosen because RankMe falls again there: what the suite shows of that says nothing of small models at
    large. Column `compression` says so by raw and averaged weights, as `averaged.compression` does; of older runs by
    raw ones alone, as there are no others.
    """
    default = Profile.of(yaml.safe_load((ROOT / "notebooks" / "params" / "tiny.yaml").read_text()))
    same = isinstance(profile, Profile) and all(
        getattr(profile, name) == getattr(default, name) for name in ("sizes", "training", "corpus"))
    if not same:
        return None
    tried = pd.read_csv(TRACKED)
    said = zip(tried.compression, tried.averaged_compression, strict=True)  # the other is nan where there is none
    return tried.assign(compression=[by_both(raw, other if other == other else None) for raw, other in said])


def span(counts: Sequence[float]) -> str:
    """Smallest and largest of some large numbers, in words: "72 to 157 thousand"."""
    (low, small), (high, large) = (_in_words(each) for each in (min(counts), max(counts)))
    if (low, small) == (high, large):
        return f"{high}{large}"
    return f"{low}{'' if small == large else small} to {high}{large}"


def _in_words(count: float) -> tuple[str, str]:
    """Three digits of a number, and the word for its power of a thousand, a space before it."""
    power = max((power for power in range(5) if count >= 1000**power), default=0)
    return f"{count / 1000**power:.3g}", ("", " thousand", " million", " billion", " trillion")[power]


def footer(profile: Profile | HubProfile, started: float, tables: Mapping[Run, pd.DataFrame] | None = None) -> str:
    """Markdown: what made a page (versions, device, wall time, parameters); `started` is time.time() at its start."""
    made = provenance()
    packages = ", ".join(f"{name} {version}" for name, version in json.loads(made["packages"]).items())
    records = ""
    if tables:
        seconds = pd.concat(tables.values())["wall_seconds"].sum()
        trained = sum(profile.log(run)["wall_seconds"].max() for run in profile.runs)
        training = f"{trained / 60:.1f} min of training and " if trained == trained else ""
        records = (f"; its records took {training}{seconds / 60:.1f} min of measuring, wall times of single runs and "
                   "checkpoints added up, which may run side by side")
    if profile.archive:
        origin = profile.origin
        records += (". **No model was trained or measured for it**: its records are those of the archive, written by "
                    f"reptrace {origin.code} on {origin.machine}")
    measured = pd.concat(tables.values()).query("status == 'measured'") if tables else pd.DataFrame()
    where = ", ".join(measured[["device", "dtype_forward"]].iloc[0]) if len(measured) else f"{DEVICE}, {DTYPE}"
    return (f"**What made this page.** reptrace {made['code']}; Python {made['python']}; {packages}; "
            f"{made['machine']}; {where}; {datetime.now(UTC):%Y-%m-%d %H:%M} UTC; "
            f"{time.time() - started:.0f} s for this notebook{records}; text `{profile.text}`.\n\n"
            f"Parameters: `{profile.describe()}`{_another_text(profile)}")


def _another_text(profile: Profile | HubProfile) -> str:
    """A paragraph where the default text is another one than that of the tracked tables; else nothing."""
    if profile.corpus != "docstrings" or isinstance(profile, HubProfile):
        return ""
    tracked = pd.read_csv(TRACKED, usecols=["corpus_fingerprint", "python"]).iloc[0]
    if profile.text == tracked.corpus_fingerprint:
        return ""
    return ("\n\n**The text is not that of the tracked tables.** The default text is the docstrings of the locked "
            "packages and of Python's own standard library. The tables in data/results were made from that of Python "
            f"{tracked.python} (`{tracked.corpus_fingerprint}`), this page from that of Python "
            f"{provenance()['python']} (`{profile.text}`), so its models and numbers are others than theirs.")

"""Where RankMe turns to compression in every run that there is: this report's, the reference suite's, published ones.

One table of runs for the law of the turn (`measures.turn_law`), what the law is without each of them, and what follows
for the claim that its exponent has a certain value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from reptrace.checkpoints import published
from reptrace.checkpoints import suites as registry
from reptrace.measures.phases import Phases, phases_of
from reptrace.measures.turn_law import Law, by_size, fit, place
from reptrace.report.averaged import averaged_phases
from reptrace.report.profiles import ROOT, HubProfile, Profile
from reptrace.report.verdicts import NOT, OPEN, REPRODUCED
from reptrace.training.runs import Run

READ, LOOSE = 1.2, 1.5  # factors to which a published turn's place may be known: it was read off a logarithmic axis
RAW, AVERAGED = "raw", "averaged"  # weights, as the reference tables call them
# by the first word of a table's name, a group of studies/reference.yaml
KINDS = {"cpu": "reference, CPU", "docstrings": "reference, docstrings", "gpu": "reference, GPU"}


def reference(pattern: str = "data/results/reference/*.parquet") -> pd.DataFrame:
    """All tables of the reference suite under each other, as `figures.trajectory` takes them; column `suite` added."""
    tables = [pd.read_parquet(path).assign(suite=KINDS[path.stem.split("-")[0]], status="measured")
              for path in sorted(ROOT.glob(pattern))]
    return pd.concat(tables).sort_values(["parameters", "seed", "weights", "step"], ignore_index=True)


def of_reference(tables: pd.DataFrame) -> pd.DataFrame:
    """A row a run of `reference` and kind of weights, as of `turns_of`."""
    rows, runs = [], dict(list(tables.groupby(["suite", "width", "seed", "weights"], sort=False)))
    for (suite, width, seed, weights), its in runs.items():
        run = Run(**json.loads(its.identity.iloc[0]))
        found = phases_of(its) if weights == RAW else averaged_phases(runs[suite, width, seed, RAW], its)
        rows.append(_row(suite, f"d = {width}, seed {seed}", run, found, weights, run.tokens_per_step,
                         its.tokens.max()))
    return pd.DataFrame(rows)


def of_profile(profile: Profile | HubProfile, phases: Mapping[object, Phases]) -> pd.DataFrame:
    """The same of a profile's runs, with the phases of each: one suite, or of the hub one by the family's name."""
    rows = []
    for run, found in phases.items():
        here = isinstance(profile, Profile)
        suite = "this report's suite" if here else run.name.split("-")[0]
        step = run.tokens_per_step if here else run.training_tokens / run.steps
        rows.append(_row(suite, profile.labels[run], run, found, RAW, step, run.training_tokens))
    return pd.DataFrame(rows)


def of_published(read: float = READ) -> pd.DataFrame:
    """The same of the models of the paper's Fig 2, whose turns were read off it, each good to a factor."""
    rows = []
    for each in published.rankme_landmarks().itertuples():
        name = each.model.lower().replace("olmo-2", "olmo2")
        suite = registry.suite(name)
        rows.append({"suite": "Pythia (published)" if name.startswith("pythia") else "OLMo 2 (published)",
                     "run": each.model, "weights": RAW, "parameters": each.parameters,
                     "without_embeddings": each.parameters - 2 * suite.shape["vocabulary"] * suite.shape["width"],
                     "turn": each.peak_tokens, "low": each.peak_tokens / read, "high": each.peak_tokens * read,
                     "step_tokens": suite.stages[0].tokens_per_step, "end": np.nan, "published": True})
    return pd.DataFrame(rows)


def _row(suite: str, name: str, run, found: Phases, weights: str, step_tokens: float, end: float) -> dict:
    low, high = place(found) or (np.nan, np.nan)
    return {"suite": suite, "run": name, "weights": weights, "parameters": run.parameters,
            "without_embeddings": run.parameters - 2 * run.vocabulary * run.width,
            "turn": found.turn.tokens if found.turn else np.nan, "low": low, "high": high,
            "step_tokens": step_tokens, "end": end, "published": False}


def law_of(runs: pd.DataFrame, count: str = "parameters", unit: float | pd.Series = 1.0, pooled: bool = False) -> Law:
    """The law of some runs, by one count of their parameters; runs that say nothing (low is nan) are passed over.

    unit : of the turn's place, in tokens; a run's own `step_tokens` for steps
    pooled : bool, default False; one intercept for all suites
    """
    counted = runs.assign(parameters=runs[count], low=runs.low / unit, high=runs.high / unit).dropna(subset="low")
    sizes = by_size(counted)
    return fit(sizes.assign(suite="all") if pooled else sizes)


def between(runs: pd.DataFrame) -> Law:
    """The law of the suites' means, a point a suite: what is left when nothing within them counts."""
    sizes = by_size(runs.dropna(subset="low"))
    middle = sizes.groupby("suite").parameters.transform(lambda each: np.exp(np.log(each).mean()))
    return fit(by_size(sizes.assign(parameters=middle)).assign(suite="all"))


def without_each(readings: Sequence[pd.DataFrame], counts: Sequence[str] = ("parameters", "without_embeddings")
                 ) -> list[list[Law]]:
    """For every run that says something, the laws of all others: one a reading and count of the parameters.

    readings : the same runs, row by row, with other intervals of their turns
    """
    known = readings[0].index[readings[0].low.notna()]
    return [[law_of(runs.drop(index=left_out), count) for runs in readings for count in counts] for left_out in known]


def verdict_on(exponent: float, laws: Sequence[Sequence[Law]]) -> tuple[str, int]:
    """Of the claim that the law has this exponent, 0 or 1: the verdict, and how many cases don't speak against it.

    laws : of each case several, as of `without_each`
    "reproduced": the interval of every law holds this exponent and not the other of the two; "not reproduced": that of
    none holds it; else it cannot be told.
    """
    held = [[law.holds(exponent) for law in case] for case in laws]
    other = any(law.holds(1 - exponent) for case in laws for law in case)
    if laws and not any(map(any, held)):
        return NOT, 0
    return REPRODUCED if laws and all(map(all, held)) and not other else OPEN, sum(map(all, held))

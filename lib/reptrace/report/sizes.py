"""Every run there is, of whatever size: whether it shows the phases, and where it turns."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from reptrace.measures.phases import MOVES, phases_of
from reptrace.report.averaged import averaged_phases, compression
from reptrace.report.measured_otherwise import sure
from reptrace.report.profiles import HubProfile, Profile, selection, span
from reptrace.report.said import together
from reptrace.report.turns import AVERAGED, RAW, reference

SMALL = 1e9  # parameters: the paper's small models have fewer


def of_profile(profile: Profile | HubProfile) -> pd.DataFrame:
    """A row a run of a profile: see `_row`."""
    tables, averaged = profile.trace(), profile.trace_averaged()
    return pd.DataFrame([_row("default" if isinstance(profile, Profile) else "hub", profile.labels[run], run.width,
                              run.parameters, run.training_tokens, table, averaged.get(run))
                         for run, table in tables.items()])


def of_reference(pattern: str) -> pd.DataFrame:
    """The same of the reference suite's tables."""
    return pd.DataFrame(list(_of_reference(reference(pattern))))


def _of_reference(tables: pd.DataFrame) -> Iterator[dict]:
    for (suite, width, seed), its in tables.groupby(["suite", "width", "seed"], sort=False):
        raw, averaged = (its[its.weights == kind].reset_index(drop=True) for kind in (RAW, AVERAGED))
        yield _row(suite, f"d = {width}, seed {seed}", width, raw.parameters.iloc[0], raw.tokens.max(), raw,
                   averaged if len(averaged) else None)


def _row(suite: str, name: str, width: int, parameters: float, end: float, table: pd.DataFrame,
         averaged: pd.DataFrame | None) -> dict:
    """suite, run, width, parameters, end (training tokens), table, phases; of each move "yes" or what else is said of
    it; `raw_compression`, by the weights as they are alone; `said` of all three moves; and `Phases.row`."""
    found = phases_of(table)
    smooth = averaged_phases(table, averaged) if averaged is not None else None
    moves = {move: "yes" if sure(found, move) else "not seen" for move in MOVES}
    raw = moves["compression"]
    moves["compression"] = compression(found, smooth) if raw == "yes" else raw
    return {"suite": suite, "run": name, "width": width, "parameters": parameters, "end": end, "table": table,
            "phases": found, **moves, "raw_compression": raw, "said": together(moves.values()),
            **found.row()}


def selected(profile: Profile | HubProfile, runs: pd.DataFrame) -> str:
    """A sentence where some of the runs were chosen because they show the last fall; else nothing."""
    settings = selection(profile)
    if settings is None:
        return ""
    others = runs[runs.suite != "default"]
    return (f" The default suite's settings were chosen because they show the last fall ("
            f"{(settings.compression == 'yes').sum()} of {len(settings)} tried do); of the other suites' {len(others)} "
            f"runs {(others.compression == 'yes').sum()} show it.")


def scale(runs: pd.DataFrame) -> str:
    """Number of runs and sizes, weights and tokens, in words."""
    return (f"{len(runs)} runs of {runs.groupby(['suite', 'width']).ngroups} sizes, {span(runs.parameters)} weights, "
            f"{span(runs.end)} training tokens")

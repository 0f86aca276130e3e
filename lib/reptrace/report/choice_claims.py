"""Which of the paper's claims on trajectories survive a choice of how to measure; the tables are studies/choices.py's.

A claim is decided in every run by the rules of the page on pretraining's phases, from raw weights: by the interval of
its ratio, or, for a place, by whether two intervals overlap. What the runs say together is `verdicts.of_runs`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from reptrace.measures.phases import Phases, Turn, claims, find_phases
from reptrace.report.measured_otherwise import phases_of
from reptrace.report.verdicts import VERDICTS, of_runs

CLAIMS = {"collapse": "falls to less than half", "expansion": "doubles its minimum",
          "compression": "falls below its peak", "alpha": "α peaks where RankMe is lowest",
          "turn": "turns where the paper's does"}
RATIOS = ("collapse", "expansion", "compression")


def at_one_place(one: Turn | None, other: Turn | None) -> str:
    """Whether two turns are at one place: their intervals overlap, or they lie within one checkpoint."""
    if not (one and other):
        return "undecided"
    (a, b), (c, d) = one.interval, other.interval
    return "yes" if max(a, c) <= min(b, d) or abs(one.index - other.index) <= 1 else "no"


def of_alpha(table: pd.DataFrame) -> Phases:
    """Those of 1 / alpha, whose minimum is alpha's peak; columns tokens, alpha, alpha_stderr."""
    return find_phases(table.tokens, 1 / table.alpha, table.alpha_stderr / table.alpha**2)


def of_runs_by_choice(table: pd.DataFrame, reference: str) -> pd.DataFrame:
    """A row a choice, run and claim: `said` ("yes", "no" or else), `value` with `low` and `high`.

    Parameters
    ----------
    table : columns choice, run, tokens, rankme, rankme_stderr, alpha, alpha_stderr; a row a checkpoint
    reference : the choice with whose turn the others' are compared

    The value is the ratio that decides; of alpha, the tokens at its peak over those at RankMe's minimum; of the turn,
    its tokens over those of the reference's; nan where a move or turn is not seen, as are `low` and `high` of places.
    """
    phases = {key: (phases_of(its), of_alpha(its)) for key, its in table.groupby(["choice", "run"], sort=False)}
    rows = []
    for (choice, run), (rankme, alpha) in phases.items():
        said, common = claims(rankme), {"choice": choice, "run": run}
        for name in RATIOS:
            change = getattr(rankme, name)
            value, (low, high) = (change.ratio, change.interval) if change else (np.nan, (np.nan, np.nan))
            rows.append(common | {"claim": name, "said": said[name], "value": value, "low": low, "high": high})
        for name, one, other in (("alpha", alpha.collapse_end, rankme.collapse_end),
                                 ("turn", rankme.turn, phases[reference, run][0].turn)):
            value = one.tokens / other.tokens if one and other and other.tokens else np.nan
            rows.append(common | {"claim": name, "said": at_one_place(one, other), "value": value, "low": np.nan,
                                  "high": np.nan})
    return pd.DataFrame(rows)


def together(of_runs_: pd.DataFrame) -> pd.DataFrame:
    """What the runs say of each choice and claim, a row each, in order: `yes`, `no`, `of`, `verdict`, and over those
    runs that have one the smallest and the largest `value` (`least`, `most`)."""
    by = of_runs_.groupby(["choice", "claim"], sort=False)
    return by.agg(yes=("said", lambda said: (said == "yes").sum()), no=("said", lambda said: (said == "no").sum()),
                  of=("said", "size"), verdict=("said", of_runs), least=("value", "min"),
                  most=("value", "max")).reset_index()


def by_verdict(found: pd.DataFrame) -> Mapping[str, Mapping[str, list[str]]]:
    """Of each claim, the choices that give it each verdict: claim -> verdict -> choices, in the table's order."""
    return {claim: {verdict: list(its[its.verdict == verdict].choice) for verdict in VERDICTS}
            for claim, its in found.groupby("claim", sort=False)}


def alike(table: pd.DataFrame, reference: str) -> pd.DataFrame:
    """How like the reference's RankMe a choice's trajectory is, a row a choice and run.

    `correlation`: Spearman's, over checkpoints; `factor`: the median of its value over the reference's.
    """
    rows = []
    for run, its in table.groupby("run", sort=False):
        values = its.pivot(index="tokens", columns="choice", values="rankme")
        for choice in its.choice.unique():
            rows.append({"choice": choice, "run": run,
                         "correlation": values[choice].corr(values[reference], method="spearman"),
                         "factor": float((values[choice] / values[reference]).median())})
    return pd.DataFrame(rows)

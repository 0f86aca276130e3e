"""Which of the paper's claims on trajectories survive a choice of how to measure; the tables are studies/choices.py's.

A claim is decided in every run by the rules of the page on pretraining's phases, from raw weights: by the interval of
its ratio, or, for a place, by whether two intervals overlap. What the runs say together is `verdicts.of_runs`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from reptrace.measures.phases import MOVES, at_one_place, claims, phases_of, phases_of_alpha, times_later
from reptrace.report.verdicts import VERDICTS, of_runs

CLAIMS = {"collapse": "falls to less than half", "expansion": "doubles its minimum",
          "compression": "falls below its peak", "alpha": "α peaks where RankMe is lowest",
          "turn": "turns where the paper's does"}


def of_runs_by_choice(table: pd.DataFrame, reference: str) -> pd.DataFrame:
    """A row a choice, run and claim: `said` ("yes", "no" or else) and `value`.

    Parameters
    ----------
    table : columns choice, run, tokens, rankme, rankme_stderr, alpha, alpha_stderr; a row a checkpoint
    reference : the choice with whose turn the others' are compared

    The value is the ratio that decides; of alpha, the tokens at its peak over those at RankMe's minimum; of the turn,
    its tokens over those of the reference's; nan where a move or turn is not seen.
    """
    phases = {key: (phases_of(its), phases_of_alpha(its)) for key, its in table.groupby(["choice", "run"], sort=False)}
    rows = []
    for (choice, run), (rankme, alpha) in phases.items():
        said, common = claims(rankme), {"choice": choice, "run": run}
        for name in MOVES:
            change = getattr(rankme, name)
            rows.append(common | {"claim": name, "said": said[name], "value": change.ratio if change else np.nan})
        for name, one, other in (("alpha", alpha.collapse_end, rankme.collapse_end),
                                 ("turn", rankme.turn, phases[reference, run][0].turn)):
            rows.append(common | {"claim": name, "said": at_one_place(one, other), "value": times_later(one, other)})
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

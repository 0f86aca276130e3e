"""Values from the literature that pages compare with, read from data/published (sources in its SOURCES.md)."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from reptrace.measures.phases import PHASES, Phases
from reptrace.support.arguments import near

FOLDER = Path(__file__).parents[3] / "data" / "published"
PYTHIA_TOKENS = 2_097_152  # an optimizer step, of every size
PILE_TOKENS = 383_299_322_520  # of the Pile's training part in Llama 2's tokens: infini-gram's table of its indexes


def landmarks() -> pd.DataFrame:
    """Landmarks of RankMe and alpha read off Fig 2 of Li et al. 2025 by eye, good to about 3 %.

    Columns: model, metric ("rankme", "alpha"), landmark, tokens, value, parameters.
    """
    return pd.read_csv(FOLDER / "landmarks.csv").merge(pd.read_csv(FOLDER / "models.csv"), on="model", how="left")


def rankme_landmarks() -> pd.DataFrame:
    """One row a model of pretraining: parameters, RankMe first, minimum, peak, last (or trough), tokens of each."""
    table = landmarks().query("metric == 'rankme' and parameters.notna()")
    wide = table.pivot(index=["model", "parameters"], columns="landmark", values=["value", "tokens"])
    wide.columns = [f"{landmark}_{'tokens' if kind == 'tokens' else 'value'}" for kind, landmark in wide.columns]
    wide = wide.reset_index().sort_values("parameters", ignore_index=True)
    # OLMo-2 7B rises a little at the end; the fall is counted to the lowest value after the peak, as in `phases`
    wide["lowest_after_value"] = wide[["trough_value", "last_value"]].min(axis=1)
    return wide


def faults() -> pd.DataFrame:
    """Known faults of published checkpoints: repository, steps (as `listing.read_steps` reads them), fault, source."""
    return pd.read_csv(FOLDER / "faults.csv", dtype=str)


@cache
def steps(table: str, model: str) -> list[int]:
    """Published steps of a model from a table of columns model, step."""
    rows = pd.read_csv(FOLDER / table)
    found = sorted(rows[rows.model == model].step.tolist())
    if not found:
        names = rows.model.unique().tolist()
        raise ValueError(f"{table} has no model {model!r}.{near(model, names)} It has {', '.join(names)}.")
    return found


def pythia_accuracy(task: str) -> dict[str, pd.DataFrame]:
    """EleutherAI's own evaluations: model ("pythia-1b") -> step, value (accuracy, 0 to 1), stderr."""
    rows = pd.read_csv(FOLDER / "pythia_evals.csv").query("task == @task")
    return {model: group.reset_index(drop=True) for model, group in rows.groupby("model")}


def by_tokens(evaluations: pd.DataFrame, task: str) -> pd.DataFrame:
    """One model of `pythia_accuracy` as `figures.trajectory` takes it: tokens, status, the task and its `_stderr`."""
    return pd.DataFrame({"tokens": evaluations.step * PYTHIA_TOKENS, "status": "measured", task: evaluations.value,
                         f"{task}_stderr": evaluations.stderr})


def phases_of(marks: pd.Series, tokens) -> Phases:
    """The phases that a row of `rankme_landmarks` says, as spans of checkpoints at these tokens, increasing."""
    last = len(tokens) - 1
    cuts = [0, *(int(np.abs(np.log(np.maximum(tokens, 1) / marks[f"{name}_tokens"])).argmin())
                 for name in ("minimum", "peak")), last]
    return Phases(None, None, None, None, None, list(zip(PHASES, cuts, cuts[1:], strict=False)))


def table(number: int) -> pd.DataFrame:
    """A table of the paper's appendix (7, 8 or 9): model, quantity, value, p_value."""
    return pd.read_csv(FOLDER / "paper_tables.csv").query("table == @number").drop(columns="table")

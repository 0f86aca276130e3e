"""Other readings of the geometry beside RankMe: which tell its story, and which foretell what a model can do next.

`table` is everywhere that of studies/readings.py, data/results/readings.csv: a row a checkpoint, in order, with the
columns of the measures, the training loss and the tasks' values; a run is a `model`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product

import numpy as np
import pandas as pd
from scipy.stats import f as fisher
from scipy.stats import spearmanr
from scipy.stats import t as student

from reptrace.measures.phases import Phases, Turn, at_one_place, find_phases
from reptrace.report.over_runs import NONE, mean_over
from reptrace.report.said import side
from reptrace.report.verdicts import NOT, OPEN, REPRODUCED, of_interval

PARTS = {"attention": "attention", "mlp": "MLP", "unembedding": "unembedding"}
# Column -> what it is called. Those of the weights have no error over sequences.
READINGS = {
    "alpha": "α", "mean_cosine": "mean cosine", "mean_share": "mean's share", "cka_first": "CKA with the first",
    "cka_last": "CKA with the last", "cka_previous": "CKA with the previous", "prompt_entropy": "prompt entropy",
    "curvature": "curvature", "sentence_erank": "sentence eRank", "intrinsic_dimension": "intrinsic dimension",
    "readout_quarter_share": "share read out", "readout_quarter_overlap": "overlap with the readout",
    "readout_rank": "unembedding's RankMe",
    **{f"{part}_{column}": f"{name}'s {words}" for (part, name), (column, words) in product(PARTS.items(), (
        ("effective_rank", "effective rank"), ("stable_rank", "stable rank"), ("condition", "condition number")))}}
FUTURE = ("cka_last",)  # compare with what is still to come: they foretell nothing
TASKS = ("continuation", "copy", "copy_near", "memorization")
EXACT = 1e-9  # relative error given to readings that have none: every move of theirs is real
SAME, PART, ANOTHER = "the same", "in part", "another"


# The same story?


def story(table: pd.DataFrame, reading: str) -> pd.DataFrame:
    """Whether a reading goes and turns where RankMe does: a row a run.

    Columns: `correlation`, Spearman's with RankMe over checkpoints; `upright`, whether the reading is compared as it
    is, or by its inverse: by the sign of the mean correlation, one for all runs; `minimum` and `turn`, whether RankMe's
    lowest point and its turn, and the reading's, are at one place, see `_place`.
    """
    runs = dict(list(table.groupby("model", sort=False)))
    correlations = [float(spearmanr(its[reading], its.rankme, nan_policy="omit").statistic) for its in runs.values()]
    upright, rows = bool(np.nanmean(correlations) >= 0), []
    for (model, its), correlation in zip(runs.items(), correlations, strict=True):
        of_rankme, found = phases(its, "rankme"), phases(its, reading, upright)
        rows.append({"model": model, "correlation": correlation, "upright": upright,
                     "minimum": _place(found.collapse_end, of_rankme.collapse_end),
                     "turn": _place(found.turn, of_rankme.turn)})
    return pd.DataFrame(rows)


def phases(run: pd.DataFrame, reading: str, upright: bool = True) -> Phases:
    """Of one run's reading, or of its inverse; values that are not positive are gaps."""
    values = run[reading].where(run[reading] > 0).astype(float)
    error = run.get(f"{reading}_stderr", pd.Series(0.0, run.index))
    relative = (error / values).fillna(0).clip(lower=EXACT)
    values = values if upright else 1 / values
    return find_phases(run.tokens, values, values * relative)


def _place(one: Turn | None, other: Turn | None) -> str:
    """As `at_one_place`, but "no" where one of the two turns is not seen, and "neither" where both are not."""
    if not one or not other:
        return "no" if one or other else "neither"
    return at_one_place(one, other)


def told(found: pd.DataFrame) -> str:
    """`SAME`: in every run both places are RankMe's; `ANOTHER`: in no run is either; else `PART`."""
    shared = found[["minimum", "turn"]] == "yes"
    return SAME if shared.all(axis=None) else PART if shared.any(axis=None) else ANOTHER


# Foretelling the tasks


def foretold(table: pd.DataFrame, tasks: Sequence[str] = TASKS, readings: Iterable[str] | None = None) -> pd.DataFrame:
    """How much better than with the loss a task's value at the next checkpoint is foretold with a reading.

    A line is fitted by least squares to all runs but one, and asked of that one: the next value from the present one
    and the loss (the mean since the record before); with the reading in place of the loss; and with it beside the loss.
    A reading enters as the difference from its run's first checkpoint, of logarithms where it is positive in all runs.

    Returns
    -------
    DataFrame, a row a task, reading and `how` ("in place", "beside"): `gain`, the mean over runs of 1 - (mean squared
        error) / (that with value and loss alone), `low` and `high`, its 95 % interval over runs, and `low_of_all`, the
        lower end at 95 % for all rows together (Bonferroni). The reading "no loss" leaves the loss out.
    """
    pairs, rows = _pairs(table), []
    readings = [each for each in (readings or READINGS) if each in table and each not in FUTURE]
    for task in tasks:
        cases = [("no loss", "in place", []), *((each, how, [each] if how == "in place" else ["loss", each])
                                                for each in ("rankme", *readings) for how in ("in place", "beside"))]
        for reading, how, asked in cases:
            there = pairs.dropna(subset=[task, f"next_{task}", "loss", *asked])
            gains = 1 - _errors(there, task, asked) / _errors(there, task, ["loss"])
            rows.append({"task": task, "reading": reading, "how": how, "gains": gains})
    tried = sum(row["reading"] != "no loss" for row in rows)
    for row in rows:
        gains = row.pop("gains")
        row["gain"], row["low"], row["high"] = mean_over(gains)
        wider = student.ppf(1 - 0.025 / tried, len(gains) - 1) / student.ppf(0.975, len(gains) - 1)
        row["low_of_all"] = row["gain"] + wider * (row["low"] - row["gain"])
    return pd.DataFrame(rows)


def _pairs(table: pd.DataFrame) -> pd.DataFrame:
    """A row a checkpoint that has a loss and a next one, with the next values of the tasks as `next_...`."""
    found, readings = [], table[[each for each in ("rankme", *READINGS) if each in table]]
    positive = readings.gt(0).where(readings.notna(), True).all()  # in all runs: of one kind is what is compared
    for _, its in table.groupby("model", sort=False):
        changed = {each: _from_first(its[each], positive[each]) for each in readings}
        following = its[[task for task in TASKS if task in its]].shift(-1).add_prefix("next_")
        found.append(pd.concat([its.assign(**changed), following], axis=1).iloc[:-1])
    pairs = pd.concat(found)
    return pairs[pairs.loss.notna()]


def _from_first(values: pd.Series, logarithms: bool) -> pd.Series:
    values = np.log(values) if logarithms else values
    return values - values[values.first_valid_index()] if values.notna().any() else values


def _errors(pairs: pd.DataFrame, task: str, asked: Sequence[str]) -> np.ndarray:
    """Mean squared error on each run, of the line fitted to the others."""
    x = np.column_stack([np.ones(len(pairs)), *(pairs[each] for each in (task, *asked))])
    y, runs, errors = pairs[f"next_{task}"].to_numpy(), pairs.model.to_numpy(), []
    for run in dict.fromkeys(runs):
        out = runs == run
        line = np.linalg.lstsq(x[~out], y[~out], rcond=None)[0]
        errors.append(np.mean((y[out] - x[out] @ line) ** 2))
    return np.array(errors)


# What others found


def late_alignment(table: pd.DataFrame, what: str = "share") -> pd.DataFrame:
    """Whether what the unembedding reads of the states falls late: from RankMe's turn to the end of each run.

    Parameters
    ----------
    what : "share" of the variance in the unembedding's leading quarter, or "overlap" of the leading quarters

    Returns
    -------
    DataFrame, a row a run that turns: `turn` (tokens), `change` from there to the end with its interval `low`,
        `high`, as if the two were of other sequences, which is too wide rather than too narrow; `loss_change`; and
        whether it `falls`, "yes", "no" (it surely grows) or "undecided"
    """
    column, rows = f"readout_quarter_{what}", []
    for model, its in table.groupby("model", sort=False):
        turn = phases(its, "rankme").turn
        if not turn:
            continue
        at, end = its.iloc[turn.index], its.iloc[-1]
        change = end[column] - at[column]
        half = 1.96 * np.hypot(at[f"{column}_stderr"], end[f"{column}_stderr"])
        rows.append({"model": model, "turn": turn.tokens, "change": change, "low": change - half,
                     "high": change + half, "loss_change": end.loss - at.loss,
                     "falls": side(change - half, change + half, -1)})
    return pd.DataFrame(rows, columns=["model", "turn", "change", "low", "high", "loss_change", "falls"])


def at_equal_loss(runs: pd.DataFrame, settings: Sequence[str]) -> tuple[float, float, float]:
    """How much wider RankMe scatters between settings than between seeds, at equal loss: a ratio and its 95 % interval.

    The scatter is the standard deviation of ln RankMe about its line on the loss, the line being that within settings
    where these have several seeds; the interval is Fisher's, of the ratio of two normal scatters.

    Parameters
    ----------
    runs : columns final_loss, rankme_last, and those of `settings`; a row a run, alike in width, vocabulary and probe
    settings : columns; runs that agree in all of them differ in their seed alone
    """
    y, x = np.log(runs.rankme_last.to_numpy()), runs.final_loss.to_numpy()
    setting = runs.groupby(list(settings), dropna=False).ngroup().to_numpy()
    groups = [setting == each for each in np.unique(setting)]
    within = sum(int(group.sum()) - 1 for group in groups)
    if within < 3 or len(groups) < 4:
        return NONE, NONE, NONE
    centred = [np.column_stack([x[group] - x[group].mean(), y[group] - y[group].mean()]) for group in groups]
    inside = np.concatenate(centred)
    slope = inside[:, 0] @ inside[:, 1] / (inside[:, 0] @ inside[:, 0])
    of_seeds = np.square(inside[:, 1] - slope * inside[:, 0]).sum() / (within - 1)
    means = np.array([(y - slope * x)[group].mean() for group in groups])
    ratio, free = means.var(ddof=1) / of_seeds, (len(groups) - 1, within - 1)
    low, high = ratio / fisher.ppf(0.975, *free), ratio / fisher.ppf(0.025, *free)
    return tuple(float(np.sqrt(each)) for each in (ratio, low, high))


def without_each(runs: pd.DataFrame, settings: Sequence[str]) -> list[str]:
    """The verdict that RankMe scatters wider between settings than between seeds, without each of the settings."""
    group = runs.groupby(list(settings), dropna=False).ngroup()
    found = [at_equal_loss(runs[group != each], settings) for each in sorted(group.unique())]
    return [of_interval(low, high, 1) if low == low else OPEN for _, low, high in found]


def over_cases(cases: Sequence[str]) -> tuple[str, int]:
    """The verdict of all cases, where they agree, else open; and how many do not speak against the claim."""
    kinds = set(cases)
    verdict = kinds.pop() if len(kinds) == 1 else OPEN
    return verdict, cases.count(REPRODUCED) if verdict != NOT else 0

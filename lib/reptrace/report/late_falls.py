"""Whether RankMe falls after its expansion, by one criterion: seed by seed, over seeds, and against a reference.

A run's late change is RankMe at its end over its highest value after its lowest, both on sequences that picked neither,
the same ones (`late_ratio`, with its paired 95 % interval `late_low` to `late_high`, see studies/causes.py). Of the
weights as they are and of their average over steps (`averaged_late_ratio` and so on) the smaller fall counts.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from reptrace.report.over_runs import mean_over
from reptrace.report.verdicts import FEWEST, NOT, OPEN, REPRODUCED

FELL, KEPT, HIGHEST = FATES = ("fell", "no fall", "highest at the end")
LATE = ("late_ratio", "late_low", "late_high", "peak_tokens")


def late_change(runs: pd.DataFrame) -> pd.DataFrame:
    """The columns LATE, a row a run: each the larger of raw and averaged weights; of the raw where there are no others.
    """
    averaged = [f"averaged_{name}" for name in LATE]
    if not set(averaged) <= set(runs.columns):
        return runs[list(LATE)]
    return pd.DataFrame(np.fmax(runs[list(LATE)], runs[averaged].to_numpy()), runs.index)


def fates(runs: pd.DataFrame) -> pd.Series:
    """One of `FATES` a run: it fell where the whole interval lies below 1; where the last checkpoint is the highest, a
    fall may be yet to come."""
    late = late_change(runs)
    return pd.Series(np.select([late.late_high < 1, late.peak_tokens >= runs.tokens], [FELL, HIGHEST], KEPT),
                     runs.index)


def summary(runs: pd.DataFrame, references: Mapping[str, str]) -> pd.DataFrame:
    """A row a condition, in the table's order.

    Parameters
    ----------
    runs : columns condition, seed, tokens, those of `late_change`, predicted_compression
        "yes" or "no"; a row a run; a condition and its reference have the same seeds.
    references : condition -> that with which it is compared, seed by seed; itself for a reference

    Returns
    -------
    DataFrame
        By condition: `seeds`; how many of them have each fate (`fell`, `kept`, `highest`); the mean change from peak to
        end (`change`, `low`, `high`: -0.02 for a fall by 2 %); the mean change over the reference's of the same seed
        (`apart`, `apart_low`, `apart_high`); `theory`, "fall" or "no fall"; its `verdict`. A seed at its highest counts
        as no change; where the seeds are all alike there is no scatter and no mean (nan), as of a reference against
        itself.
    """
    logs = runs.assign(late=np.log(late_change(runs).late_ratio)).pivot(index="seed", columns="condition",
                                                                        values="late")
    rows = {}
    for name, group in runs.groupby("condition", sort=False):
        counts = fates(group).value_counts().reindex(FATES, fill_value=0)
        change = _over_seeds(logs[name])
        reference = references[name]
        apart = _over_seeds(logs[name] - logs[reference])
        rows[name] = {"seeds": len(group), **dict(zip(("fell", "kept", "highest"), counts, strict=True)),
                      **dict(zip(("change", "low", "high"), change, strict=True)),
                      **dict(zip(("apart", "apart_low", "apart_high"), apart, strict=True)),
                      "theory": {"yes": "fall", "no": "no fall"}[group.predicted_compression.iloc[0]]}
    table = pd.DataFrame.from_dict(rows, orient="index")
    table["verdict"] = [_verdict(row, table.loc[references[name]]) for name, row in table.iterrows()]
    return table


def _over_seeds(logs: pd.Series) -> np.ndarray:
    """Mean change and its interval; nan where all are alike."""
    return np.expm1(mean_over(logs)) if np.ptp(logs) else np.full(3, np.nan)


def _verdict(row: pd.Series, reference: pd.Series) -> str:
    """Of the theory's word on a condition: decided only where every seed says the same, and the mean more than their
    scatter."""
    falls = row.fell == row.seeds and row.high < 0
    if row.seeds < FEWEST:
        return OPEN
    if row.theory == "fall":
        return REPRODUCED if falls else NOT if row.kept == row.seeds else OPEN
    # "No fall" says something only where there is one to miss, the reference's within as many tokens, and none to come.
    missed = row.kept == row.seeds and reference.high < 0 and row.apart_low > 0
    return NOT if falls else REPRODUCED if missed else OPEN

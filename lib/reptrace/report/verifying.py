"""The archive against models trained anew: the same numbers, within tolerances that say where they come from.

On a processor, with packages and on a text like those of the archive, the same training gives the same weights to the
bit. Elsewhere sums are rounded otherwise; training amplifies that, until two runs are as far apart as two seeds.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from filelock import FileLock

from reptrace.report import capabilities
from reptrace.report.profiles import Profile
from reptrace.training.runs import Run

SAME = 1e-6  # relative: far more than is lost on the way through a table, far less than other weights make
STDERRS = 4  # of the difference of two models on a task, if each had drawn its own items
NEGLIGIBLE = 1e-6  # eigenvalues below this share of the largest, where float32 features leave few digits
COLUMNS = ["what", "place", "value", "stderr"]


def verify(parameters_file: Path, archive: Path, every_run: bool = False, progress: bool = True) -> pd.DataFrame:
    """Train runs of an archive's suite anew, measure every checkpoint of theirs, and compare.

    Parameters
    ----------
    parameters_file : of the archive's suite
    archive : folder of the archive
    every_run : bool, default False: the first seed of the first size alone
    progress : bool, default True

    Returns
    -------
    pandas.DataFrame
        A row for each run and quantity: run, what, compared (how many numbers), difference (the largest, relative; of
        tasks, absolute), tolerance, why that one, and within. What is trained lies in a folder `verify` of the build
        folder until then: an interrupted call is gone on with, a finished one leaves nothing.
    """
    parameters = yaml.safe_load(parameters_file.read_text())
    kept = replace(Profile.of(parameters), archive=str(archive))
    first = kept.sizes[0] | {"seeds": kept.sizes[0]["seeds"][:1]}
    fresh = replace(kept, archive=None, sizes=kept.sizes if every_run else [first], build=f"{kept.build}/verify")
    fresh.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(fresh.folder / "lock"):
        fresh.train(progress)
        old, new = (_numbers(profile, parameters["items"], progress) for profile in (kept, fresh))
        apart = [name for name in ("processor", "packages", "text", "recipe")
                 if kept.origin[name] != fresh.origin[name]]
        rows = _compared(kept.labels, old, new, apart)
    shutil.rmtree(fresh.folder)
    return pd.DataFrame(rows)


def shown(table: pd.DataFrame) -> str:
    """The table for a reader."""
    plain = table.assign(within=table.within.map({True: "yes", False: "NO"}))
    return plain.to_string(index=False, formatters=dict.fromkeys(("difference", "tolerance"), "{:.1e}".format))


def _numbers(profile: Profile, items: int, progress: bool) -> dict[Run, pd.DataFrame]:
    """What a suite's runs gave: run -> COLUMNS, `place` being a step, with a rank for eigenvalues."""
    traced, averaged = profile.trace(progress), profile.trace_averaged(progress)
    groups = capabilities.groups(profile, items, progress)
    asked = capabilities.evaluate(profile, groups, items, progress)
    found = {}
    for run, table in traced.items():
        log = profile.log(run)
        parts = [pd.DataFrame({"what": "training loss", "place": log.step, "value": log.loss})]
        parts += [pd.DataFrame({"what": f"{kind}{what}", "place": its.step, "value": its[what]})
                  for kind, its in (("", table), ("averaged ", averaged.get(run))) if its is not None
                  for what in ("rankme", "alpha")]
        for row in table.itertuples():
            s = np.asarray(row.eigenvalues)
            large = np.flatnonzero(s > NEGLIGIBLE * s[0])
            parts.append(pd.DataFrame({"what": "eigenvalues", "place": [f"{row.step} {k}" for k in large],
                                       "value": s[large]}))
        for task in (*(name for group in groups if run in group.checkpoints for name in group.tasks),
                     capabilities.MEMORIZATION):
            values = capabilities.series(asked[run], task)
            parts.append(pd.DataFrame({"what": task, "place": values.revision, "value": values[task],
                                       "stderr": values[f"{task}_stderr"]}))
        found[alike(run)] = pd.concat(parts, ignore_index=True).reindex(columns=COLUMNS)
    return found


def alike(run: Run) -> Run:
    """What two runs share that are the same but for their text and recipe."""
    return replace(run, corpus="", recipe=0)


def _compared(labels: Mapping[Run, str], old: Mapping[Run, pd.DataFrame], new: Mapping[Run, pd.DataFrame],
              apart: list[str]) -> list[dict]:
    """Rows of `verify`; `apart`: in what the machine differs from the archive's."""
    names = {alike(run): label for run, label in labels.items()}
    seeds, rows = _between_seeds(old), []
    for run, table in new.items():
        both = _both(old[run], table)
        for what, part in both.groupby("what", sort=False):
            task = part.stderr_old.notna().any()
            difference = float((part.value_old - part.value).abs().max() if task else part.relative.max())
            if not apart:
                bound, why = SAME, "the same processor, packages and text"
            elif task:
                bound = STDERRS * float(np.hypot(part.stderr_old, part.stderr).max())
                why = f"{STDERRS} standard errors of a difference: other {', '.join(apart)}"
            else:
                bound, why = seeds[what], f"largest difference between seeds: other {', '.join(apart)}"
            rows.append({"run": names[run], "what": what, "compared": len(part), "difference": difference,
                         "tolerance": bound, "why": why, "within": difference <= bound})
    return rows


def _between_seeds(numbers: Mapping[Run, pd.DataFrame]) -> dict[str, float]:
    """The largest relative difference between two seeds of one size, by quantity."""
    pairs = [(one, other) for one, other in combinations(numbers, 2) if replace(one, seed=other.seed) == other]
    tables = [_both(numbers[one], numbers[other]) for one, other in pairs]
    return pd.concat(tables).groupby("what").relative.max().to_dict() if tables else {}


def _both(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """Numbers that both have, side by side, and their relative difference."""
    both = old.merge(new, on=["what", "place"], suffixes=("_old", "")).dropna(subset=["value_old", "value"])
    larger = both[["value_old", "value"]].abs().max(axis=1)
    return both.assign(relative=((both.value_old - both.value).abs() / larger.where(larger > 0, 1)))

"""How long the report takes, by stage and notebook: measured while it is made, printed at its end, and tracked.

Only what was done whole, in one go, says how long it takes: what was done before, or in part, keeps the time it had.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from reptrace.records.store import provenance, write_atomically
from reptrace.report.executing import Spent, processor_seconds

NAME = "report_times.csv"
STAGES = ("text", "training", "measuring", "tasks", "notebooks", "book")
COLUMNS = ["stage", "notebook", "wall_seconds", "processor_seconds", "load", "code", "packages", "python", "machine"]


@dataclass
class Stage:
    """A stage under way. `whole`: nothing of it had been done before; to be set by whoever does it."""

    started: float  # time.time()
    whole: bool = False

    def made(self, paths: Iterable[Path]) -> bool:
        """Whether all these files are there, written since the stage began."""
        found = [path.exists() and path.stat().st_mtime >= self.started for path in paths]
        return bool(found) and all(found)


class Times:
    """The times of one making of the report."""

    def __init__(self):
        self.rows: list[dict] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        load, begun, spent = _load(), time.perf_counter(), processor_seconds()
        stage = Stage(time.time())
        yield stage
        self._add(name, "", Spent(time.perf_counter() - begun, processor_seconds() - spent), load, stage.whole)

    def notebook(self, name: str, spent: Spent, whole: bool) -> None:
        self._add("notebooks", name, spent, _load(), whole)

    def table(self, known: pd.DataFrame, notebooks: Iterable[str]) -> pd.DataFrame:
        """These times where a thing was done whole, else those that are known of it, in the order of stages and
        notebooks."""
        new = pd.DataFrame([row for row in self.rows if row["whole"]], columns=COLUMNS)
        both = pd.concat([new, known[COLUMNS]] if len(known) else [new]).drop_duplicates(["stage", "notebook"])
        order = [(stage, name) for stage in STAGES for name in ("", *(notebooks if stage == "notebooks" else ()))]
        place = {key: number for number, key in enumerate(order)}
        both["place"] = [place.get(key, -1) for key in zip(both.stage, both.notebook, strict=True)]
        return both[both.place >= 0].sort_values("place").drop(columns="place").reset_index(drop=True)

    def shown(self) -> str:
        """This making's own times, for a reader."""
        lines = [f"{'  ' + row['notebook'] if row['notebook'] else row['stage']:32}{row['wall_seconds']:9.1f}"
                 f"{row['processor_seconds']:11.1f}{'' if row['whole'] else '   (what was not done before)'}"
                 for row in sorted(self.rows, key=lambda row: STAGES.index(row["stage"]))]
        return "\n".join([f"{'seconds':32}{'wall':>9}{'processor':>11}", *lines])

    def _add(self, stage: str, notebook: str, spent: Spent, load: float, whole: bool) -> None:
        self.rows.append({"stage": stage, "notebook": notebook, "wall_seconds": round(spent.seconds, 1),
                          "processor_seconds": round(spent.processor_seconds, 1), "load": round(load, 1),
                          **{key: value for key, value in provenance().items() if key in COLUMNS}, "whole": whole})


def read(file: Path) -> pd.DataFrame:
    """The tracked times; no rows where there are none yet."""
    return pd.read_csv(file, keep_default_na=False) if file.exists() else pd.DataFrame(columns=COLUMNS)


def write(table: pd.DataFrame, file: Path) -> None:
    write_atomically(file, table.to_csv(index=False).encode())


def total(table: pd.DataFrame) -> pd.Series:
    """Seconds of all stages, wall_seconds and processor_seconds; nan while the time of a stage is not known.

    Those of single notebooks lie within the stage of notebooks.
    """
    stages = table[table.notebook == ""].set_index("stage").reindex(STAGES)
    return stages[["wall_seconds", "processor_seconds"]].astype(float).sum(skipna=False)


def slowest_first(names: Iterable[str], known: pd.DataFrame) -> list[str]:
    """Names of notebooks by their known wall time; those of which none is known come first."""
    seconds = dict(zip(known.notebook, known.wall_seconds, strict=True))
    return sorted(names, key=lambda name: -seconds.get(name, float("inf")))


def _load() -> float:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")

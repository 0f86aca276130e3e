"""README's tables of speed, written from data/results/bench.csv and bench_gpu.csv. `make bench` calls `rewrite`.

    python studies/bench_tables.py
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from reptrace.records.store import write_atomically
from reptrace.support.marked import filled

ROOT = Path(__file__).parents[1]
README, RESULTS = ROOT / "README.md", ROOT / "data" / "results"
HEAD = ("what", "against", "seconds", "times faster", "must reach", "tokens a second", "share of a matmul's rate")
TABLES = ("bench", "bench_gpu")


def rewrite() -> None:
    write_atomically(README, rewritten(README.read_text()).encode())


def rewritten(text: str) -> str:
    """The text with a table from bench.csv between the marks of that name (see `marked`), and so on."""
    return filled(text, {name: table(pd.read_csv(RESULTS / f"{name}.csv")) for name in TABLES})


def table(rows: pd.DataFrame) -> str:
    lines = [HEAD, ("---",) * len(HEAD), *(_cells(row) for row in rows.itertuples())]
    return "\n".join(["", *("| " + " | ".join(line) + " |" for line in lines), "", _machine(rows), ""])


def _cells(row) -> tuple[str, ...]:
    against, ratio, required = row.against, row.ratio, row.required
    if pd.notna(row.required_seconds):  # a time allowed, beside or instead of a comparison
        allowed = f"{row.required_seconds:g} s allowed"
        against = f"{against}; {allowed}" if pd.notna(against) else allowed
        if pd.isna(ratio):
            ratio, required = row.required_seconds / row.seconds, 1
    share = _number(row.peak_share)
    if pd.notna(row.required_peak_share):
        share += f" (must reach {row.required_peak_share:g})"
    tokens = "" if pd.isna(row.tokens_per_second) else f"{row.tokens_per_second:,.0f}"
    return row.what, against, _number(row.seconds), _number(ratio), f"{required:g}" if required else "", tokens, share


def _number(value: float) -> str:
    """Two digits, or all of them before the point."""
    if pd.isna(value):
        return ""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _machine(rows: pd.DataFrame) -> str:
    """Where and with what the rows were measured; those of different days may differ."""
    torches = [f"torch {json.loads(packages)['torch']}" for packages in rows.packages]
    parts = [rows.device[rows.device != "cpu"], rows.machine, pd.Series(torches)]
    return ", ".join(name for part in parts for name in dict.fromkeys(part)) + "."


if __name__ == "__main__":
    rewrite()

"""What notebooks got of a suite, as tables by name: kept while the report is made, tracked in data/archive.

From the archive the same pages are made without training and without opening a model: where the environment variable
REPTRACE_ARCHIVE names its folder, a profile reads there what it would otherwise measure.
"""

from __future__ import annotations

import io
import platform
from collections.abc import Iterator
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from reptrace.measures.spectra import AlphaFit, Geometry
from reptrace.records.store import Store, write_atomically

VARIABLE = "REPTRACE_ARCHIVE"
LARGEST = 900_000  # bytes of a file, below the megabyte that a tracked one may have


class Answers:
    """Tables by name (no dots) in a folder, as Parquet: NAME.parquet, or NAME.1.parquet, NAME.2.parquet, ... by rows.

    Numbers are kept as they are, in float64, so that pages are the same to the last digit.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    @property
    def names(self) -> list[str]:
        return sorted({path.name.split(".")[0] for path in self.folder.glob("*.parquet")})

    def read(self, name: str) -> pd.DataFrame:
        """A table; FileNotFoundError where there is none."""
        files = self._files(name)
        if not files:
            raise FileNotFoundError(f"there is no table {name!r} in {str(self.folder)!r}: make report writes it, with "
                                    "all others that the pages ask for.")
        return pd.concat([Store.read(file) for file in files], ignore_index=True)

    def write(self, name: str, table: pd.DataFrame, largest: int | None = None) -> None:
        """Keep a table, in files of `largest` bytes at most; one that is there already is left untouched."""
        pieces = next(found for found in _pieces(table) if largest is None or max(map(len, found)) <= largest)
        names = [f"{name}.parquet"] if len(pieces) == 1 else [f"{name}.{k}.parquet" for k in range(1, len(pieces) + 1)]
        for path in self._files(name):
            if path.name not in names:
                path.unlink()
        for path, piece in zip((self.folder / each for each in names), pieces, strict=True):
            if not path.exists() or path.read_bytes() != piece:
                write_atomically(path, piece)

    def remove(self, name: str) -> None:
        for path in self._files(name):
            path.unlink()

    def _files(self, name: str) -> list[Path]:
        parts = sorted(self.folder.glob(f"{name}.*.parquet"), key=lambda path: int(path.name.split(".")[1]))
        return [*self.folder.glob(f"{name}.parquet"), *parts]


def pack(answers: Answers, folder: Path) -> None:
    """Make a folder of small files hold these tables, and no others."""
    kept = Answers(folder)
    for name in answers.names:
        kept.write(name, answers.read(name), LARGEST)
    for name in set(kept.names) - set(answers.names):
        kept.remove(name)


def geometry_row(found: Geometry) -> dict:
    """A geometry as a row of a table."""
    row = asdict(found)
    fit = row.pop("alpha") or {}
    return {**row, "eigenvalues": found.eigenvalues.tolist(),
            **{f"fit_{key}": list(value) if key == "ranks" else value for key, value in fit.items()}}


def geometry_of(row: pd.Series) -> Geometry:
    """The geometry that a row of `geometry_row` holds."""
    values = row.to_dict()
    fit = {key.removeprefix("fit_"): values.pop(key) for key in list(values) if key.startswith("fit_")}
    alpha = AlphaFit(**{**fit, "ranks": tuple(map(int, fit["ranks"]))}) if fit else None
    return Geometry(**{**values, "eigenvalues": np.array(values["eigenvalues"]), "alpha": alpha})


def processor() -> str:
    """Which processor this is, and the instructions that torch uses of it: where these are alike, so is rounding."""
    import torch

    file = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in (file.read_text() if file.exists() else "").splitlines()
             if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {torch.backends.cpu.get_cpu_capability()}"


def _pieces(table: pd.DataFrame) -> Iterator[list[bytes]]:
    """The files of a table: one, two, three, ... up to one a row."""
    for count in range(1, max(len(table), 1) + 1):
        edges = np.linspace(0, len(table), count + 1).round().astype(int)
        yield [_parquet(table.iloc[first:last]) for first, last in pairwise(edges)]


def _parquet(table: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False, compression="zstd", compression_level=12)
    return buffer.getvalue()

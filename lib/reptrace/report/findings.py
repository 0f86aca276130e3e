"""What the report found: all claims of the paper with the verdicts of the pages, as the book and README show them.

`collect` reads the verdicts of executed pages and refuses what does not fit the claims. `write` puts them into the
book's source, `track` into the tracked table and README; the words are those of `findings_words`.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from reptrace.records.store import write_atomically
from reptrace.report.executing import Page
from reptrace.report.findings_words import FIGURE, UNDECIDED, opening, page, readme
from reptrace.report.verdicts import claims, of_page
from reptrace.support.marked import filled

NAME = "verdicts.csv"
TABLE = re.compile(r"data/(?:results|published)/[\w/*-]+\.(?:csv|parquet)")  # also several, by *
MADE = ["code", "packages", "python", "machine"]
COLUMNS = ["claim", "verdict", "here", "quantity", "value", "low", "high", "runs", "of", "scale", "page", "notebook",
           "parameters", *MADE]


def collect(pages: Sequence[Page], parameters: str) -> pd.DataFrame:
    """The verdicts of executed pages, a row each (`COLUMNS`), in the order of claims.

    `parameters`: name of the parameters file. Raises ValueError, with all that is wrong in one message: a page that is
    older than what it was made from, or concludes nothing; a claim that its page does not decide, or that another page
    decides, or none is to.
    """
    if stale := [page.name for page in pages if not page.done]:
        raise ValueError(f"{', '.join(stale)}: changed since it was executed, or not executed yet. Make it again.")
    concluded = {page.name: of_page(page.target) for page in pages}
    faults = [f"{name} has no answer: it must end with verdicts.conclude(...)."
              for name, each in concluded.items() if each is None]
    stated = {name: each.verdicts if each else () for name, each in concluded.items()}
    faults += _misplaced({name: [each.claim for each in those] for name, those in stated.items()})
    if faults:
        raise ValueError("\n".join(faults))
    rows = [vars(verdict) | concluded[page.name].made | {
        "page": page.name, "notebook": source_hash(page.notebook), "parameters": parameters}
        for page in pages for verdict in stated[page.name]]
    table = pd.DataFrame(rows, columns=COLUMNS)
    number = ["value", "low", "high"]
    table[number] = table[number].astype(float).map(lambda each: float(f"{each:.6g}"))  # below that machines differ
    return table.sort_values("claim", key=lambda ids: ids.map(list(claims().id).index), ignore_index=True)


def _misplaced(stated: dict[str, list[str]]) -> list[str]:
    """What does not fit between the claims that pages decide, by page, and the pages that claims name."""
    faults = []
    for row in claims().itertuples():
        here = [name for name, those in stated.items() if row.id in those]
        faults += [f"{row.id}: {name} decides it, but data/published/claims.csv says "
                   f"{'that nothing does' if row.undecided else row.page}." for name in here if name != row.page]
        if row.page in stated and row.page not in here:
            faults.append(f"{row.id}: its page, {row.page}, states no verdict.")
    return faults


def source_hash(notebook: Path) -> str:
    """Of what a notebook says and does: the kinds and sources of its cells, and the tables in data/ that they name."""
    cells = json.loads(notebook.read_text())["cells"]
    said = json.dumps([[cell["cell_type"], "".join(cell["source"])] for cell in cells])
    digest = hashlib.sha256(said.encode())
    for name in sorted(set(TABLE.findall(said))):
        tables = sorted(notebook.parents[1].glob(name))
        if not tables:
            raise FileNotFoundError(f"{notebook.name} names {name}, which is not there.")
        for table in tables:
            digest.update(table.read_bytes())
    return digest.hexdigest()[:16]


def joined(verdicts: pd.DataFrame) -> pd.DataFrame:
    """A row a claim: what data/published/claims.csv says of it, and its verdict; `UNDECIDED` where there is none."""
    both = claims().rename(columns={"claim": "said"}).drop(columns="page").merge(
        verdicts.rename(columns={"claim": "id"}), on="id", how="left", validate="one_to_one")
    missing = both.verdict.isna()
    both.loc[missing & both.undecided.eq(""), "undecided"] = "its page is not in this book"
    both.loc[missing, "verdict"] = UNDECIDED
    return both


# The book


def write(source: Path, index: str, verdicts: pd.DataFrame, picture: bytes | None) -> None:
    """Put what was found into the book's source: Findings, its table, the figure, and the opening page from `index`.

    Files that say the same already are left alone, so that Sphinx need not read them again.
    """
    found = joined(verdicts)
    _keep(source / "index.md", filled(index, {"findings": opening(found, picture is not None)}).encode())
    _keep(source / "findings.md", page(found).encode())
    _keep(source / "findings.csv", found.to_csv(index=False).encode())
    if picture is not None:
        _keep(source / FIGURE, picture)


def _keep(path: Path, content: bytes) -> None:
    """Write a file unless it holds that already."""
    if not path.exists() or path.read_bytes() != content:
        write_atomically(path, content)


# What is tracked


def track(verdicts: pd.DataFrame, picture: bytes, root: Path) -> None:
    """Write the tracked table of verdicts, the opening page's figure, and README's lines from them.

    A verdict that is what it was keeps its row, with what made it then: nothing changes where nothing was found anew.
    """
    file = root / "data/results" / NAME
    _keep(file, unchanged(verdicts, read(file)).to_csv(index=False).encode())
    _keep(root / "book" / FIGURE, picture)
    _keep(root / "README.md", rewritten((root / "README.md").read_text(), read(file)).encode())


def read(file: Path) -> pd.DataFrame:
    """The tracked verdicts; no rows where there are none yet."""
    return pd.read_csv(file) if file.exists() else pd.DataFrame(columns=COLUMNS)


def unchanged(new: pd.DataFrame, known: pd.DataFrame) -> pd.DataFrame:
    """The new rows, those that differ from a known one in what made them alone as they were known."""
    compared = [name for name in COLUMNS if name not in MADE]
    new, known = (pd.read_csv(io.StringIO(each.to_csv(index=False)), dtype=str) for each in (new, known))
    old = {tuple(row[compared].fillna("")): row for _, row in known.iterrows()}
    return pd.DataFrame([old.get(tuple(row[compared].fillna("")), row) for _, row in new.iterrows()], columns=COLUMNS)


def rewritten(text: str, verdicts: pd.DataFrame) -> str:
    """README with its part on what was found as these verdicts have it."""
    return filled(text, {"findings": readme(joined(verdicts))})

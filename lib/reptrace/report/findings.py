"""What the report found: all claims of the paper with the verdicts of the pages, as the book and README show them.

`collect` reads the verdicts of executed pages and refuses what does not fit the claims; the rest writes it out: the
book's page Findings with its table to download, the summary of its opening page and of README, and the tracked table.
"""

from __future__ import annotations

import hashlib
import html
import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from reptrace.checkpoints import published
from reptrace.records.store import write_atomically
from reptrace.report.executing import Page
from reptrace.report.profiles import span
from reptrace.report.verdicts import MARKS, NOT, OPEN, PARTLY, REPRODUCED, claims, of_page
from reptrace.support.marked import filled, plain

NAME = "verdicts.csv"
TELLING = ("fig02-expansion", "fig02-compression", "fig03-memorization", "fig04-causes")
UNDECIDED = "not decided yet"
MARK = {**MARKS, UNDECIDED: "…"}
FIGURE = "images/phases.svg"
CAPTION = ("RankMe, the effective number of directions, by training tokens, a curve a model. Lines and tints show the "
           "phases as detected; a tint is as strong as many models are in that phase.")
WIDE = "---\nhtml_theme.sidebar_secondary.remove: true\n---\n\n"  # the table takes the room of the list of headings
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
    """Of what a notebook says and does: the kinds and sources of its cells."""
    cells = json.loads(notebook.read_text())["cells"]
    said = json.dumps([[cell["cell_type"], "".join(cell["source"])] for cell in cells])
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def joined(verdicts: pd.DataFrame) -> pd.DataFrame:
    """A row a claim: what data/published/claims.csv says of it, and its verdict; `UNDECIDED` where there is none."""
    both = claims().rename(columns={"claim": "said"}).drop(columns="page").merge(
        verdicts.rename(columns={"claim": "id"}), on="id", how="left", validate="one_to_one")
    missing = both.verdict.isna()
    both.loc[missing & both.undecided.eq(""), "undecided"] = "its page is not in this book"
    both.loc[missing, "verdict"] = UNDECIDED
    return both


# The summary, of the opening page and of README


def models(found: pd.DataFrame) -> str:
    """How big the models are, here and in the paper: Markdown, in one line."""
    theirs = span([*published.landmarks().parameters.dropna()])
    ours = [row.scale for row in telling(found)]
    return f"**Models:** {ours[0] if ours else 'none'}. The paper's have {theirs} weights."


def telling(found: pd.DataFrame) -> list:
    """The rows of `TELLING` that are decided, in that order."""
    rows = {row.id: row for row in found.itertuples() if row.verdict != UNDECIDED}
    return [rows[claim] for claim in TELLING if claim in rows]


def results(found: pd.DataFrame, link: Callable[[str, str], str]) -> str:
    """The most telling results with their numbers, a Markdown list; `link(words, id)` is a link to a claim."""
    return "\n".join(f"- {MARK[row.verdict]} **{row.verdict[0].upper()}{row.verdict[1:]}:** {link(row.said, row.id)}. "
                     + plain(f"{_sentence(row.here)}{'' if pd.isna(row.value) else f' ({evidence(row)}.)'}")
                     for row in telling(found))


def counted(found: pd.DataFrame) -> str:
    """How many claims have each verdict, in words."""
    many = found.verdict.value_counts()
    phrases = {REPRODUCED: "reproduced", PARTLY: "reproduced in part", NOT: "not reproduced",
               OPEN: "cannot be told here", UNDECIDED: "not decided yet"}
    return ", ".join(f"{MARK[verdict]} {many[verdict]} {words}" for verdict, words in phrases.items()
                     if verdict in many)


def evidence(row) -> str:
    """The number that decided, with its interval."""
    interval = f" ({_number(row.low)} to {_number(row.high)})" if row.low < row.high else ""
    return f"{row.quantity[0].upper()}{row.quantity[1:]}: {_number(row.value)}{interval}"


def without_page() -> str:
    """Which figures of the paper no page here is about."""
    figure = claims()["where"].str.extract(r"Fig (\d+)")[0]
    missing = sorted(int(number) for number, pages in claims().page.groupby(figure) if not any(pages))
    return f"**No page yet about:** Fig {', '.join(map(str, missing)) or 'none'}."


def alt(found: pd.DataFrame) -> str:
    """What the figure shows, from the verdicts on the three phases."""
    known = found.set_index("id")
    parts = [(words, known.loc[f"fig02-{phase}"]) for phase, words in (
        ("collapse", "falls early"), ("expansion", "then grows"), ("compression", "then falls again"))]
    seen = [f"{words} (in {row.runs:,.0f} of {row.of:,.0f} runs)" for words, row in parts if row.verdict != UNDECIDED]
    return "RankMe by training tokens" + (f": it {', '.join(seen)}" if seen else "")


def _sentence(words: str) -> str:
    return words.rstrip(".") + "."


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


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


def opening(found: pd.DataFrame, picture: bool) -> str:
    """What the opening page says was found: beside one another on a wide screen, the results and the figure."""
    shown = results(found, lambda words, claim: f'<a href="findings.html#{claim}">{html.escape(words)}</a>')
    figure = f":::{{figure}} {FIGURE}\n:alt: {alt(found)}\n:class: phases\n{CAPTION}\n:::" if picture else ""
    return f"""
{models(found)}\\
**Of {len(found)} claims of the paper:** {counted(found)}.\\
{without_page()}

:::::{{div}} found
::::{{div}} results
{shown}
::::
::::{{div}} picture
{figure}
::::
:::::

"""


def page(found: pd.DataFrame) -> str:
    """The page Findings, in Markdown around one HTML table, a row a claim with its id as address."""
    head = "".join(f'<th scope="col">{name}</th>' for name in ("claim", "published", "here", "verdict", "where"))
    rows = "\n".join(_row(row) for row in found.itertuples())
    return f"""{WIDE}# Findings

:::{{div}} answer
Of {len(found)} claims of the paper, {counted(found)}.
:::

A claim is **reproduced** where every run shows it beyond its uncertainty (of the toy model's starts: a majority, or
the share that the claim needs), **not reproduced** where none does, and **partly** where some do, or a part of what
it says. Fewer than three runs, or an interval on both sides of the threshold, leave it open: it **cannot be told
here**. What is *not decided yet* says why. A claim's id links to its own row.

{{download}}`All of this as a table (CSV) <findings.csv>`, with thresholds, scales and what made each verdict.

<table class="findings">
<caption>The paper's claims, in its order</caption>
<thead><tr>{head}</tr></thead>
<tbody>
{rows}
</tbody>
</table>
"""


def _row(row) -> str:
    said = html.escape
    if row.verdict == UNDECIDED:
        here, where = f'<td data-label="here" class="reason">{said(row.undecided)}</td>', '<td class="none"></td>'
    else:
        basis = [f"Decided by {row.decided_by}: {row.threshold}", f"{row.runs:,.0f} of {row.of:,.0f} runs show it",
                 *([] if pd.isna(row.value) else [evidence(row)]), row.scale]
        here = (f'<td data-label="here">{said(_sentence(row.here))}<details><summary>how decided</summary>'
                f'{said(" ".join(map(_sentence, basis)))}</details></td>')
        words = row.page.replace("_", " ")
        where = f'<td data-label="where"><a href="notebooks/{row.page}.html#{row.id}">{words}</a></td>'
    theirs = f'<td data-label="published">{said(row.published)}</td>' if row.published else '<td class="none"></td>'
    kind = re.sub(r"\W+", "-", row.verdict)
    return (f'<tr id="{row.id}"><th scope="row"><a href="#{row.id}">{row.id}</a> <small>{said(row.where)}</small><br>'
            f'{said(row.said)}</th>{theirs}{here}<td data-label="verdict" class="verdict {kind}">'
            f'<span aria-hidden="true">{MARK[row.verdict]}</span> {row.verdict}</td>{where}</tr>')


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
    pages = dict(zip(verdicts.claim, verdicts.page, strict=True))
    found = joined(verdicts)
    lines = [f"**Of {len(found)} claims of the paper:** {counted(found)}. {without_page()}", models(found),
             f"![{alt(found)}](book/{FIGURE})", CAPTION,
             results(found, lambda words, claim: f"[{plain(words)}](notebooks/{pages[claim]}.ipynb)")]
    return filled(text, {"findings": "\n" + "\n\n".join(lines) + "\n"})

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

from reptrace.records.store import write_atomically
from reptrace.report.executing import Page
from reptrace.report.verdicts import MARKS, NOT, OPEN, PARTLY, REPRODUCED, claims, of_page
from reptrace.support.marked import filled

NAME = "verdicts.csv"
TELLING = ("fig02-compression", "fig02-expansion", "fig03-memorization", "fig04-causes")  # first what matters most
UNDECIDED = "not decided yet"
MARK = {**MARKS, UNDECIDED: "…"}
FIGURE = "images/phases.svg"
CAPTION = ("RankMe, the effective number of directions, by training tokens: a curve a model, dark for the larger ones. "
           "Dotted, solid and dashed, and the grey, green and red behind them, are the three phases as detected; a "
           "tint is as strong as many models are in that phase.")
MADE = ["code", "packages", "python", "machine"]
COLUMNS = ["claim", "verdict", "here", "quantity", "value", "low", "high", "runs", "of", "scale", "page", "title",
           "notebook", "parameters", *MADE]


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
        "page": page.name, "title": _title(page.notebook), "notebook": source_hash(page.notebook),
        "parameters": parameters} for page in pages for verdict in stated[page.name]]
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


def _title(notebook: Path) -> str:
    first = "".join(json.loads(notebook.read_text())["cells"][0]["source"])
    return first.partition("\n")[0].removeprefix("# ")


def joined(verdicts: pd.DataFrame) -> pd.DataFrame:
    """A row a claim: what data/published/claims.csv says of it, and its verdict; `UNDECIDED` where there is none."""
    both = claims().rename(columns={"claim": "said"}).drop(columns="page").merge(
        verdicts.rename(columns={"claim": "id"}), on="id", how="left", validate="one_to_one")
    missing = both.verdict.isna()
    both.loc[missing & both.undecided.eq(""), "undecided"] = "its page is not in this book"
    both.loc[missing, "verdict"] = UNDECIDED
    return both


# The summary, of the opening page and of README


def summary(found: pd.DataFrame, link: Callable[[str, str], str], picture: Callable[[str], str]) -> str:
    """Markdown: models, how many claims hold, the most telling results, the figure, what has no page.

    `found`: as `joined` makes it. `link(words, id)`: a link to a claim; `picture(alt)`: the figure.
    """
    known = found.set_index("id")
    telling = [row for row in (known.loc[claim] for claim in TELLING) if row.verdict != UNDECIDED]
    models = f"**Models:** {telling[0].scale}.\n\n" if telling else ""
    results = "\n".join(f"- {MARK[row.verdict]} **{row.verdict[0].upper()}{row.verdict[1:]}:** "
                        f"{link(row.said, row.name)}. {evidence(row)}" for row in telling)
    return f"""
{models}**Of {len(found)} claims of the paper** {counted(found)}.

{picture(alt(known))}
{results}

{without_page()}
"""


def counted(found: pd.DataFrame) -> str:
    """How many claims have each verdict, in words."""
    many = found.verdict.value_counts()
    phrases = {REPRODUCED: "reproduced", PARTLY: "reproduced in part", NOT: "not reproduced",
               OPEN: "cannot be told here", UNDECIDED: "not decided yet"}
    return ", ".join(f"{MARK[verdict]} {many[verdict]} {words}" for verdict, words in phrases.items()
                     if verdict in many)


def evidence(row) -> str:
    """The number that decided, its interval and how many runs show the effect; the sentence where there is none."""
    if pd.isna(row.value):
        return row.here
    interval = f" ({_number(row.low)} to {_number(row.high)})" if row.low < row.high else ""
    return (f"{row.quantity[0].upper()}{row.quantity[1:]}: {_number(row.value)}{interval}; "
            f"{row.runs:,.0f} of {row.of:,.0f} runs.")


def without_page() -> str:
    """Which figures of the paper no page here is about."""
    figure = claims()["where"].str.extract(r"Fig (\d+)")[0]
    missing = sorted(int(number) for number, pages in claims().page.groupby(figure) if not any(pages))
    return f"**No page yet:** Fig {', '.join(map(str, missing))}." if missing else ""


def alt(known: pd.DataFrame) -> str:
    """What the figure shows, from the verdicts on the three phases."""
    parts = [(words, known.loc[f"fig02-{phase}"]) for phase, words in (
        ("collapse", "falls early"), ("expansion", "then grows"), ("compression", "then falls again"))]
    seen = [f"{words} (in {row.runs:,.0f} of {row.of:,.0f} runs)" for words, row in parts if row.verdict != UNDECIDED]
    return "RankMe by training tokens" + (f": it {', '.join(seen)}" if seen else "")


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


# The book


def write(source: Path, index: str, verdicts: pd.DataFrame, picture: bytes | None) -> None:
    """Put what was found into the book's source: Findings, its table, the figure, and the opening page from `index`.

    Files that say the same already are left alone, so that Sphinx need not read them again.
    """
    found = joined(verdicts)
    shown = "" if picture is None else "\n:::{{figure}} {figure}\n:alt: {alt}\n:class: phases\n{caption}\n:::\n"
    lines = summary(found, lambda words, claim: f'<a href="findings.html#{claim}">{html.escape(words)}</a>',
                    lambda alt: shown.format(figure=FIGURE, alt=alt, caption=CAPTION))
    _keep(source / "index.md", filled(index, {"findings": lines}).encode())
    _keep(source / "findings.md", page(found).encode())
    _keep(source / "findings.csv", found.to_csv(index=False).encode())
    if picture is not None:
        _keep(source / FIGURE, picture)


def page(found: pd.DataFrame) -> str:
    """The page Findings, in Markdown around one HTML table, a row a claim with its id as address."""
    head = "".join(f'<th scope="col">{name}</th>' for name in ("claim", "published", "here", "verdict", "where"))
    rows = "\n".join(_row(row) for row in found.itertuples())
    return f"""# Findings

:::{{div}} answer
Of {len(found)} claims of the paper, {counted(found)}.
:::

A claim is **reproduced** where every run shows it beyond its uncertainty (of the toy model's starts: a majority, or
the share that the claim needs), **not reproduced** where none does, and **partly** where some do, or a part of what
it says. Fewer than three runs, or an interval on both sides of the threshold, leave it open: it **cannot be told
here**. What is *not decided yet* says why. A claim's id, to the left, is its address.

{{download}}`All of this as a table (CSV) <findings.csv>`, with thresholds, scales and what made each verdict.

<table class="findings">
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
        sentence = said(row.here) + ("" if pd.isna(row.value) else f" <small>{said(evidence(row))}</small>")
        here = (f'<td data-label="here">{sentence}<small>Decided by {said(row.decided_by)}: {said(row.threshold)}. '
                f'{said(row.scale)}.</small></td>')
        where = (f'<td data-label="where"><a href="notebooks/{row.page}.html#{row.id}">{said(row.title)}</a></td>')
    published = f'<td data-label="published">{said(row.published)}</td>' if row.published else '<td class="none"></td>'
    kind = re.sub(r"\W+", "-", row.verdict)
    return (f'<tr id="{row.id}"><th scope="row"><a href="#{row.id}">{row.id}</a> <small>{said(row.where)}</small><br>'
            f'{said(row.said)}</th>{published}{here}<td data-label="verdict" class="verdict {kind}">'
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
    lines = summary(joined(verdicts), lambda words, claim: f"[{words}](notebooks/{pages[claim]}.ipynb)",
                    lambda alt: f"![{alt}](book/{FIGURE})\n\n{CAPTION}\n")
    return filled(text, {"findings": lines})

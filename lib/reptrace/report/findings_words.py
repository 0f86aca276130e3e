"""What the report found, in words: the summary of the opening page and of README, and the page Findings.

`found` is everywhere the table that `findings.joined` makes, a row a claim.
"""

from __future__ import annotations

import html
from collections.abc import Callable

import pandas as pd

from reptrace.checkpoints import published
from reptrace.report.profiles import span
from reptrace.report.verdicts import MARKS, NOT, OPEN, PARTLY, REPRODUCED, claims
from reptrace.support.marked import plain

TELLING = ("fig02-expansion", "fig02-compression", "fig03-memorization", "fig04-causes")  # the most telling results
UNDECIDED = "not decided yet"
MARK = {**MARKS, UNDECIDED: "…"}
FIGURE = "images/phases.svg"
CAPTION = ("RankMe, the effective number of directions, by training tokens, a curve a model. Lines and tints show the "
           "phases as detected; a tint is as strong as many models are in that phase.")
WIDE = "---\nhtml_theme.sidebar_secondary.remove: true\n---\n\n"  # the table takes the room of the list of headings


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


def readme(found: pd.DataFrame) -> str:
    """What README says was found."""
    pages = dict(zip(found.id, found.page, strict=True))
    lines = [f"**Of {len(found)} claims of the paper:** {counted(found)}. {without_page()}", models(found),
             f"![{alt(found)}](book/{FIGURE})", CAPTION,
             results(found, lambda words, claim: f"[{plain(words)}](notebooks/{pages[claim]}.ipynb)")]
    return "\n" + "\n\n".join(lines) + "\n"


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
    return "\n".join(f"- {MARK[row.verdict]} **{row.verdict.capitalize()}:** {link(row.said, row.id)}. "
                     + plain(f"{_sentence(row.here)}{'' if pd.isna(row.value) else f' ({_sentence(evidence(row))})'}")
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
    return f"{row.quantity}: {_number(row.value)}{interval}"


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
    seen = [f"{words} (in {_many(row)})"
            for words, row in parts if row.verdict != UNDECIDED]
    return "RankMe by training tokens" + (f": it {', '.join(seen)}" if seen else "")


def _many(row) -> str:
    """How many runs show a claim; where none shows all of it, and yet a part holds, that."""
    return "part" if row.verdict == PARTLY and not row.runs else f"{row.runs:,.0f} of {row.of:,.0f} runs"


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
    return (f'<tr id="{row.id}"><th scope="row"><a href="#{row.id}">{row.id}</a> <small>{said(row.where)}</small><br>'
            f'{said(row.said)}</th>{theirs}{here}<td data-label="verdict" class="verdict">'
            f'<span aria-hidden="true">{MARK[row.verdict]}</span> {row.verdict}</td>{where}</tr>')


def _sentence(words: str) -> str:
    """With its first letter large, unless that is a symbol (α), and one full stop."""
    return (words[:1].upper() if words[:1].isascii() else words[:1]) + words[1:].rstrip(".") + "."


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"

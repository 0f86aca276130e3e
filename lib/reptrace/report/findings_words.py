"""What the report found, in words: the summary of the opening page and of README, and the page Findings.

`found` is everywhere the table that `findings.joined` makes, a row a claim.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable

import pandas as pd
import yaml

from reptrace.checkpoints import published
from reptrace.report.profiles import ROOT, span
from reptrace.report.verdicts import MARKS, NOT, OPEN, PARTLY, REPRODUCED, of_parts
from reptrace.support.marked import plain

# The most telling results, and what each claims, short: the claims' own words stand in Findings. Where the number that
# decided is a mean over runs, the first sentence of the verdict says of what.
TELLING = {"fig02-collapse": "the vectors first collapse onto fewer directions",
           "fig02-expansion": "they spread out again, to two or three times as many",
           "fig02-compression": "then they gather on the leading directions",
           "fig03-memorization": "memorization peaks while they spread",
           "fig04-causes": "in a toy model, three causes suffice"}
UNDECIDED = "not decided yet"
MARK = {**MARKS, UNDECIDED: "…"}
CAUSES = "skewed class counts, too few dimensions and cross-entropy"
# The questions of the opening page: which claims answer each, in short, and the answer by what came of them.
QUESTIONS = (
    ({"fig02-collapse": "collapse", "fig02-expansion": "spreading", "fig02-compression": "gathering"},
     {REPRODUCED: "small models do so, too", PARTLY: "small models do so in part", NOT: "small models do not",
      OPEN: "whether small models do so can't be told here", UNDECIDED: "whether small models do so is not decided"}),
    ({"fig03-memorization": "memorization peaks while they spread",
      "fig03-sciq": "short context learnt throughout", "fig03-triviaqa": "long context late"},
     {REPRODUCED: "what they learn follows the paper",
      PARTLY: "what they learn follows the paper in part",
      NOT: "what they learn does not follow the paper",
      OPEN: "whether what they learn follows the paper can't be told here",
      UNDECIDED: "what they learn is not decided"}),
    ({"fig05-stages": "SFT, DPO, RLVR", "fig14-robustness": "tuning becomes fragile"},
     {REPRODUCED: "after pretraining they follow it, too", PARTLY: "after pretraining they follow it in part",
      NOT: "after pretraining they do not follow it",
      OPEN: "whether they follow it after pretraining can't be told here",
      UNDECIDED: "what comes after pretraining is not decided"}),
    ({"fig04-causes": "sufficient", "fig12-uniform": "skew needed",
      "fig12-no-bottleneck": "few dimensions needed", "fig13-squared-error": "cross-entropy needed"},
     {REPRODUCED: f"in a toy model its causes are the paper's, {CAUSES}",
      PARTLY: f"in a toy model its causes are in part the paper's, {CAUSES}",
      NOT: f"in a toy model its causes are not the paper's, {CAUSES}",
      OPEN: f"whether its causes are the paper's, {CAUSES}, can't be told here",
      UNDECIDED: "its causes are not decided"}))
RULES = {REPRODUCED: "every run shows it beyond its uncertainty", PARTLY: "some runs do, or a part of it holds",
         NOT: "every run, or their mean, surely shows the opposite",
         OPEN: "tested, without a clear result", UNDECIDED: "no page tests it"}
SPANS = "“2 to 3” is a range over runs or settings; in brackets right after a number stands its 95 % interval."
MEAN = ", mean over runs"  # ends the quantity that is one
PARAMETERS = ROOT / "notebooks/params"
FIGURE = "images/phases.svg"
CAPTION = ("RankMe (directions in use, of as many as a model's width), a curve for each model. Line and tint show the "
           "phase detected: the more models, the stronger.")
WIDE = "---\nhtml_theme.sidebar_secondary.remove: true\n---\n\n"  # the table takes the room of the list of headings


def opening(found: pd.DataFrame, picture: bool) -> str:
    """What the opening page says was found: the answer, and beside one another the results and the figure."""
    shown = results(found, lambda words, claim: f'<a href="findings.html#{claim}">{html.escape(words)}</a>')
    figure = f":::{{figure}} {FIGURE}\n:alt: {alt(found)}\n:class: phases\n{CAPTION}\n:::" if picture else ""
    return f"""
:::{{div}} marks
{marks()}
:::

{answer(found)}

:::::{{div}} found
::::{{div}} results
{shown}
::::
::::{{div}} picture
{figure}

:::{{div}} foot
{models(found)}
:::
::::
:::::

:::{{div}} foot
{counted(found)} [](findings.md) has all claims. {SPANS}
:::

"""


def page(found: pd.DataFrame) -> str:
    """The page Findings, in Markdown around one HTML table, a row a claim with its id as address."""
    head = "".join(f'<th scope="col">{name}</th>' for name in ("claim", "published", "here", "verdict", "where"))
    rows = "\n".join(_row(row) for row in found.itertuples())
    return f"""{WIDE}# Findings

:::{{div}} answer
{counted(found)}
:::

{marks()} Fewer than three runs, or an interval on both sides of the threshold, give no clear result; what no page
tests says why in its row. Of the toy model's starts, the share decides that the row's threshold names.

{SPANS} A mean over runs counts each run once, also where some differ in the seed alone: a size with three seeds weighs
three times as much as one with one. A claim's id links to its own row.

{{download}}`All of this as a table (CSV) <findings.csv>`, with thresholds, scales and what made each verdict.

<table class="findings">
<caption>The paper's claims, in its order, and last our own tests of them and of others' claims</caption>
<thead><tr>{head}</tr></thead>
<tbody>
{rows}
</tbody>
</table>
"""


def readme(found: pd.DataFrame) -> str:
    """What README says was found: the opening page's words."""
    pages = dict(zip(found.id, found.page, strict=True))
    lines = [marks(), answer(found), f"![{alt(found)}](book/{FIGURE})", CAPTION,
             results(found, lambda words, claim: f"[{plain(words)}](notebooks/{pages[claim]}.ipynb)"),
             counted(found), SPANS, models(found)]
    return "\n" + "\n\n".join(lines) + "\n"


def answer(found: pd.DataFrame) -> str:
    """The questions of the opening page, answered in a sentence from the verdicts."""
    verdict = dict(zip(found.id, found.verdict, strict=True))
    parts = []
    for claimed, words in QUESTIONS:
        decided = {claim: verdict[claim] for claim in claimed if verdict.get(claim, UNDECIDED) != UNDECIDED}
        each = "; ".join(f"{mark} {said}: {', '.join(those)}" for said, mark in MARKS.items()
                         if (those := [claimed[claim] for claim in decided if decided[claim] == said]))
        parts.append(words[of_parts(decided.values()) if decided else UNDECIDED] + (f" ({each})" if each else ""))
    return f"**In short:** {'. '.join(part[0].upper() + part[1:] for part in parts)}."


def marks() -> str:
    """What each mark says, in a line."""
    return "; ".join(f"{mark} **{verdict}:** {RULES[verdict]}" for verdict, mark in MARK.items()) + "."


def models(found: pd.DataFrame) -> str:
    """How big the models are, here and in the paper, and whether published ones were traced: Markdown, in one line."""
    theirs = span([*published.landmarks().parameters.dropna()])
    ours = [row.scale for row in telling(found)]
    others = " None of those was traced here; values shown of them are others'." if _trained(found) else ""
    return f"**Models:** {ours[0] if ours else 'none'}. Those of the paper's Fig 2: {theirs} weights.{others}"


def _trained(found: pd.DataFrame) -> bool:
    """Whether all models are known to be trained here: by parameters that come with the project and name no suites."""
    files = [PARAMETERS / name for name in found.parameters.dropna().unique()]
    return bool(files) and all(file.exists() and not yaml.safe_load(file.read_text()).get("suites") for file in files)


def telling(found: pd.DataFrame) -> list:
    """The rows of `TELLING` that are decided, in that order."""
    rows = {row.id: row for row in found.itertuples() if row.verdict != UNDECIDED}
    return [rows[claim] for claim in TELLING if claim in rows]


def results(found: pd.DataFrame, link: Callable[[str, str], str]) -> str:
    """The most telling results: the first sentence of each, its number with the interval, and the last sentence.

    `link(words, id)` is a link to a claim.
    """
    return "\n".join(f"- {MARK[row.verdict]} **{row.verdict.capitalize()}:** {link(TELLING[row.id], row.id)}. "
                     + plain(_ends(_sentence(row.here), number(row))) for row in telling(found))


def number(row) -> str:
    """The number that decided, in a short sentence, where it has an interval; the verdict's words say of what it is."""
    if not row.low < row.high:
        return ""
    if row.quantity.startswith("share of "):
        value, low, high = (_number(100 * share) for share in (row.value, row.low, row.high))
        return f"The share that decides: {value} % ({low} to {high})."
    if row.quantity.endswith(MEAN):
        unit = " %" if "(%)" in row.quantity else ""
        return f"Mean over runs: {_number(row.value)}{unit} ({_number(row.low)} to {_number(row.high)})."
    return _sentence(evidence(row))


def counted(found: pd.DataFrame) -> str:
    """How many claims have each verdict: the paper's by what they are about, and apart from them our own tests."""
    ours, theory = (found["where"].str.contains(words) for words in ("our test", r"Theorem|Fig (?:4|12|13)\b"))
    done = found.verdict != UNDECIDED
    kinds = (("about language models", done & ~ours & ~theory), ("about its toy model and theorems", done & theory))
    said = [f"{kept.sum()} {words} ({_places(found[kept])}): {_counts(found[kept])}"
            for words, kept in kinds if kept.any()]
    if left := (~done & ~ours).sum():
        said.append(f"{left} {UNDECIDED}")
    claimed = f"**Of {(~ours).sum()} claims of the paper,** {'; '.join(said)}."
    more = "none gave a clear result" if (found.verdict[ours] == OPEN).all() else _counts(found[ours])
    many = f"{ours.sum()} further test{'' if ours.sum() == 1 else 's'} of our own"
    return claimed + (f" **{many}:** {more}." if ours.any() else "")


def _counts(found: pd.DataFrame) -> str:
    """"✓ 3, ◐ 1": how many have each verdict."""
    many = found.verdict.value_counts()
    return ", ".join(f"{mark} {many[verdict]}" for verdict, mark in MARK.items() if verdict in many)


def _places(found: pd.DataFrame) -> str:
    """Where in the paper claims stand, "Fig 2, 3, Tab 7 to 9"."""
    places = found["where"].str.extractall(r"(Fig|Tab|Theorem) (\d+)").drop_duplicates()
    return ", ".join(f"{kind} {_numbers(sorted(each[1].astype(int)))}" for kind, each in places.groupby(0, sort=False))


def _numbers(several: list[int]) -> str:
    """"5, 7 to 9": increasing numbers, three or more that follow one another by their ends."""
    runs = [[several[0]]]
    for number in several[1:]:
        runs[-1].append(number) if number == runs[-1][-1] + 1 else runs.append([number])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def evidence(row) -> str:
    """The number that decided, with its 95 % interval; of a theorem, with the range of 95 % of the starts."""
    if row.low < row.high:
        span_of = "95 % of the starts" if row.where.startswith("Theorem") else "95 % interval"
        return f"{row.quantity}: {_number(row.value)} ({span_of} {_number(row.low)} to {_number(row.high)})"
    everywhere = row.quantity.removesuffix(MEAN)  # one value in all of them has no interval
    return f"{everywhere}: {_number(row.value)}{' in every run' if everywhere != row.quantity else ''}"


def shown_in(row) -> str:
    """How many runs, or starts of the toy model, show a claim."""
    unit = "starts" if row.scale.startswith("toy model") else "runs"
    wholly = row.runs < row.of or row.verdict == REPRODUCED  # else each shows the effect, but not all that was asked
    return f"{row.runs:,.0f} of {row.of:,.0f} {unit} show {'it' if wholly else 'a part of it'}"


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
        basis = [f"Decided by {row.decided_by}: {row.threshold}", shown_in(row),
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


def _ends(words: str, between: str) -> str:
    """The first sentence and the last, what was seen and why the verdict is what it is, and a sentence in between."""
    sentences = re.split(r"(?<=\.) (?=[^\W\d_a-z])", words)
    return " ".join(each for each in dict.fromkeys([sentences[0], between, *sentences[1:][-1:]]) if each)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"

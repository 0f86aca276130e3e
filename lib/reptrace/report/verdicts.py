"""What a page concludes: a verdict a claim, with its evidence, and the page's answer in a sentence or two.

A notebook states them with `conclude`, in its last cell but the footer. They travel with that cell's output, so they
are written when the executed page is, whole or not at all, and are as old as the page; `of_page` reads them back, and
`findings` makes the book's page of that name from them.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

import pandas as pd

from reptrace.records.store import provenance
from reptrace.support.arguments import near

CLAIMS = Path(__file__).parents[3] / "data" / "published" / "claims.csv"
REPRODUCED, PARTLY, NOT, OPEN = VERDICTS = ("reproduced", "partly", "not reproduced", "cannot be told here")
MARKS = dict(zip(VERDICTS, "✓◐✗?", strict=True))  # beside the word, so that no colour is needed
FEWEST = 3  # runs that agree, for a verdict that is not open
MANY = 20  # from so many on they are starts of the toy model, of which a share decides; fewer are seeds: all must agree
KEY = "reptrace_conclusion"  # in the metadata of an output


@dataclass(frozen=True)
class Verdict:
    """What this report finds of one claim.

    Parameters
    ----------
    claim : id of a row of data/published/claims.csv
    verdict : one of `VERDICTS`
    here : plain sentences with the measured numbers, of which the opening page shows the first and the last: what was
        seen, and why the verdict is what it is
    quantity : what `value` is, with its unit
    value, low, high : the number that decides and its 95 % interval; nan where there is none
    runs, of : how many runs (seeds, or starts of the toy model) meet the claim's whole threshold, of how many; where
        all do and the verdict is not "reproduced", they are said to show a part of it
    scale : sizes and tokens, "GPT-NeoX of 72 to 157 thousand weights, 8 to 12 million tokens"

    Raises
    ------
    ValueError
        An unknown claim or verdict; a decision from fewer than `FEWEST` runs; "reproduced" or "not reproduced" although
        the runs disagree: of fewer than `MANY`, any that says otherwise; of more, no majority beyond chance (95 %) for
        "reproduced", or all of them for "not reproduced".
    """

    claim: str
    verdict: str
    here: str
    quantity: str
    value: float
    low: float
    high: float
    runs: int
    of: int
    scale: str

    def __post_init__(self):
        if self.claim not in set(claims().id):
            raise ValueError(f"no claim {self.claim!r} in {CLAIMS.name}.{near(self.claim, claims().id)}")
        if self.verdict not in VERDICTS:
            raise ValueError(f"a verdict is one of {', '.join(VERDICTS)}; got {self.verdict!r}")
        if not 0 <= self.runs <= self.of:
            raise ValueError(f"{self.claim}: {self.runs} runs of {self.of}")
        if self.verdict != OPEN and self.of < FEWEST:
            raise ValueError(f"{self.claim}: {self.of} run(s) decide nothing, it takes {FEWEST}: say {OPEN!r}")
        if not _allowed(self.verdict, self.runs, self.of):
            raise ValueError(f"{self.claim}: {self.verdict!r} is stronger than its runs, of which {self.runs} of "
                             f"{self.of} show the effect")
        if not math.isnan(self.value) and not -math.inf < self.low <= self.value <= self.high < math.inf:
            raise ValueError(f"{self.claim}: {self.value} does not lie in {self.low} to {self.high}, finite numbers")


def _allowed(verdict: str, runs: int, of: int) -> bool:
    """Whether the scatter between runs lets a verdict be so strong."""
    if verdict == REPRODUCED:  # Wilson's 95 % interval of the share lies above 1/2 where the score at 1/2 exceeds 1.96
        return runs == of if of < MANY else 2 * runs - of > 1.96 * math.sqrt(of)
    if verdict == NOT:
        return runs == 0 if of < MANY else runs < of
    return True


def untold(claim: str, why: str, scale: str) -> Verdict:
    """The verdict of a claim on which these runs hold no evidence at all: open, and why."""
    return Verdict(claim, OPEN, why, "", math.nan, math.nan, math.nan, 0, 0, scale)


def of_interval(low: float, high: float, threshold: float, above: bool = True) -> str:
    """The verdict of an interval that must lie above a threshold as a whole, or below it.

    On the right side it is `REPRODUCED`, on the wrong one `NOT`; across the threshold, or nan, it is open.
    """
    if low > high:
        raise ValueError(f"an interval has its lower end first; got {low} to {high}")
    if not above:
        low, high, threshold = -high, -low, -threshold
    return REPRODUCED if low > threshold else NOT if high < threshold else OPEN


def of_share(low: float, high: float, threshold: float, above: bool = True) -> str:
    """`of_interval` of a share of starts, 0 to 1: more than `threshold` of them must show the effect, or fewer."""
    if not all(0 <= each <= 1 for each in (low, high, threshold)):
        raise ValueError(f"shares lie in 0 to 1; got {low} to {high}, threshold {threshold}")
    return of_interval(low, high, threshold, above)


def of_runs(outcomes: Iterable[str]) -> str:
    """The verdict of runs that each say "yes", "no" or anything else for undecided.

    All yes is `REPRODUCED`, all no `NOT`, some of each `PARTLY`; any that are undecided, beside runs that agree, leave
    it open, and so do fewer than `FEWEST` runs.
    """
    said = list(outcomes)
    yes, no = said.count("yes"), said.count("no")
    if len(said) < FEWEST:
        return OPEN
    if yes and no:
        return PARTLY
    return REPRODUCED if yes == len(said) else NOT if no == len(said) else OPEN


def of_parts(found: Iterable[str]) -> str:
    """The verdict of a claim with several parts, or readings, from theirs.

    All alike: that one. Else `PARTLY`, where any part is reproduced, wholly or partly; else `OPEN`.
    """
    said = set(found)
    if len(said) == 1:
        return said.pop()
    return PARTLY if said & {REPRODUCED, PARTLY} else OPEN


@cache
def claims() -> pd.DataFrame:
    """The paper's claims, a row each, in its order; `undecided` says why nothing here decides one."""
    return pd.read_csv(CLAIMS, keep_default_na=False)


@dataclass(frozen=True)
class Conclusion:
    """A page's answer and its verdicts, as a notebook's cell shows them; `made`: what made them (`provenance`)."""

    answer: str
    verdicts: tuple[Verdict, ...] = ()
    made: Mapping[str, str] = field(default_factory=dict)

    def _repr_mimebundle_(self, include=None, exclude=None) -> tuple[dict, dict]:
        kept = {"answer": self.answer, "verdicts": [_plain(verdict) for verdict in self.verdicts], "made": self.made}
        return {"text/html": self._html(), "text/plain": self.answer}, {KEY: kept}

    def _html(self) -> str:
        said = claims().set_index("id").claim
        items = [f'<li id="{each.claim}"><b>{MARKS[each.verdict]} {each.verdict}</b>: {html.escape(said[each.claim])}. '
                 f'<span class="here">{html.escape(each.here)}</span></li>' for each in self.verdicts]
        return f'<ul class="verdicts">{"".join(items)}</ul>' if items else f"<p>{html.escape(self.answer)}</p>"


def conclude(answer: str, verdicts: Sequence[Verdict] = ()) -> Conclusion:
    """What a page ends with: shown there, under its title (`answer`), and on the page of findings (`verdicts`).

    `answer`: one or two sentences of plain text, its numbers computed. The order of verdicts is that of the claims.
    """
    claimed = [each.claim for each in verdicts]
    if not answer.strip():
        raise ValueError("a page's answer is a sentence or two")
    if twice := {claim for claim in claimed if claimed.count(claim) > 1}:
        raise ValueError(f"two verdicts of one claim: {', '.join(sorted(twice))}")
    order = list(claims().id)
    return Conclusion(answer, tuple(sorted(verdicts, key=lambda each: order.index(each.claim))), provenance())


def of_page(page: Path) -> Conclusion | None:
    """What an executed page concludes; None where it does not say. ValueError where it does so twice."""
    said = stated(json.loads(page.read_text())["cells"])
    if len(said) > 1:
        raise ValueError(f"{page.name} concludes {len(said)} times: a page ends with one verdicts.conclude(...).")
    for kept in said:
        rows = [{name: math.nan if each is None else each for name, each in row.items()} for row in kept["verdicts"]]
        return Conclusion(kept["answer"], tuple(Verdict(**row) for row in rows), kept["made"])
    return None


def stated(cells: Sequence[Mapping]) -> list[dict]:
    """What `conclude` left with the outputs of a notebook's cells."""
    kept = [output.get("metadata", {}).get(KEY) for cell in cells for output in cell.get("outputs", [])]
    return [each for each in kept if each]


def _plain(verdict: Verdict) -> dict:
    """Plain numbers for JSON, which has no nan."""
    row = asdict(verdict)
    numbers = {name: float(row[name]) for name in ("value", "low", "high")}
    return row | {name: None if math.isnan(each) else each for name, each in numbers.items()} | {
        name: int(row[name]) for name in ("runs", "of")}

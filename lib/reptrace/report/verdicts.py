"""What a page concludes: a verdict a claim, with its evidence, and the page's answer in a sentence or two.

A notebook states them with `conclude`, in its last cell but the footer. They travel in that cell's output, so they are
written when the executed page is, whole or not at all, and are as old as the page; `of_page` reads them back.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import pandas as pd

from reptrace.report.profiles import ROOT
from reptrace.support.arguments import near

CLAIMS = ROOT / "data/published/claims.csv"
REPRODUCED, PARTLY, NOT, OPEN = VERDICTS = ("reproduced", "partly", "not reproduced", "cannot be told here")
FEWEST = 3  # runs that agree, for a verdict that is not open
MIME = "application/vnd.reptrace.conclusion+json"


@dataclass(frozen=True)
class Verdict:
    """What this report finds of one claim.

    Parameters
    ----------
    claim : id of a row of data/published/claims.csv
    verdict : one of `VERDICTS`
    here : one plain sentence with the measured numbers
    quantity : what `value` is, with its unit
    value, low, high : the number that decides and its 95 % interval; nan where there is none
    runs, of : how many runs (seeds, or starts of the toy model) show the claimed effect, of how many
    scale : sizes and tokens, "GPT-NeoX of 72 to 157 thousand weights, 8 to 12 million tokens"

    Raises
    ------
    ValueError
        An unknown claim or verdict; a decision from fewer than `FEWEST` runs; "reproduced" or "not reproduced" although
        the runs disagree about it by more than their scatter allows (see `of_runs`, `of_share`).
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
        if not math.isnan(self.value) and not self.low <= self.value <= self.high:
            raise ValueError(f"{self.claim}: {self.value} does not lie in {self.low} to {self.high}")


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
    """A page's answer and its verdicts, as a notebook's cell shows them."""

    answer: str
    verdicts: tuple[Verdict, ...] = ()

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        kept = {"answer": self.answer, "verdicts": [asdict(verdict) for verdict in self.verdicts]}
        return {MIME: json.loads(json.dumps(kept, default=float)), "text/html": self._html(),
                "text/plain": self.answer}

    def _html(self) -> str:
        said = claims().set_index("id").claim
        items = [f'<li id="{each.claim}"><b>{each.verdict}</b>: {html.escape(said[each.claim])}. '
                 f'<span class="here">{html.escape(each.here)}</span></li>' for each in self.verdicts]
        return f'<ul class="verdicts">{"".join(items)}</ul>' if items else f"<p>{html.escape(self.answer)}</p>"


def conclude(answer: str, verdicts: Sequence[Verdict] = ()) -> Conclusion:
    """What a page ends with: shown there, under its title (`answer`), and on the page of findings (`verdicts`).

    `answer`: one or two sentences of plain text, its numbers computed. The order of verdicts is that of the claims.
    """
    order = list(claims().id)
    return Conclusion(answer, tuple(sorted(verdicts, key=lambda each: order.index(each.claim))))


def of_page(page: Path) -> Conclusion | None:
    """What an executed page concludes; None where it does not say."""
    for cell in json.loads(page.read_text())["cells"]:
        for output in cell.get("outputs", []):
            kept = output.get("data", {}).get(MIME)
            if kept:
                return Conclusion(kept["answer"], tuple(Verdict(**row) for row in kept["verdicts"]))
    return None

"""What one run says of a claim: "yes", "no" or "undecided", by an interval, and of several parts together.

What several runs say is `verdicts.of_runs`.
"""

from __future__ import annotations

from collections.abc import Iterable

YES, NO, UNDECIDED = "yes", "no", "undecided"


def side(low: float, high: float, sign: int = 1) -> str:
    """Whether a whole interval lies on the claimed side of zero: "yes", "no" (on the other) or "undecided"."""
    return YES if min(sign * low, sign * high) > 0 else NO if max(sign * low, sign * high) < 0 else UNDECIDED


def direction(low: float, high: float) -> str:
    """Which way an interval of a change goes as a whole: "rises", "falls" or "undecided"."""
    return {YES: "rises", NO: "falls"}.get(side(low, high), UNDECIDED)


def outcomes(directions: Iterable[str], claimed: str) -> list[str]:
    """Of each direction, whether it is the claimed one."""
    return [UNDECIDED if each == UNDECIDED else YES if each == claimed else NO for each in directions]


def together(said: Iterable[str]) -> str:
    """All yes: "yes"; any no: "no"; else undecided, also of nothing."""
    said = list(said)
    if said and set(said) == {YES}:
        return YES
    return NO if NO in said else UNDECIDED

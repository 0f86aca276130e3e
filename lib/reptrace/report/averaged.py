"""RankMe's last fall by two measures: of the weights as they are, and of their average over steps.

A fall is called compression where both show it: what the average does not show may be noise of single steps.
"""

from __future__ import annotations

import pandas as pd

from reptrace.measures.phases import Phases, claims, phases_of


def trajectory(raw: pd.DataFrame, averaged: pd.DataFrame) -> pd.DataFrame:
    """The averaged weights' trajectory, which begins with the checkpoints before the first average.

    Parameters
    ----------
    raw, averaged : tables with `tokens`, a row a checkpoint in order
    """
    return pd.concat([raw[raw.tokens < averaged.tokens.iloc[0]], averaged], ignore_index=True)


def averaged_phases(raw: pd.DataFrame, averaged: pd.DataFrame) -> Phases:
    """Phases of the averaged weights' trajectory; both tables have `rankme` and `rankme_stderr` too."""
    return phases_of(trajectory(raw, averaged))


def compression(raw: Phases, averaged: Phases | None) -> str:
    """Whether RankMe surely falls after its peak, by both; by the first alone where there is no average to ask."""
    return by_both(*(found and claims(found)["compression"] for found in (raw, averaged)))


def by_both(raw: str, averaged: str | None) -> str:
    """What is said of both kinds of weights from what is said of each: "yes" where both say so.

    Else what the first says where that is not "yes", or what the other says; None: there is no other.
    """
    return raw if raw != "yes" or averaged is None else averaged

"""The registry of measures: those that there are, by name, and their columns for what a sweep provides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from reptrace.measures import readings as readings  # every module that holds measures is named here
from reptrace.measures import spikes as spikes
from reptrace.measures.measure import REGISTRY
from reptrace.support.arguments import names, near

DEFAULT = ("rankme", "alpha")


def chosen(given) -> tuple[str, ...]:
    """Names of measures, checked; one counts as a list of one."""
    found = tuple(dict.fromkeys(names(given, "measures")))
    for name in found:
        if name not in REGISTRY:
            raise KeyError(f"there is no measure {name!r}.{near(name, REGISTRY)} There are {', '.join(REGISTRY)}.")
    return found


def needed(measures: Iterable[str]) -> set[str]:
    """All that these measures need."""
    return {need for name in measures for need in REGISTRY[name].needs}


def measured(measures: Iterable[str], given: Mapping) -> dict:
    """The columns of these measures; `given`: what they need, by name.

    Raises
    ------
    ValueError
        A measure returned other columns than it has.
    """
    columns: dict = {}
    for entry in map(REGISTRY.get, measures):
        found = dict(entry.function(**{need: given[need] for need in entry.needs}))
        if set(found) != set(entry.returned):
            raise ValueError(f"the measure {entry.name!r} returned {', '.join(sorted(found))}, and was to return "
                             f"{', '.join(entry.returned)}.")
        columns |= found
    return columns

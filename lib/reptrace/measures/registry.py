"""The registry of measures: those that there are, by name, and their columns for what a sweep provides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from reptrace.measures import anisotropy, cka, intrinsic_dimension, readings, readout, spikes, weights, within
from reptrace.measures.measure import OF_THE_RUN, OPERATIONS, REGISTRY
from reptrace.support.arguments import names, near

DEFAULT = ("rankme", "alpha")
# every module that holds measures, in the order of the registry
_MODULES = [each.__name__ for each in (readings, spikes, anisotropy, cka, readout, weights, within,
                                       intrinsic_dimension)]


def _place(name: str) -> int:
    """Of a measure's module; a user's own come last."""
    module = REGISTRY[name].function.__module__
    return _MODULES.index(module) if module in _MODULES else len(_MODULES)


for _name in sorted(REGISTRY, key=_place):  # whichever module was imported first
    REGISTRY[_name] = REGISTRY.pop(_name)


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


def check_sequences(measures: Iterable[str], count: int) -> None:
    """ValueError where these are fewer sequences than one of the measures can be told from."""
    for entry in map(REGISTRY.get, measures):
        if count < entry.least:
            raise ValueError(f"{entry.name} needs {entry.least} sequences at least, got {count}: measure more "
                             "(--sequences), or leave it out.")


@dataclass(frozen=True)
class Cost:
    """What measures take of a run beside the spectra, see `cost`."""

    operations: float
    passes: int
    bytes: float


def cost(measures: Iterable[str], checkpoints: int, samples: int, width: int, layers: int = 1, vocabulary: int = 0,
         blocks: int = 0) -> Cost:
    """Of so many checkpoints of one run on one probe: products and sums beside the spectrum's, forward passes beside
    one a checkpoint (the last one's, whose states the first is compared with; all others are kept as they are made),
    and bytes of states that are kept for comparisons (float32), were there no budget."""
    needs, of_run = needed(measures), not needed(measures).isdisjoint(OF_THE_RUN)
    each = layers * sum(REGISTRY[name].operations(samples, width) for name in measures)
    each += sum(OPERATIONS[need](width, vocabulary, blocks) for need in needs if need in OPERATIONS)
    return Cost(checkpoints * each, int(of_run and checkpoints > 1),
                4.0 * checkpoints * samples * width * layers * of_run)


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

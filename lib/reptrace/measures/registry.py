"""What a representation can be measured for: a registry of measures, each one function.

A measure has a name, says what it needs and which columns it returns with their standard errors; a sweep provides what
the measures that were asked for need, once for all of them. To add one, write its function below, under
`@measure(...)`; or in a module of its own, which imports `measure` from here and is therefore imported at the end of
this one (`from reptrace.measures import NAME  # noqa: E402, F401`):

    @measure(needs=["features"], columns={"mean_norm": "mean_norm_stderr"})
    def mean_norm(features):
        norms = features.norm(dim=1).double()
        return {"mean_norm": float(norms.mean()), "mean_norm_stderr": float(norms.std() / len(norms) ** 0.5)}

Its columns stand in every record from then on where it is asked for (`Settings(measures=...)`, `--measures`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from reptrace.measures.spectra import Geometry
from reptrace.support.arguments import names, near

# What a measure may need, by the name of the argument that it comes in.
NEEDS = {
    "spectrum": "`spectra.Geometry` of the layer: covariance eigenvalues (centred), with jackknife errors",
    "features": "the layer's states, tensor of shape (M, d), on the device that solves",
    "layers": "the states of all layers that are measured: layer -> tensor of shape (M, d)",
    "reference": "a reference checkpoint's states of the same sequences at the same layer, tensor of shape (M, d')",
    "unembedding": "the LM head's weights, tensor of shape (V, d), on the model's device",
}
DEFAULT = ("rankme", "alpha")


@dataclass(frozen=True)
class Measure:
    """One entry.

    Attributes
    ----------
    name : str
    needs : tuple of str, keys of NEEDS; the function's arguments
    columns : mapping of column -> the column of its standard error, or None where it has none
    function : callable, returns exactly these columns
    """

    name: str
    needs: tuple[str, ...]
    columns: Mapping[str, str | None]
    function: Callable[..., Mapping]

    @property
    def returned(self) -> tuple[str, ...]:
        """All columns, each followed by its standard error."""
        return tuple(column for pair in self.columns.items() for column in pair if column)


REGISTRY: dict[str, Measure] = {}


def measure(needs: Iterable[str], columns: Mapping[str, str | None]) -> Callable:
    """Enter a function under its own name.

    Raises
    ------
    ValueError
        It needs what is not in NEEDS, or its name or one of its columns is taken.
    """
    needs, columns = tuple(needs), dict(columns)

    def enter(function: Callable) -> Callable:
        entry = Measure(function.__name__, needs, columns, function)
        if unknown := [need for need in needs if need not in NEEDS]:
            raise ValueError(f"a measure cannot need {unknown[0]!r}: it may need {', '.join(NEEDS)}.")
        taken = {column for each in REGISTRY.values() for column in each.returned}
        if entry.name in REGISTRY or taken & set(entry.returned):
            raise ValueError(f"the name of the measure {entry.name!r}, or of one of its columns, is taken.")
        REGISTRY[entry.name] = entry
        return function

    return enter


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


@measure(needs=["spectrum"], columns={"rankme": "rankme_stderr", "largest_influence": None, "half_variance": None})
def rankme(spectrum: Geometry) -> dict:
    """Effective rank exp(entropy) of the eigenvalues, and how few sequences it may depend on, see `spectra`."""
    return {"rankme": spectrum.rankme, "rankme_stderr": spectrum.rankme_stderr,
            "largest_influence": spectrum.largest_influence, "half_variance": spectrum.half_variance}


@measure(needs=["spectrum"], columns={"alpha": "alpha_stderr", "alpha_fit_stderr": None, "alpha_r2": None,
                                      "alpha_first_rank": None, "alpha_last_rank": None})
def alpha(spectrum: Geometry) -> dict:
    """Exponent of the power law over the window of ranks, see `spectra.alpha_req`; nan where there is none."""
    fit = spectrum.alpha
    return {"alpha": fit.alpha if fit else math.nan, "alpha_stderr": spectrum.alpha_stderr,
            "alpha_fit_stderr": fit.stderr if fit else math.nan, "alpha_r2": fit.r2 if fit else math.nan,
            "alpha_first_rank": fit.ranks[0] if fit else None, "alpha_last_rank": fit.ranks[1] if fit else None}

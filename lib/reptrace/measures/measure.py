"""A measure: something that a representation can be measured for, one function.

It has a name, says what it needs and which columns it returns with their standard errors; a sweep provides what the
measures that were asked for need, once for all of them. To add one, write its function under `@measure(...)` in a
module of this wing, and name that module at the head of `registry`:

    @measure(needs=["features"], columns={"mean_norm": "mean_norm_stderr"})
    def mean_norm(features):
        norms = features.norm(dim=1).double()
        return {"mean_norm": float(norms.mean()), "mean_norm_stderr": float(norms.std() / len(norms) ** 0.5)}

Its columns then stand in every record for which it was asked (`Settings(measures=...)`, `--measures`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

# What a measure may need, by the name of the argument that it comes in. Of the run's checkpoints those are meant that
# are measured together, in the order given; where there is no previous one, that is None.
NEEDS = {
    "spectrum": "`spectra.Geometry` of the layer: covariance eigenvalues (centred), with jackknife errors",
    "features": "the layer's states, tensor of shape (M, d), on the device that solves",
    "layers": "the states of all layers that are measured: layer -> tensor of shape (M, d)",
    "reference": "a reference checkpoint's states of the same sequences at the same layer, tensor of shape (M, d')",
    "first": "as `reference`, of the run's first checkpoint",
    "last": "as `reference`, of the run's last checkpoint",
    "previous": "as `reference`, of the run's checkpoint before this one, or None",
    "unembedding": "the LM head's weights, tensor of shape (V, d), on the model's device",
    "head": "`readout.Head` of the LM head's weights, made once for all layers",
    "matrices": "`weights.Spectra` of the model's weight matrices, made once for all layers",
    "prompt_entropies": "of the layer's states of all tokens, a number a sequence, tensor (M,); see `within`",
    "curvatures": "likewise",
    "sentence_entropies": "likewise",
}
REFERENCES = ("reference", "first", "last", "previous")  # needs that are another checkpoint's states
OF_THE_RUN = REFERENCES[1:]
# Products and sums that a need takes once a checkpoint, of d, V and L blocks (the matrices of a block of width d have
# about 12 d^2 weights; symmetric eigenvalues take about 4/3 d^3, eigenvectors 9 d^3: Golub & Van Loan, section 8.3).
OPERATIONS = {"head": lambda width, vocabulary, blocks: 2.0 * vocabulary * width**2 + 9.0 * width**3,
              "matrices": lambda width, vocabulary, blocks: (2.0 * vocabulary * width**2
                                                             + blocks * (2 * 12 + 6 * 4 / 3) * width**3)}
OF_THE_HEAD = ("unembedding", "head", "matrices")  # needs for which a model is opened with its LM head


@dataclass(frozen=True)
class Measure:
    """One entry.

    Attributes
    ----------
    name : str
    needs : tuple of str, keys of NEEDS; the function's arguments
    columns : mapping of column -> the column of its standard error, or None where it has none
    function : callable, returns exactly these columns
    least : int, the fewest sequences that it can be told from
    check : callable, (what is had before the forward pass, by need; M)
        ValueError where so many sequences are too few for it: so it is told before the pass.
    operations : callable, (M, d) -> products and sums that it takes at one layer, beside the spectrum's
    """

    name: str
    needs: tuple[str, ...]
    columns: Mapping[str, str | None]
    function: Callable[..., Mapping]
    least: int = 2
    check: Callable[[Mapping, int], None] = lambda given, samples: None
    operations: Callable[[int, int], float] = lambda samples, width: 0.0

    @property
    def returned(self) -> tuple[str, ...]:
        """All columns, each followed by its standard error."""
        return tuple(column for pair in self.columns.items() for column in pair if column)


REGISTRY: dict[str, Measure] = {}


def measure(needs: Iterable[str], columns: Mapping[str, str | None], **more) -> Callable:
    """Enter a function under its own name; `more`: `least`, `check` and `operations` of `Measure`.

    Raises
    ------
    ValueError
        It needs what is not in NEEDS, or its name or one of its columns is taken.
    """
    needs, columns = tuple(needs), dict(columns)

    def enter(function: Callable) -> Callable:
        entry = Measure(function.__name__, needs, columns, function, **more)
        if unknown := [need for need in needs if need not in NEEDS]:
            raise ValueError(f"a measure cannot need {unknown[0]!r}: it may need {', '.join(NEEDS)}.")
        taken = {column for each in REGISTRY.values() for column in each.returned}
        if entry.name in REGISTRY or taken & set(entry.returned):
            raise ValueError(f"the name of the measure {entry.name!r}, or of one of its columns, is taken.")
        REGISTRY[entry.name] = entry
        return function

    return enter

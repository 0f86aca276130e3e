"""reptrace: the representation geometry of language models, traced through training.

Three lines: `import reptrace`, `found = reptrace.measure("EleutherAI/pythia-70m", texts, revision="step3000")`,
`found.rankme, found.rankme_interval, found.alpha.alpha, found.eigenvalues`.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {"measure": "sweeps.measurement", "trace": "sweeps.sweep", "GeometryCallback": "training.callback",
          "eigenspectrum": "measures.spectra", "geometry": "measures.spectra", "rankme": "measures.spectra",
          "alpha_req": "measures.spectra", "find_phases": "measures.phases", "load": "models.loading"}

__all__ = sorted(_HOMES)


def __getattr__(name: str):
    """Import on first use: torch and transformers take seconds, `python -m reptrace --help` should not."""
    if name not in _HOMES:
        raise AttributeError(f"module 'reptrace' has no attribute {name!r}; it offers {', '.join(__all__)}.")
    return getattr(import_module(f"reptrace.{_HOMES[name]}"), name)

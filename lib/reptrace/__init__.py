"""reptrace: the representation geometry of language models, traced through training.

Three lines: `import reptrace`, `found = reptrace.measure("EleutherAI/pythia-70m", texts, revision="step3000")`,
`found.rankme, found.rankme_interval, found.alpha.alpha, found.eigenvalues`.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {"measure": "measurement", "trace": "sweep", "GeometryCallback": "callback", "eigenspectrum": "spectra",
          "geometry": "spectra", "rankme": "spectra", "alpha_req": "spectra", "find_phases": "phases",
          "load": "loading"}

__all__ = sorted(_HOMES)


def __getattr__(name: str):
    """Import on first use: torch and transformers take seconds, `python -m reptrace --help` should not."""
    if name not in _HOMES:
        raise AttributeError(f"module 'reptrace' has no attribute {name!r}; it offers {', '.join(__all__)}.")
    return getattr(import_module(f"reptrace.{_HOMES[name]}"), name)

"""Measures that are read off the spectrum."""

from __future__ import annotations

import math

from reptrace.measures.measure import measure
from reptrace.measures.spectra import Geometry


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

"""What quantizing the weights of a suite's checkpoints does to their geometry, for the page on precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from reptrace.models.gguf_models import BLOCK, quantize
from reptrace.report.profiles import BATCH_SIZE, DEVICE, DTYPE, Profile
from reptrace.training.runs import Run

TYPES = {"8 bits": "Q8_0", "5 bits": "Q5_0", "4 bits": "Q4_0"}  # llama.cpp's plainest ones: a scale a block
TABLE = "quantized"
COLUMNS = ["model", "revision", "step", "tokens", "quantization", "bits_per_weight", "weight_error", "rankme",
           "rankme_stderr", "alpha", "alpha_stderr", "eigenvalues"]


def can_be_quantized(run: Run) -> bool:
    """Whether the rows of all matrices of a model are whole blocks."""
    return run.width % BLOCK == 0


def trace_quantized(profile: Profile, places: Mapping[Run, Sequence[int]]) -> dict[Run, pd.DataFrame]:
    """Geometry of some checkpoints (indices into those of their run) once their matrices are quantized.

    Columns: model, revision, step, tokens, quantization (a type of TYPES), bits_per_weight, weight_error (root mean
    square of what quantization changes in the matrices, against their own), rankme, rankme_stderr, alpha, alpha_stderr,
    eigenvalues. Runs whose width is no multiple of BLOCK are left out.
    """
    chosen = {run: its for run, its in places.items() if can_be_quantized(run)}
    table = profile.asked(TABLE, lambda: pd.DataFrame(
        [row for run, its in chosen.items() for k in its for row in _rows(profile, run, k)], columns=COLUMNS))
    return profile.by_run(table)


def _rows(profile: Profile, run: Run, k: int) -> list[dict]:
    """One checkpoint in every type."""
    from reptrace.measures.spectra import geometry
    from reptrace.models.hidden_states import last_token_states
    from reptrace.models.loading import load

    point, sequences, rows = profile.suite.checkpoints(run)[k], profile.probe(run).sequences, []
    for kind in TYPES.values():
        model = load(point.model, point.revision, point.cache_dir, DEVICE, DTYPE)
        changed = quantize(model, kind)
        states = last_token_states(model, sequences, batch_size=BATCH_SIZE)["final"]
        found = geometry(states, tuple(profile.alpha_ranks), shorten=True)
        rows.append({"model": point.model, "revision": point.revision, "step": point.step, "tokens": point.tokens,
                     "quantization": kind, **changed, "rankme": found.rankme, "rankme_stderr": found.rankme_stderr,
                     "alpha": found.alpha.alpha if found.alpha else float("nan"), "alpha_stderr": found.alpha_stderr,
                     "eigenvalues": found.eigenvalues.tolist()})
    return rows

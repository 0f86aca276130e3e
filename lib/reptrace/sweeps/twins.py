"""Checkpoints that are served under more than one name: by the hashes of their files, or by one spectrum of two whose
published evaluations differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pandas as pd

from reptrace.checkpoints import hub, published
from reptrace.checkpoints.listing import Checkpoint

AGREE = 1e-3  # relative, of eigenvalues: far above what other batches do to one model, far below what training does
ERRORS = 4  # standard errors by which two accuracies must differ


def same_geometry(table: pd.DataFrame, task: str = "sciq") -> dict[tuple[str, str], str]:
    """Pairs of revisions of a Pythia with one and the same spectrum, although published accuracies tell them apart.

    At most one of the two can be what its name says. Steps without a published evaluation are compared by the nearest
    evaluated step, within a factor of 1.5.

    Parameters
    ----------
    table : as `sweep.sweep` returns it
    task : "sciq" or "lambada_openai", of data/published/pythia_evals.csv

    Returns
    -------
    dict of (model, revision) -> which others, with both accuracies
    """
    evaluations = published.pythia_accuracy(task)
    found: dict[tuple[str, str], list[str]] = {}
    good = table[(table.status == "measured") & table.step.notna()]
    for (model, _, _), rows in good.groupby(["model", "probe_fingerprint", "layer"], sort=False):
        steps = evaluations.get(model.split("/")[-1], pd.DataFrame())
        rows = [(row, accuracy) for row in rows.itertuples() if (accuracy := _accuracy(steps, row.step)) is not None]
        for (one, a), (other, b) in combinations(rows, 2):
            if abs(a.value - b.value) > ERRORS * np.hypot(a.stderr, b.stderr) and _agree(one, other):
                for this, that, here, there in ((one, other, a, b), (other, one, b, a)):
                    found.setdefault((model, this.revision), []).append(
                        f"{that.revision} ({task} {here.value:.2f} here, {there.value:.2f} there)")
    return {key: ", ".join(dict.fromkeys(others)) for key, others in found.items()}


def _accuracy(steps: pd.DataFrame, step: float):
    """The evaluation nearest to a step, or None."""
    if not len(steps):
        return None
    distance = (np.log(steps.step + 1) - np.log(step + 1)).abs()
    return steps.loc[distance.idxmin()] if distance.min() <= np.log(1.5) else None


def _agree(one, other) -> bool:
    s, t = np.asarray(one.eigenvalues), np.asarray(other.eigenvalues)
    return len(s) == len(t) and bool(np.allclose(s, t, rtol=AGREE, atol=AGREE * s.sum() / len(s)))


def same_weights(files: Mapping[Checkpoint, hub.Files]) -> dict[Checkpoint, str]:
    """Checkpoints that share weight files, by their hashes, with others: which others, and how many of the files."""
    holders: dict[tuple[str, str], list[Checkpoint]] = {}
    for point, found in files.items():
        for file in found.weights:
            holders.setdefault(file, []).append(point)
    shared: dict[Checkpoint, Counter[Checkpoint]] = {}
    for group in holders.values():
        for point in group if len(group) > 1 else []:
            shared.setdefault(point, Counter()).update(other for other in group if other != point)
    return {point: ", ".join(_twin(other, count, len(files[point].weights)) for other, count in others.items())
            for point, others in shared.items()}


def _twin(other: Checkpoint, count: int, of: int) -> str:
    name = other.revision or other.model
    return name if count == of else f"{name} ({count} of {of} files)"

"""The second detector of wrong weights: one spectrum under two names, told apart by published accuracies.

Trusted: EleutherAI's own evaluations (pythia-2.8b at step 1000 answers 0.43 of SciQ, at the end 0.88) and the report
that 2.8b's early branches serve the weights of the main revision (EleutherAI/pythia issue 205), imitated here.
"""

import numpy as np
import pandas as pd
import pytest

from reptrace.sweeps.twins import same_geometry


def table(steps, rng, model="EleutherAI/pythia-2.8b", served=None, noise=0.0):
    """A sweep's table; `served` maps a step to the one whose weights its branch serves."""
    spectra = {step: np.sort(rng.exponential(size=64))[::-1] for step in steps}
    rows = []
    for step in steps:
        s = spectra[(served or {}).get(step, step)] * (1 + noise * rng.standard_normal(64))
        rows.append({"model": model, "revision": f"step{step}", "step": step, "status": "measured", "layer": "final",
                     "probe_fingerprint": "p", "eigenvalues": s.tolist()})
    return pd.DataFrame(rows)


@pytest.mark.parametrize("noise", [0.0, 1e-4])  # bfloat16 in other batches
def test_an_early_branch_that_serves_late_weights_is_found(rng, noise):
    found = same_geometry(table([0, 1000, 70000, 143000], rng, served={1000: 143000}, noise=noise))
    assert set(found) == {("EleutherAI/pythia-2.8b", "step1000"), ("EleutherAI/pythia-2.8b", "step143000")}
    assert found["EleutherAI/pythia-2.8b", "step1000"].startswith("step143000 (sciq 0.43 here, 0.8")


def test_steps_that_really_have_one_accuracy_are_not_accused(rng):
    """step0 and step1 are equal by the schedule, and so are their accuracies."""
    assert same_geometry(table([0, 1, 1000], rng, served={1: 0})) == {}


def test_good_trajectories_other_models_and_gaps_are_left_alone(rng):
    assert same_geometry(table([0, 512, 1000, 143000], rng)) == {}
    assert same_geometry(table([1000, 143000], rng, "allenai/OLMo-2-1124-7B", {1000: 143000})) == {}
    failed = table([1000, 143000], rng, served={1000: 143000}).assign(status="failed")
    assert same_geometry(failed) == {}
    assert same_geometry(table([1000, 143000], rng, served={1000: 143000}).assign(layer=["0", "final"])) == {}

"""What causes the phases: a small model, trained again with one cause changed at a time.

    make causes

Writes four tables to data/results: causes.csv (a run a row), causes_curves.csv (RankMe by tokens, of raw and of
averaged weights), causes_texts.csv (what each remapping did to the text) and causes_trials.csv (squared error at other
rates). What is trained and measured already is read. A fifth, causes_older.csv, is of two studies by an older recipe,
and can't be made again.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from settings import curve, row
from transformers import GPTNeoXForCausalLM

from reptrace.measures import spectra
from reptrace.measures.phases import MOVES, critical_value
from reptrace.models.hidden_states import FINAL, last_token_states
from reptrace.models.loading import from_pretrained
from reptrace.records.store import provenance, write_atomically
from reptrace.report.averaged import trajectory
from reptrace.report.profiles import ROOT, Profile
from reptrace.texts.frequencies import describe
from reptrace.training.runs import Run

PLAN = Path(__file__).with_suffix(".yaml")
RESULTS = ROOT / "data" / "results"
FRESH = 2048  # held-out sequences beyond the probe
DRAWS = 200  # resamplings of them for an interval


def main() -> None:
    plan = yaml.safe_load(PLAN.read_text())
    started = time.perf_counter()
    conditions, trials = profiles(plan)
    for profile in (conditions, trials):
        profile.train()
    names = dict(zip(plan["conditions"], conditions.sizes_of_runs, strict=True))
    raw, averaged, fresh = conditions.trace(), conditions.trace_averaged(), fresh_sequences(conditions)
    write("causes", [outcome(conditions, name, plan["conditions"][name]["predicted"], run, raw[run], averaged[run],
                             fresh[run.vocabulary, run.frequencies]) for name, runs in names.items() for run in runs])
    write("causes_curves", [{"condition": name, "seed": run.seed, **point} for name, runs in names.items()
                            for run in runs for point in curve(run, raw[run], averaged[run])])
    write("causes_texts", texts(conditions))
    write("causes_trials", [trial(trials, run, fresh) for run in trials.runs])
    spent = os.times()
    print(f"{time.perf_counter() - started:.0f} s, processor "
          f"{spent.user + spent.system + spent.children_user + spent.children_system:.0f} s")


def profiles(plan: dict) -> tuple[Profile, Profile]:
    """The conditions, and the trials of a rate; ValueError where two conditions are the same training."""
    sizes = [{**plan["common"], **condition.get("changes", {})} for condition in plan["conditions"].values()]
    conditions = Profile.of({**plan, "sizes": sizes})
    if len(conditions.sizes_of_runs) < len(sizes):
        raise ValueError(f"two conditions of {PLAN.name} train the same runs: each must change something of its own.")
    return conditions, Profile.of({**plan, "sizes": [{**plan["common"], **size} for size in plan["trials"]]})


def fresh_sequences(profile: Profile) -> dict[tuple[int, str], list[list[int]]]:
    """Held-out sequences that are not in the probe, by vocabulary and frequencies."""
    larger = replace(profile, sequences=profile.sequences + FRESH)
    alike = {(run.vocabulary, run.frequencies): run for run in profile.runs}
    return {key: larger.probe(run).sequences[profile.sequences :] for key, run in alike.items()}


def outcome(profile: Profile, condition: str, predicted: dict[str, bool], run: Run, raw: pd.DataFrame,
            averaged: pd.DataFrame, fresh: list[list[int]]) -> dict:
    """One run: what was set and predicted, what RankMe did, and how well the model predicts."""
    late = {"": late_change(profile, raw, fresh), "averaged_": late_change(profile, trajectory(raw, averaged), fresh)}
    return {
        "condition": condition, "repository": run.repository, "loss": run.loss, "frequencies": run.frequencies,
        **{f"predicted_{move}": {True: "yes", False: "no", None: ""}[predicted.get(move)] for move in MOVES},
        **row(profile, run, raw, averaged),
        **{prefix + key: value for prefix, its in late.items() for key, value in its.items()},
        "accuracy": accuracy(model(profile, run.repository, "main"), fresh),
        # the least fall from a peak of this value and error that the detector would call one
        "smallest_fall": critical_value(len(raw)) * np.sqrt(2) * raw.rankme_stderr.iloc[-1] / raw.rankme.iloc[-1]}


def late_change(profile: Profile, table: pd.DataFrame, fresh: list[list[int]]) -> dict:
    """RankMe of the last checkpoint over that of the highest after the minimum, both on sequences they were not picked
    by, and the same ones, which makes the ratio far better known than either value."""
    lowest = int(table.rankme.argmin())
    peak, last = table.iloc[lowest + int(table.rankme.iloc[lowest:].argmax())], table.iloc[-1]
    ratio = low = high = 1.0  # the last checkpoint is the highest
    if peak.tokens != last.tokens:
        models = [model(profile, each.model, each.revision) for each in (peak, last)]
        ratio, low, high = paired_ratio(*(last_token_states(each, fresh, (FINAL,), 128)[FINAL] for each in models))
    return {"peak_tokens": peak.tokens, "late_ratio": ratio, "late_low": low, "late_high": high}


def paired_ratio(before, after, draws: int = DRAWS, seed: int = 0) -> tuple[float, float, float]:
    """RankMe of `after` over that of `before`, (ratio, low, high): 95 % by resampling rows, the same ones of both.

    Parameters
    ----------
    before, after : float tensors, shape (M, d); row i of both is the same sequence
    """
    def log_ratio(rows) -> float:
        return float(np.log([spectra.rankme(spectra.eigenspectrum(states[rows])) for states in (after, before)])
                     @ [1, -1])

    rng, rows = np.random.default_rng(seed), len(before)
    half = 1.96 * np.std([log_ratio(torch.from_numpy(rng.integers(rows, size=rows))) for _ in range(draws)])
    centre = log_ratio(slice(None))
    return tuple(float(np.exp(centre + shift)) for shift in (0, -half, half))


def model(profile: Profile, repository: str, revision: str):
    return from_pretrained(GPTNeoXForCausalLM, repository, revision, profile.suite.hub).eval()


def accuracy(trained, sequences: list[list[int]]) -> float:
    """Share of next tokens that a model ranks first."""
    right = total = 0
    with torch.inference_mode():
        for length in sorted({len(sequence) for sequence in sequences}):
            ids = torch.tensor([sequence for sequence in sequences if len(sequence) == length])
            for part in ids.split(64):
                hits = trained(part).logits[:, :-1].argmax(-1) == part[:, 1:]
                right, total = right + int(hits.sum()), total + hits.numel()
    return right / total


def texts(profile: Profile) -> list[dict]:
    """Statistics of the training text as each kind of run sees it."""
    alike = {(run.vocabulary, run.frequencies): run for run in profile.runs}
    return [{"vocabulary": run.vocabulary, "frequencies": run.frequencies, "uniform_entropy": np.log(run.vocabulary),
             **describe(np.fromfile(profile.suite.tokens(run.vocabulary), dtype=np.uint16).astype(np.int64),
                        run.vocabulary, profile.suite.remapping(run)),
             "corpus_fingerprint": run.corpus, **provenance()} for run in alike.values()]


def trial(profile: Profile, run: Run, fresh: dict) -> dict:
    return {"loss": run.loss, "learning_rate": run.learning_rate, "tokens": run.training_tokens, "seed": run.seed,
            "final_loss": profile.log(run).loss.iloc[-1],
            "accuracy": accuracy(model(profile, run.repository, "main"), fresh[run.vocabulary, run.frequencies]),
            **provenance()}


def write(name: str, rows: list[dict]) -> None:
    path = RESULTS / f"{name}.csv"
    write_atomically(path, pd.DataFrame(rows).to_csv(index=False, float_format="%.6g").encode())
    print(f"{len(rows)} rows: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()

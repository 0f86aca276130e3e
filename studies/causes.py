"""What causes the phases: a small model, trained again with one cause changed at a time.

    make causes
    .venv/bin/python studies/causes.py --longer

Writes four tables to data/results: causes.csv (a run a row), causes_curves.csv (RankMe by tokens), causes_texts.csv
(what each remapping did to the text) and causes_trials.csv (how the rate for squared error was chosen); --longer, one,
causes_longer.csv, of every condition with the batches and tokens that the plan gives there. What is trained and
measured already is read.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from settings import row
from transformers import GPTNeoXForCausalLM

from reptrace.measures import spectra
from reptrace.measures.phases import critical_value
from reptrace.models.hidden_states import last_token_states
from reptrace.models.loading import from_pretrained
from reptrace.records.store import provenance, write_atomically
from reptrace.report.profiles import ROOT, Profile
from reptrace.texts.frequencies import describe
from reptrace.training.runs import Run

PLAN = Path(__file__).with_suffix(".yaml")
RESULTS = ROOT / "data" / "results"
PHASES = ("collapse", "expansion", "compression")
FRESH = 2048  # held-out sequences beyond the probe
DRAWS = 200  # resamplings of them for an interval


def main() -> None:
    plan = yaml.safe_load(PLAN.read_text())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--longer", action="store_true", help="train every condition longer, in larger batches")
    if parser.parse_args().longer:
        longer(plan)
    else:
        planned(plan)


def longer(plan: dict) -> None:
    """Every condition with other batches and tokens: does what is found hang on them?"""
    changes = {name: {"changes": {**each.get("changes", {}), **plan["longer"]}}
               for name, each in plan["conditions"].items()}
    conditions, _ = profiles({**plan, "conditions": changes})
    conditions.train()
    names, tables, fresh = names_of(plan, conditions), conditions.trace(), fresh_sequences(conditions)
    write("causes_longer", [outcome(conditions, name, plan["conditions"][name]["predicted"], run, tables[run], fresh)
                            for name, runs in names.items() for run in runs])


def planned(plan: dict) -> None:
    started = time.perf_counter()
    conditions, trials = profiles(plan)
    for profile in (conditions, trials):
        profile.train()
    names, tables, fresh = names_of(plan, conditions), conditions.trace(), fresh_sequences(conditions)
    write("causes", [outcome(conditions, name, plan["conditions"][name]["predicted"], run, tables[run], fresh)
                     for name, runs in names.items() for run in runs])
    write("causes_curves", [point for name, runs in names.items() for run in runs
                            for point in curve(name, run, tables[run])])
    write("causes_texts", texts(conditions))
    write("causes_trials", [trial(trials, run, fresh) for run in trials.runs])
    spent = os.times()
    print(f"{time.perf_counter() - started:.0f} s, processor "
          f"{spent.user + spent.system + spent.children_user + spent.children_system:.0f} s")


def names_of(plan: dict, conditions: Profile) -> dict[str, list[Run]]:
    return dict(zip(plan["conditions"], conditions.sizes_of_runs, strict=True))


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


def outcome(profile: Profile, condition: str, predicted: dict[str, bool], run: Run, table: pd.DataFrame,
            fresh: dict) -> dict:
    """One run: what was set and predicted, what RankMe did, and how well the model predicts."""
    sequences = fresh[run.vocabulary, run.frequencies]
    return {
        "condition": condition, "repository": run.repository, "loss": run.loss, "frequencies": run.frequencies,
        **{f"predicted_{phase}": {True: "yes", False: "no", None: ""}[predicted.get(phase)] for phase in PHASES},
        **row(profile, run, table), **late_change(profile, run, table, sequences),
        "accuracy": accuracy(model(profile, run, "main"), sequences),
        # the least fall from a peak of this value and error that the detector would call one
        "smallest_fall": critical_value(len(table)) * np.sqrt(2) * table.rankme_stderr.iloc[-1] / table.rankme.iloc[-1]}


def late_change(profile: Profile, run: Run, table: pd.DataFrame, sequences: list[list[int]]) -> dict:
    """RankMe of the last checkpoint over that of the highest after the minimum, both on sequences they were not picked
    by, and the same ones, which makes the ratio far better known than either value."""
    lowest = int(table.rankme.argmin())
    peak = table.iloc[lowest + int(table.rankme.iloc[lowest:].argmax())]
    ratio = low = high = 1.0  # the last checkpoint is the highest
    if peak.revision != table.revision.iloc[-1]:
        states = [last_token_states(model(profile, run, revision), sequences, ("final",), 128)["final"]
                  for revision in (peak.revision, table.revision.iloc[-1])]
        ratio, low, high = paired_ratio(*states)
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


def model(profile: Profile, run: Run, revision: str):
    return from_pretrained(GPTNeoXForCausalLM, run.repository, revision, profile.suite.hub).eval()


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


def curve(condition: str, run: Run, table: pd.DataFrame) -> list[dict]:
    columns = table[["tokens", "rankme", "rankme_stderr"]].to_dict("records")
    return [{"condition": condition, "seed": run.seed, "repository": run.repository, **point} for point in columns]


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
            "accuracy": accuracy(model(profile, run, "main"), fresh[run.vocabulary, run.frequencies]), **provenance()}


def write(name: str, rows: list[dict]) -> None:
    path = RESULTS / f"{name}.csv"
    write_atomically(path, pd.DataFrame(rows).to_csv(index=False, float_format="%.6g").encode())
    print(f"{len(rows)} rows: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()

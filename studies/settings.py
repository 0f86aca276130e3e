"""Settings tried for the default suite: train and trace each one, and write what it showed.

    make settings

Every setting of settings.yaml is in the tables of data/results, whatever it showed:

    settings_tried.csv        a run a row: what was set, and what RankMe did, of raw and of averaged weights
    settings_curves.csv       RankMe by tokens, of both
    settings_moments.parquet  of one run of each kind, at RankMe's minimum, at its peak and at the end: the covariance
                              of the states, and what reads them

What is trained and measured already is read. Rows of an older recipe of training can't be made again: they stay in the
first table as they are.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from transformers import GPTNeoXForCausalLM

from reptrace.checkpoints.listing import Checkpoint
from reptrace.measures.phases import Phases, claims, phases_of
from reptrace.measures.readout import Readout
from reptrace.measures.spectra import eigenspectrum, rankme
from reptrace.models.hidden_states import FINAL, last_token_states
from reptrace.models.loading import from_pretrained
from reptrace.records.store import provenance, write_atomically
from reptrace.report.averaged import averaged_phases
from reptrace.report.profiles import OPTIONAL_KEYS, ROOT, TRAINING_KEYS, Profile
from reptrace.training.runs import Run

PLAN = Path(__file__).with_suffix(".yaml")
RESULTS = ROOT / "data" / "results"
SET = ("width", "layers", "seed", *TRAINING_KEYS, *OPTIONAL_KEYS, "recipe")  # columns of what was set


def main() -> None:
    plan = yaml.safe_load(PLAN.read_text())
    profile = profile_of(plan, plan["settings"])
    profile.train()
    traced, averaged = profile.trace(), profile.trace_averaged()
    rows = [row(profile, run, table, averaged.get(run)) for run, table in traced.items()]
    write("tried.csv", pd.concat([older(RESULTS / "settings_tried.csv"), pd.DataFrame(rows)]))
    write("curves.csv", pd.DataFrame([point for run, table in traced.items()
                                      for point in curve(run, table, averaged.get(run))]))
    kinds = {kind: profile_of(plan, [setting]).runs[0] for kind, setting in plan["kinds"].items()}
    write("moments.parquet", pd.DataFrame([place for kind, run in kinds.items()
                                           for place in looked_into(profile, kind, run, traced[run])]))


def profile_of(plan: dict, settings: list[dict]) -> Profile:
    return Profile.of({**plan, "sizes": [{**plan["common"], **setting} for setting in settings]})


def write(name: str, table: pd.DataFrame) -> None:
    path = RESULTS / f"settings_{name}"
    content = (table.to_csv(index=False, float_format="%.6g").encode() if path.suffix == ".csv"
               else table.to_parquet(index=False, compression="zstd"))
    write_atomically(path, content)
    print(f"{len(table)} rows: {path.relative_to(ROOT)}")


def older(path: Path) -> pd.DataFrame:
    """Rows that were made by an older recipe."""
    table = pd.read_csv(path)
    return table[table.recipe < Run.recipe]


def row(profile: Profile, run: Run, table: pd.DataFrame, averaged: pd.DataFrame | None = None) -> dict:
    """One setting: what was set, what RankMe did, which claims it decides, what it cost.

    Columns of the averaged weights begin with `averaged_`; they are empty without these, and in a run too short for
    them.
    """
    log, setting = profile.suite.log(run), asdict(run)
    phases = phases_of(table)
    found = {
        **{key: setting[key] for key in SET}, "repository": run.repository,
        "parameters": run.parameters, "tokens": run.training_tokens, "rankme_start": table.rankme.iloc[0],
        **of_rankme(table, phases), "rankme_last_stderr": table.rankme_stderr.iloc[-1],
        **{key: value for key, value in phases.row().items() if not key.endswith("_value") and "wiggle" not in key},
        **claims(phases), "share_top1_last": table.share_top1.iloc[-1]}
    if averaged is not None:
        phases = averaged_phases(table, averaged)
        found |= {f"averaged_{key}": value for key, value in {
            **of_rankme(averaged, phases), "turn_tokens": phases.row()["turn_tokens"],
            **{key: value for key, value in phases.row().items() if key.startswith("compression")},
            **claims(phases)}.items()}
    return found | {"final_loss": log.loss.iloc[-1], "training_seconds": log.wall_seconds.iloc[-1],
                    "probe_fingerprint": table.probe_fingerprint.iloc[0], "corpus_fingerprint": run.corpus,
                    **provenance()}


def of_rankme(table: pd.DataFrame, phases: Phases) -> dict:
    """RankMe at its turns, None where one isn't seen, and at the end."""
    turns = [turn and turn.value for turn in (phases.collapse_end, phases.turn)]
    return dict(zip(("rankme_minimum", "rankme_peak", "rankme_last"), (*turns, table.rankme.iloc[-1]), strict=True))


def curve(run: Run, table: pd.DataFrame, averaged: pd.DataFrame | None) -> list[dict]:
    columns = ["tokens", "rankme", "rankme_stderr", "alpha", "share_top1"]
    return [{"repository": run.repository, "weights": weights, **point}
            for weights, part in (("raw", table), ("averaged", averaged)) if part is not None
            for point in part[columns].to_dict("records")]


def looked_into(profile: Profile, kind: str, run: Run, table: pd.DataFrame) -> list[dict]:
    """Second moments of the states of a run's probe at RankMe's lowest and highest later checkpoint and at the end."""
    lowest = int(table.rankme.argmin())
    places = {"minimum": lowest, "peak": lowest + int(table.rankme.iloc[lowest:].argmax()), "end": len(table) - 1}
    ids = np.fromfile(profile.suite.token_file(run), dtype=np.uint16)
    counts, probe = np.bincount(ids, minlength=run.vocabulary), profile.probe(run)
    return [{"kind": kind, "place": place, "weights": weights, "repository": run.repository,
             **moments(profile, points[table.step.iloc[index]], probe, counts), **provenance()}
            for weights, points in (("raw", checkpoints(profile, run)), ("averaged", checkpoints(profile, run, True)))
            for place, index in places.items() if table.step.iloc[index] in points]


def checkpoints(profile: Profile, run: Run, averaged: bool = False) -> dict[int, Checkpoint]:
    """By step."""
    return {point.step: point for point in profile.suite.checkpoints(run, averaged=averaged)}


def moments(profile: Profile, point: Checkpoint, probe, counts: np.ndarray) -> dict:
    """Mean and covariance of the final states of the probe's last tokens, and what the unembedding reads of them."""
    model = from_pretrained(GPTNeoXForCausalLM, point.model, point.revision, profile.suite.hub).eval()
    states = last_token_states(model, probe.sequences, (FINAL,), 128)[FINAL].double().numpy()
    readout = Readout.of(model.get_output_embeddings().weight.detach().double().numpy(), counts)
    units = states / np.linalg.norm(states, axis=1, keepdims=True)
    return {"step": point.step, "tokens": point.tokens, "rankme": rankme(eigenspectrum(states)),
            "mean_cosine": float(np.square(units.mean(0)).sum()), "frequency_r2": readout.frequency_r2,
            **{name: np.asarray(value, np.float32).ravel() for name, value in (
                ("mean", states.mean(0)), ("covariance", np.cov(states.T, bias=True)),
                ("unembedding_directions", readout.directions), ("frequency_direction", readout.frequency))}}


if __name__ == "__main__":
    main()

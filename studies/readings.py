"""Other readings of the geometry, on every checkpoint of the default suite; writes data/results/readings.csv.

    make readings

What is trained and measured already is read (build/): after `make report` the models are there. Joined to each
checkpoint are the training loss and what the last `make report` found of the tasks for these weights, or else the
archive.
"""

from __future__ import annotations

import pandas as pd
import yaml

from reptrace.measures.registry import REGISTRY
from reptrace.measures.within import diff_erank
from reptrace.records.store import write_atomically
from reptrace.report.archive import Answers
from reptrace.report.other_readings import TASKS
from reptrace.report.profiles import BATCH_SIZE, DEVICE, DTYPE, ROOT, Profile
from reptrace.support.processes import cores
from reptrace.sweeps.dispatch import Means
from reptrace.sweeps.located import Opening
from reptrace.sweeps.measurement import Settings
from reptrace.sweeps.sweep import trace_groups

OUT = ROOT / "data" / "results" / "readings.csv"
MEASURES = ("rankme", "alpha", "anisotropy", "cka", "readout", "weights", "prompt_entropy", "curvature",
            "sentence_erank", "intrinsic_dimension")
PLACE = ["model", "revision", "step", "tokens", "weights"]
ABOUT = ["width", "parameters", "probe_fingerprint", "sequences", "wall_seconds"]
MADE = ["code", "packages", "python", "machine"]


def main() -> None:
    parameters = yaml.safe_load((ROOT / "notebooks" / "params" / "tiny.yaml").read_text())
    profile = Profile.of(parameters)
    profile.train()
    settings = Settings(("final",), profile.alpha_ranks, BATCH_SIZE, MEASURES)
    groups = [(profile.suite.checkpoints(run), profile.probe(run)) for run in profile.runs]
    traced = trace_groups(groups, profile.store, settings, Opening(DEVICE, DTYPE), Means(cores()))
    name = f"tasks_{parameters['items']}"
    kept = profile.answers if name in profile.answers.names else Answers(ROOT / "data" / "archive")
    logs = [profile.suite.log(run) for run in profile.runs]
    write_atomically(OUT, table(traced, logs, kept.read(name)).to_csv(index=False, float_format="%.7g").encode())
    print(f"{OUT.relative_to(ROOT)}: {sum(map(len, traced))} rows")


def table(traced: list[pd.DataFrame], logs: list[pd.DataFrame], tasks: pd.DataFrame) -> pd.DataFrame:
    """A row a checkpoint: what was measured, Diff-eRank against the run's first, the loss, and the tasks' values.

    ValueError where a checkpoint was not measured, or was not asked the tasks with the same weights.
    """
    found = pd.concat([_of_run(its, log) for its, log in zip(traced, logs, strict=True)])
    for task in TASKS:
        values = tasks.loc[tasks.task == task, [*PLACE[:2], "weights", "value"]].rename(columns={"value": task})
        found = found.merge(values, how="left", on=[*PLACE[:2], "weights"], validate="one_to_one")
        if found[task].isna().any():
            raise ValueError(f"{found[task].isna().sum()} checkpoints were not asked {task!r} with these weights: they "
                             "were trained elsewhere than the archive's. Call make report first.")
    columns = [column for name in MEASURES for column in REGISTRY[name].returned if column != "sentence_entropy_parts"]
    return found[[*PLACE, *ABOUT, "loss", *TASKS, *columns, "diff_erank", "diff_erank_stderr", *MADE]]


def _of_run(traced: pd.DataFrame, log: pd.DataFrame) -> pd.DataFrame:
    """`loss` is the mean since the record before, nan before the first step."""
    if (failed := traced[traced.status != "measured"]).any(axis=None):
        raise ValueError(f"{failed.model.iloc[0]} at step {failed.step.iloc[0]} was not measured: "
                         f"{failed.reason.iloc[0]}")
    loss = pd.merge_asof(traced[["step"]], log[["step", "loss"]], on="step").loss
    return pd.concat([traced.assign(loss=loss), diff_erank(traced)], axis=1)


if __name__ == "__main__":
    main()

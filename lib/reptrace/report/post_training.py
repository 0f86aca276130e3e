"""SFT, DPO and RLVR: the tables of `make posttrain` read for the page of Fig 5A and 5C, and what its claims come to.

A checkpoint stands in an arm (`ARMS`) and a stage of it. Whatever a stage changes is compared with the checkpoint that
it began from, on the same sequences and problems. Tables have a column `group`, one set of models each; the functions
here take the rows of one (`of_group`).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from reptrace.report.over_runs import mean_over
from reptrace.report.profiles import span
from reptrace.report.said import direction, outcomes
from reptrace.report.verdicts import Verdict, of_parts, of_runs

MAIN = "cpu"  # the group whose seeds decide
ARMS = {"sequence": ("SFT", "DPO", "RLVR"), "direct": ("RLVR",)}  # direct: RLVR on the base itself
BASE = ("sequence", "base")
MODELS = {BASE: "base", ("sequence", "SFT"): "SFT", ("sequence", "DPO"): "DPO", ("sequence", "RLVR"): "RLVR",
          ("direct", "RLVR"): "RLVR from the base"}
PROBES = {"text": "ordinary text", "prompts": "prompts"}
STATISTICS = {"rankme": "RankMe", "alpha": "alpha"}
CLAIMED = {"SFT": "rises", "DPO": "rises", "RLVR": "falls"}  # RankMe, in the paper's Fig 5A


def groups(table: pd.DataFrame) -> list[str]:
    """Names of the sets of models, the one whose seeds decide first."""
    return sorted(table.group.unique(), key=lambda name: name != MAIN)


def of_group(table: pd.DataFrame, group: str) -> pd.DataFrame:
    """Its rows."""
    return table[table.group == group].reset_index(drop=True)


def began_from(arm: str, stage: str) -> tuple[str, str]:
    """Arm and stage whose last checkpoint a stage began from."""
    order = ARMS[arm]
    place = order.index(stage)
    return (arm, order[place - 1]) if place else BASE


def ends(stages: pd.DataFrame) -> pd.DataFrame:
    """The last checkpoint of each stage, indexed by arm, stage and seed."""
    last = stages.sort_values("step").groupby(["arm", "stage", "seed"]).tail(1)
    return last.set_index(["arm", "stage", "seed"]).sort_index()


def models(stages: pd.DataFrame) -> dict[tuple[str, str], str]:
    """Those of `MODELS` that a table has."""
    there = set(zip(stages.arm, stages.stage, strict=True))
    return {key: name for key, name in MODELS.items() if key in there}


def along(stages: pd.DataFrame, arm: str, stage: str) -> pd.DataFrame:
    """A stage's checkpoints, in order, after the one that it began from, whose step is 0 here."""
    start = ends(stages).loc[began_from(arm, stage)].reset_index().assign(arm=arm, stage=stage, step=0)
    rows = stages[(stages.arm == arm) & (stages.stage == stage) & (stages.step > 0)]
    return pd.concat([start, rows], ignore_index=True).sort_values(["seed", "step"], ignore_index=True)


def placed(stages: pd.DataFrame, arm: str, columns: list[str]) -> pd.DataFrame:
    """An arm's checkpoints from the base on: `seed`, `place`, and the columns less those of the seed's base.

    `place` : 0 at the base, 1 at the end of the first stage, and so on, a stage's checkpoints evenly between.
    """
    parts = []
    for number, stage in enumerate(ARMS[arm]):
        if (arm, stage) not in models(stages):
            continue
        its = along(stages, arm, stage)
        each = its.groupby("seed").step
        its["place"] = number + each.rank(method="first").sub(1) / (each.transform("size") - 1)
        parts.append(its if number == 0 else its[its.step > 0])
    rows = pd.concat(parts, ignore_index=True)
    base = ends(stages).loc[BASE][columns]
    rows[columns] = rows[columns].to_numpy() - base.loc[rows.seed].to_numpy()
    return rows[["seed", "place", *columns]]


# What a stage does to the geometry


def changes(stages: pd.DataFrame) -> pd.DataFrame:
    """From the beginning of each stage to its end: a row an arm, stage, probe, statistic and seed.

    Columns: those, change, stderr (paired), alone (standard error of the difference were the sequences not the same),
    low, high (95 %, over sequences), says ("rises", "falls" or "undecided", by the whole interval).
    """
    rows, last = [], ends(stages)
    for (arm, stage, seed), end in last.iterrows():
        if (arm, stage) == BASE:
            continue
        start = last.loc[(*began_from(arm, stage), seed)]
        for probe in PROBES:
            for statistic in STATISTICS:
                name = f"{probe}_{statistic}"
                change, stderr = end[f"{name}_change"], end[f"{name}_change_stderr"]
                low, high = change - 1.96 * stderr, change + 1.96 * stderr
                rows.append({"arm": arm, "stage": stage, "probe": probe, "statistic": statistic, "seed": seed,
                             "change": change, "stderr": stderr,
                             "alone": np.hypot(end[f"{name}_stderr"], start[f"{name}_stderr"]),
                             "low": low, "high": high, "says": direction(low, high)})
    found = pd.DataFrame(rows)
    order = {key: place for place, key in enumerate(MODELS)}
    return found.sort_values(["arm", "stage"], key=lambda _: [order[key] for key in zip(found.arm, found.stage,
                             strict=True)], kind="stable", ignore_index=True)


def stage_summary(found: pd.DataFrame) -> pd.DataFrame:
    """`changes` over seeds, a row an arm, stage, probe and statistic.

    Columns: mean, low, high (Student's interval over seeds), stderr and alone (medians), rises, undecided, falls,
    seeds (counts), verdict (of the paper's direction of RankMe; empty for alpha).
    """
    rows = []
    for key, its in found.groupby(["arm", "stage", "probe", "statistic"], sort=False):
        mean, low, high = mean_over(its.change)
        counts = {each: int((its.says == each).sum()) for each in ("rises", "undecided", "falls")}
        claimed = key[3] == "rankme"
        rows.append({**dict(zip(("arm", "stage", "probe", "statistic"), key, strict=True)),
                     "mean": its.change.mean() if mean != mean else mean, "low": low, "high": high,
                     "stderr": its.stderr.median(), "alone": its.alone.median(), **counts, "seeds": len(its),
                     "verdict": of_runs(outcomes(its.says, CLAIMED[key[1]])) if claimed else ""})
    return pd.DataFrame(rows)


def patterns(found: pd.DataFrame, arm: str, probe: str) -> pd.DataFrame:
    """What RankMe does on one probe along an arm: a row a seed, a column a stage, of directions."""
    its = found[(found.arm == arm) & (found.probe == probe) & (found.statistic == "rankme")]
    return its.pivot(index="seed", columns="stage", values="says")[list(dict.fromkeys(its.stage))]


def whole_pattern(says: pd.DataFrame) -> pd.Series:
    """Of `patterns`, by seed: whether each stage goes the claimed way."""
    return (says == [CLAIMED[stage] for stage in says]).all(axis=1)


def stages_verdict(found: pd.DataFrame, scale: str) -> Verdict:
    """Of Fig 5A: three stages on two probes are six parts, each of which seeds decide."""
    by_probe = {probe: patterns(found, "sequence", probe) for probe in PROBES}
    parts = [of_runs(outcomes(says[stage], CLAIMED[stage])) for says in by_probe.values() for stage in says]
    right = pd.DataFrame({probe: whole_pattern(says) for probe, says in by_probe.items()})
    whole = right.all(axis=1)
    said = "; ".join(f"on {PROBES[probe]} " + ", ".join(
        f"with {stage} it rises in {(says[stage] == 'rises').sum()} and falls in {(says[stage] == 'falls').sum()}"
        for stage in says) for probe, says in by_probe.items())
    last = found[(found.arm == "sequence") & (found.stage == "RLVR") & (found.probe == "text")
                 & (found.statistic == "rankme")]
    return Verdict(
        "fig05-stages", of_parts(parts),
        f"RankMe, by paired intervals, of {len(whole)} seeds: {said}. All three stages go the paper's way in "
        + ", ".join(f"{right[probe].sum()} on {name}" for probe, name in PROBES.items())
        + f" and {whole.sum()} on both.",
        "change of RankMe over RLVR after DPO, on ordinary text, mean of all seeds", *mean_over(last.change),
        int(whole.sum()), len(whole), scale)


# What training said


def training_facts(stages: pd.DataFrame) -> pd.DataFrame:
    """Of each stage, means over seeds at its start and at its end, and the smallest and largest seed's.

    Indexed by arm and stage; columns name_start (of accuracy, entropy, distinct, ended, chosen, rejected), name_end (of
    these, kl, reward, flat_groups), and name_low, name_high of the end. Reward and flat groups are those of the first
    and last row that has them.
    """
    last, rows = ends(stages), {}
    for arm, stage in models(stages):
        if (arm, stage) == BASE:
            continue
        end, start = last.loc[(arm, stage)], last.loc[began_from(arm, stage)]
        row = {}
        for name in ("accuracy", "entropy", "distinct", "ended", "chosen", "rejected"):
            row[f"{name}_start"] = start[name].mean()
        its = stages[(stages.arm == arm) & (stages.stage == stage)].sort_values("step")
        for name in ("reward", "flat_groups"):
            row[f"{name}_start"] = its[["seed", name]].dropna().groupby("seed")[name].first().mean()
        for name in ("accuracy", "entropy", "distinct", "ended", "chosen", "rejected", "kl", "reward", "flat_groups"):
            row |= {f"{name}_end": end[name].mean(), f"{name}_low": end[name].min(), f"{name}_high": end[name].max()}
        rows[arm, stage] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def scale_of(table: pd.DataFrame) -> str:
    """Sizes and tokens, in words, for a verdict."""
    ratio = table.pretraining_tokens / table.parameters
    per = " to ".join(dict.fromkeys(f"{each:.0f}" for each in (ratio.min(), ratio.max())))
    return (f"{table.seed.nunique()} seeds of GPT-NeoX of {span(table.parameters)} weights, "
            f"{span(table.pretraining_tokens)} tokens of pretraining ({per} a weight)")

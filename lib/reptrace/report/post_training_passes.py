"""pass@k of the stages of post-training, for the page of Fig 5C: curves, where they cross, and whether RL expands.

The tables are those of `post_training`; pass@k is exact, from the log-probability of the one right answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from reptrace.measures import pass_at_k
from reptrace.report.over_runs import mean_over
from reptrace.report.post_training import BASE, PROBES, along, began_from, ends, models, patterns
from reptrace.report.said import direction, outcomes, side, together
from reptrace.report.verdicts import Verdict, of_parts, of_runs

K = 2 ** np.arange(9)
FEW, MANY = 16, 256  # of the paper's Fig 5C


def passes_of(passes: pd.DataFrame, arm: str, stage: str, k=K) -> np.ndarray:
    """Exact pass@k of a stage's last checkpoint, shape (seeds, problems, K), in order of both.

    Raises
    ------
    ValueError
        Seeds were not asked the same problems.
    """
    its = _at_the_end(passes, arm, stage)
    by_seed = its.pivot(index="seed", columns="problem", values="log_probability")
    if by_seed.empty or by_seed.isna().any(axis=None):
        raise ValueError(f"{stage} ({arm}): every seed must be asked the same problems, got "
                         f"{its.groupby('seed').problem.nunique().to_dict()} of them by seed.")
    return pass_at_k.exact(by_seed.to_numpy(float), k)


def _at_the_end(passes: pd.DataFrame, arm: str, stage: str) -> pd.DataFrame:
    """Rows of a stage's last checkpoint, of each seed."""
    its = passes[(passes.arm == arm) & (passes.stage == stage)]
    return its[its.step == its.groupby("seed").step.transform("max")]


def by_difficulty(passes: pd.DataFrame) -> pd.DataFrame:
    """Accuracy (exact pass@1) of the stages' ends, mean over seeds and problems: task, difficulty, a column a model."""
    found = {}
    for (arm, stage), name in models(passes).items():
        its = _at_the_end(passes, arm, stage)
        found[name] = np.exp(its.log_probability.astype(float)).groupby([its.task, its.difficulty]).mean()
    return pd.DataFrame(found).reset_index()


def ahead(one: np.ndarray, other: np.ndarray) -> list[pass_at_k.Mean]:
    """How far another model is ahead, for one k, seed by seed, with intervals over problems; shape (S, P) each."""
    return [pass_at_k.difference(*pair) for pair in zip(one, other, strict=True)]


def crossing_outcomes(one: np.ndarray, other: np.ndarray, k=K) -> list[str]:
    """Of each seed, whether another model answers more problems in `FEW` tries and fewer in `MANY`.

    "yes" where both differences are so by the whole interval over problems, "no" where either surely isn't.
    """
    (first,), (last,) = (np.flatnonzero(np.asarray(k) == each) for each in (FEW, MANY))
    return [together([side(few.low, few.high), side(many.low, many.high, -1)]) for few, many in zip(
        ahead(one[..., first], other[..., first]), ahead(one[..., last], other[..., last]), strict=True)]


def crossing_in_words(found: pass_at_k.Crossing) -> str:
    """Where curves cross, with the interval."""
    if found.k is None:
        return f"none (in {100 * found.share:.0f} % of resamples)"
    low = f"{found.low:.1f}" if found.low else "below 1"
    high = f"{found.high:.0f}" if np.isfinite(found.high) else f"beyond {K[-1]}"
    return f"k = {found.k:.1f} ({low} to {high})"


def comparisons(passes: pd.DataFrame) -> Iterator[tuple[str, Mapping]]:
    """Pairs of models whose pass@k is compared: its name, and how far the other is ahead by k and where they cross."""
    pairs = {"SFT against the base": (BASE, ("sequence", "SFT")),
             "DPO against SFT": (("sequence", "SFT"), ("sequence", "DPO")),
             "RLVR against DPO": (("sequence", "DPO"), ("sequence", "RLVR")),
             "RLVR from the base against the base": (BASE, ("direct", "RLVR"))}
    for name, (one, other) in pairs.items():
        if {one, other} <= set(models(passes)):
            first, second = passes_of(passes, *one), passes_of(passes, *other)
            by_seed = [pass_at_k.crossing(*pair, K) for pair in zip(first, second, strict=True)]
            yield name, {
                "ahead": {int(k): pass_at_k.difference(first[..., i], second[..., i]) for i, k in enumerate(K)},
                "crossing": pass_at_k.crossing(first, second, K),
                "seeds": [each.k for each in by_seed], "sure": sum(each.sure for each in by_seed)}


def pass_at_k_verdict(passes: pd.DataFrame, scale: str) -> Verdict:
    """Of Fig 5C, left: RLVR against the DPO model that it began from, for few tries and for many."""
    one, other = (passes_of(passes, "sequence", stage) for stage in ("DPO", "RLVR"))
    said = crossing_outcomes(one, other)
    few, many = (pass_at_k.difference(one[..., k == K][..., 0], other[..., k == K][..., 0]) for k in (FEW, MANY))
    return Verdict(
        "fig05-pass-at-k", of_runs(said),
        f"After RLVR, against DPO, the share of problems solved changes by {points(few)} in {FEW} tries and by "
        f"{points(many)} in {MANY}, of problems and seeds. Where the curves cross: "
        f"{crossing_in_words(pass_at_k.crossing(one, other, K))}. Surely more in {FEW} and fewer in {MANY} is it in "
        f"{said.count('yes')} of {len(said)} seeds, surely not so in {said.count('no')}.",
        f"change of pass@{MANY} from DPO to RLVR, mean over problems and runs", *many, said.count("yes"), len(said),
        scale)


def pass_at_256_verdict(found: pd.DataFrame, passes: pd.DataFrame, scale: str) -> Verdict:
    """Of Fig 5C, right: pass@256 and RankMe fall together along RLVR, on each probe."""
    one, other = (passes_of(passes, "sequence", stage, [MANY])[..., 0] for stage in ("DPO", "RLVR"))
    tries = [direction(each.low, each.high) for each in ahead(one, other)]
    by_probe = {probe: _both_fall(tries, patterns(found, "sequence", probe).RLVR) for probe in PROBES}
    change = pass_at_k.difference(one, other)
    both = [set(each) == {"yes"} for each in zip(*by_probe.values(), strict=True)]
    fall = " and ".join(f"{said.count('yes')} of {len(said)} seeds on {PROBES[probe]}"
                       for probe, said in by_probe.items())
    apart = " and ".join(f"{said.count('no')} on {PROBES[probe]}" for probe, said in by_probe.items())
    return Verdict(
        "fig05-pass-at-256", of_parts(of_runs(said) for said in by_probe.values()),
        f"Along RLVR from DPO pass@{MANY} changes by {points(change)}, of problems and seeds; it surely falls in "
        f"{tries.count('falls')} of {len(tries)} seeds and surely rises in {tries.count('rises')}. It and RankMe both "
        f"surely fall in {fall}; one of the two surely rises in {apart}.",
        f"change of pass@{MANY} along RLVR, mean over problems and runs", *change, sum(both), len(both), scale)


def _both_fall(tries: list[str], rankme: pd.Series) -> list[str]:
    """By seed, of two directions: "yes" where both fall, "no" where one rises."""
    return [together(outcomes(pair, "falls")) for pair in zip(tries, rankme, strict=True)]


def points(mean: pass_at_k.Mean) -> str:
    """A difference of shares with its interval, in percentage points."""
    return f"{100 * mean[0]:+.1f} points ({100 * mean[1]:+.1f} to {100 * mean[2]:+.1f})"


def by_step(stages: pd.DataFrame, passes: pd.DataFrame, arm: str) -> pd.DataFrame:
    """Along RLVR from what it began from: seed, step, RankMe on each probe, and pass@256 (mean over problems)."""
    its = along(stages, arm, "RLVR")
    rows = passes[(passes.arm == arm) & (passes.stage == "RLVR") & (passes.step > 0)]
    start = _at_the_end(passes, *began_from(arm, "RLVR")).assign(step=0)
    asked = pd.concat([start, rows])
    solved = pd.Series(pass_at_k.exact(asked.log_probability.to_numpy(float), [MANY])[:, 0], asked.index)
    solved = solved.groupby([asked.seed, asked.step]).mean().rename("pass_at_256")
    return its[["seed", "step", *(f"{probe}_rankme" for probe in PROBES)]].merge(solved.reset_index(),
                                                                                 on=["seed", "step"], validate="1:1")


# Does RLVR expand, or sharpen?

EFFECTS = {"text_rankme": "RankMe, ordinary text", "prompts_rankme": "RankMe, prompts", "entropy": "entropy",
           "distinct": "share of different answers", "pass_at_1": "pass@1", "pass_at_256": "pass@256"}
SPREAD = ("text_rankme", "prompts_rankme", "entropy", "pass_at_256")  # what an expansion would raise


def effects(stages: pd.DataFrame, passes: pd.DataFrame, arm: str) -> pd.DataFrame:
    """What RLVR changes in an arm, over seeds: a row a quantity of `EFFECTS`: mean, low, high, up, down, says.

    `low`, `high` : Student's interval over seeds, nan of one; `up`, `down`: seeds in which it grows or shrinks.
    """
    known = ends(stages)[[name for name in EFFECTS if name in stages]]
    change = known.loc[(arm, "RLVR")] - known.loc[began_from(arm, "RLVR")]
    one, other = (passes_of(passes, *key, [1, MANY]).mean(1) for key in (began_from(arm, "RLVR"), (arm, "RLVR")))
    change["pass_at_1"], change["pass_at_256"] = (other - one).T
    rows = {}
    for name in EFFECTS:
        _, low, high = mean_over(change[name])
        rows[name] = {"mean": change[name].mean(), "low": low, "high": high, "up": int((change[name] > 0).sum()),
                      "down": int((change[name] < 0).sum()), "seeds": len(change), "says": direction(low, high)}
    return pd.DataFrame.from_dict(rows, orient="index")


def spreads(found: pd.DataFrame) -> str:
    """Whether RLVR "expands" a policy, all of `SPREAD` rising beyond the scatter of seeds, "sharpens" it, all falling,
    or "neither"."""
    said = set(found.says[list(SPREAD)])
    return "expands" if said == {"rises"} else "sharpens" if said == {"falls"} else "neither"


# Whether exact values are those of samples


def sampled_check(sampled: pd.DataFrame, passes: pd.DataFrame, k=(1, 16, 256)) -> pd.DataFrame:
    """Drawn answers against exact probabilities, a row a model and seed.

    Columns: arm, stage, seed, problems, samples, z, and for each k pass@k drawn (without bias) and exact.
    `z` : right answers less those that exact probabilities foresee, over their binomial scatter. Of the k, those up to
    the number of answers drawn to a problem are taken.
    """
    keys = ["seed", "arm", "stage", "step", "problem"]
    both = sampled.merge(passes[[*keys, "log_probability"]], on=keys, how="left", validate="1:1")
    if both.log_probability.isna().any():
        raise ValueError("answers were drawn to problems, or of checkpoints, that have no exact probability.")
    rows = []
    for (arm, stage, seed), its in both.groupby(["arm", "stage", "seed"], sort=False):
        p, (count,) = np.exp(its.log_probability.to_numpy(float)), its.samples.unique()
        scatter = np.sqrt((count * p * (1 - p)).sum())
        rows.append({"arm": arm, "stage": stage, "seed": seed, "problems": len(its), "samples": count,
                     "z": (its.right - count * p).sum() / scatter if scatter else np.nan})
        for each in (each for each in k if each <= count):
            rows[-1] |= {f"drawn_{each}": pass_at_k.unbiased(int(count), its.right.to_numpy(), [each]).mean(),
                         f"exact_{each}": pass_at_k.exact(its.log_probability.to_numpy(float), [each]).mean()}
    return pd.DataFrame(rows)

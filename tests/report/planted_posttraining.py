"""Tables in the form of `make posttrain`'s, with effects that are planted: for tests of what pages conclude."""

import numpy as np
import pandas as pd
from scipy.special import expit, logit

STEPS = {"SFT": (100, 200), "DPO": (60,), "RLVR": (20, 40, 60)}
PROBLEMS = 60


def stages(gains=None, seeds=5, group="cpu", stderr=0.02):
    """`gains`: (probe, arm, stage) -> change of RankMe over that stage; the paper's, unless said otherwise."""
    usual = {"SFT": 1.0, "DPO": 0.5, "RLVR": -0.5}
    rows = []
    for seed in range(seeds):
        base = {"text": 28 + seed, "prompts": 20 - seed}
        for arm, order in (("sequence", ("base", "SFT", "DPO", "RLVR")), ("direct", ("RLVR",))):
            level = dict(base)
            for stage in order:
                start = dict(level)
                for step in STEPS.get(stage, (0,)):
                    row = {"group": group, "seed": seed, "arm": arm, "stage": stage, "step": step,
                           "repository": f"{arm}-{stage}-s{seed}", "revision": f"step{step}", "parameters": 165_632,
                           "pretraining_tokens": 1_500_000, "accuracy": 0.2, "sampled": 0.2, "flat_groups": 0.4,
                           "entropy": 0.5 - 0.1 * (stage == "RLVR") * step / 60, "distinct": 0.5, "ended": 0.9,
                           "kl": 0.1, "kl_stderr": 0.01, "chosen": -1.5, "rejected": -2.5,
                           "reward": 0.2 if stage == "RLVR" else np.nan, "loss": np.nan, "code": "0.1.0 (planted)",
                           "python": "3", "packages": "{}", "machine": "none"}
                    for probe in base:
                        whole = (gains or {}).get((probe, arm, stage), usual.get(stage, 0))
                        gain = whole * step / STEPS.get(stage, (1,))[-1]
                        level[probe] = start[probe] + gain
                        of_base = stage == "base"
                        row |= {f"{probe}_rankme": level[probe], f"{probe}_rankme_stderr": 0.3,
                                f"{probe}_alpha": 1 - level[probe] / 100, f"{probe}_alpha_stderr": 0.02,
                                f"{probe}_rankme_change": np.nan if of_base else gain,
                                f"{probe}_rankme_change_stderr": np.nan if of_base else stderr,
                                f"{probe}_alpha_change": np.nan if of_base else -gain / 100,
                                f"{probe}_alpha_change_stderr": np.nan if of_base else stderr / 100}
                    rows.append(row)
    return pd.DataFrame(rows)


def passes(sharper=0.0, seeds=5, group="cpu", table=None):
    """`sharper`: how much RLVR stretches log-odds: problems above one half gain, those below lose, as p goes apart."""
    rng = np.random.default_rng(2)
    rows = []
    for seed, arm, stage, step in (stages(seeds=seeds) if table is None else table)[
            ["seed", "arm", "stage", "step"]].itertuples(index=False):
        hard = np.random.default_rng(3).normal(-2, 2.5, PROBLEMS) + 0.1 * rng.standard_normal(PROBLEMS)
        shift = {"base": 0, "SFT": 0.5, "DPO": 0.6, "RLVR": 0.6}[stage]
        odds = hard + shift
        if stage == "RLVR":
            odds = logit(0.05) + (odds - logit(0.05)) * (1 + sharper * step / STEPS["RLVR"][-1])
        for problem, each in enumerate(odds):
            rows.append((group, seed, arm, stage, step, problem, ("sort", "reverse", "add")[problem % 3],
                         2 + problem % 4, np.float32(np.log(expit(each)))))
    return pd.DataFrame(rows, columns=["group", "seed", "arm", "stage", "step", "problem", "task", "difficulty",
                                       "log_probability"])


def sampled(exact, problems=20, samples=512):
    """Answers drawn by the exact probabilities, at the stages' ends."""
    rng = np.random.default_rng(4)
    last = exact[(exact.step == exact.groupby(["seed", "arm", "stage"]).step.transform("max"))
                 & (exact.problem < problems)]
    return last.drop(columns=["task", "difficulty", "log_probability"]).assign(
        samples=samples, right=rng.binomial(samples, np.exp(last.log_probability.to_numpy(float))))


TOKENS = np.geomspace(0.4e6, 64e6, 8)
PARAMETERS = 200_000  # 2 to 320 tokens a parameter


def tuned(slopes=None, seeds=5, noise=0.005, group="cpu", tokens=TOKENS):
    """`slopes`: of ln loss for each doubling of tokens from 20 a parameter on, after tuning on A; by quantity."""
    slopes = {"sort": -0.1, "sort_phrasings": -0.1, "reverse": -0.1, "reverse_phrasings": -0.1, "add": -0.1,
              "text": -0.03, "rankme": 0.5} | (slopes or {})
    rng, rows = np.random.default_rng(5), []
    for seed in range(seeds):
        for each in tokens:
            doublings = np.log2(each / PARAMETERS / 20)
            late = max(doublings, 0)
            for which in ("none", "A", "B"):
                row = {"group": group, "seed": seed, "tokens": int(each), "parameters": PARAMETERS, "tuned": which,
                       "text_rankme": 25 + slopes["rankme"] * doublings + 10 * noise * rng.standard_normal(),
                       "text_rankme_stderr": 0.3, "prompts_rankme": 15 + doublings, "prompts_rankme_stderr": 0.3,
                       "text_alpha": 0.8, "prompts_alpha": 1.0, "code": "0.1.0 (planted)", "python": "3",
                       "packages": "{}", "machine": "none"}
                for name in ("sort", "sort_phrasings", "reverse", "reverse_phrasings", "add", "text"):
                    early = -0.1 * min(doublings, 0)
                    loss = np.exp(early + slopes[name] * late + noise * rng.standard_normal()) * (
                        1 if which == "A" else 0.9)
                    row[f"loss_{name}"] = loss
                    if name != "text":
                        row[f"accuracy_{name}"] = np.exp(-3 * loss)
                rows.append(row)
    return pd.DataFrame(rows)


def wins(slope=-0.01, seeds=5, noise=0.001, group="cpu", tokens=TOKENS):
    """`slope`: of all win rates for each doubling of tokens."""
    rng, rows = np.random.default_rng(6), []
    for seed in range(seeds):
        for each in tokens:
            for against in ("twin", "final"):
                for prompts in ("sort", "reverse"):
                    for judge in ("exact", "likelihood"):
                        rate = 0.5 + slope * np.log2(each / tokens[-1]) + noise * rng.standard_normal()
                        rows.append({"group": group, "seed": seed, "tokens": int(each), "against": against,
                                     "prompts": prompts, "judge": judge,
                                     "win_rate": 0.5 if against == "final" and each == tokens[-1] else rate,
                                     "win_rate_stderr": 0.01, "ties": 0.3})
    return pd.DataFrame(rows)

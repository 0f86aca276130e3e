"""Fine-tuning from checkpoints early and late in pretraining: what the page of Fig 5B and 14 reads and concludes.

Each base is tuned on set A and, as its twin, on set B (the tables of `make posttrain`). Over-training would show where
a base has long seen as many tokens as its size calls for: from `LATE` tokens a parameter on. There a quantity's trend
is a line in the logarithm of tokens, one a seed; what the checkpoints scatter about it, pooled over seeds, gives each
line its interval, and the scatter of lines that of their mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import t as student

from reptrace.report.over_runs import mean_over
from reptrace.report.profiles import span
from reptrace.report.said import direction, outcomes, together
from reptrace.report.verdicts import OPEN, REPRODUCED, Verdict, of_parts, of_runs, untold

LATE = 20  # tokens a parameter: about compute-optimal (Hoffmann et al. 2022)
REACH = 100  # tokens a parameter that pretraining must come to, before over-training is said to be absent
FEWEST = 3  # checkpoints of a trend
TOO_FEW = f"Fewer than {FEWEST} checkpoints lie beyond {LATE} tokens a parameter, so that there is no trend."
WITHIN = "sort"  # set A
OUT = {"sort_phrasings": "another phrasing", "reverse": "another task"}  # out of distribution
SATURATED = 0.25  # of the relative fall in distribution: what falls more slowly counts as saturating
JUDGES = {"exact": "exact checker", "likelihood": "likelihood judge"}
AGAINST = {"twin": "the twin tuned on B", "final": "the final checkpoint tuned on A"}
PROMPTS = {"sort": "A's prompts", "reverse": "B's prompts"}


def per_parameter(table: pd.DataFrame, parameters: Mapping | None = None) -> pd.DataFrame:
    """With a column `per_parameter`, tokens a parameter; `parameters`: by seed, where the table has none."""
    counts = table.parameters if parameters is None else table.seed.map(parameters)
    return table.assign(per_parameter=table.tokens / counts)


def tuned_on(table: pd.DataFrame, which: str) -> pd.DataFrame:
    """Rows of the bases ("none"), of those tuned on A or on B, in order of seed and tokens."""
    return table[table.tuned == which].sort_values(["seed", "tokens"], ignore_index=True)


def damage(table: pd.DataFrame, which: str, quantities: Sequence[str]) -> pd.DataFrame:
    """How much tuning on a set adds to losses: `seed`, `tokens`, `per_parameter`, and each quantity less the base's."""
    both = tuned_on(table, which).merge(tuned_on(table, "none"), on=["seed", "tokens", "per_parameter"],
                                        suffixes=("", "_base"), validate="1:1")
    return both[["seed", "tokens", "per_parameter"]].assign(
        **{name: both[name] - both[f"{name}_base"] for name in quantities})


# Trends


def trends(table: pd.DataFrame, values: pd.Series) -> pd.DataFrame:
    """Slope of values for each doubling of tokens from `LATE` on, by seed: slope, low, high, says.

    The 95 % intervals are Student's, from residuals about the seeds' lines, pooled. No rows where a seed has fewer than
    `FEWEST` checkpoints there.

    Parameters
    ----------
    table : columns seed, tokens, per_parameter
    values : of its rows
    """
    late = table.per_parameter >= LATE
    parts = [(seed, np.log2(its.tokens.to_numpy(float)), values[its.index].to_numpy(float))
             for seed, its in table[late].groupby("seed")]
    if not parts or min(len(x) for _, x, _ in parts) < FEWEST:
        return pd.DataFrame(columns=["slope", "low", "high", "says"])
    lines = {seed: np.polyfit(x, y, 1) for seed, x, y in parts}
    squares = sum(np.square(y - np.polyval(lines[seed], x)).sum() for seed, x, y in parts)
    free = sum(len(x) - 2 for _, x, _ in parts)
    rows = {}
    for seed, x, _ in parts:
        half = student.ppf(0.975, free) * np.sqrt(squares / free / np.square(x - x.mean()).sum())
        slope = lines[seed][0]
        rows[seed] = {"slope": slope, "low": slope - half, "high": slope + half,
                      "says": direction(slope - half, slope + half)}
    return pd.DataFrame.from_dict(rows, orient="index")


def trend_row(table: pd.DataFrame, values: pd.Series) -> dict:
    """A trend over seeds: mean, low, high (Student's, over seeds), rises, undecided, falls, seeds; its lowest place.

    `lowest` : tokens a parameter at which the mean over seeds is lowest, of all checkpoints; `back`, `back_low`,
    `back_high`: by how much the last is above that, over seeds.
    """
    found = trends(table, values)
    mean, low, high = mean_over(found.slope) if len(found) else (np.nan,) * 3
    by_seed = table.assign(value=values).pivot(index="tokens", columns="seed", values="value")
    place = by_seed.mean(axis=1).argmin()
    back = by_seed.iloc[-1] - by_seed.iloc[place]
    _, back_low, back_high = mean_over(back)
    return {"mean": found.slope.mean() if mean != mean else mean, "low": low, "high": high,
            **{way: int((found.says == way).sum()) for way in ("rises", "undecided", "falls")}, "seeds": len(found),
            "lowest": table.per_parameter[table.tokens == by_seed.index[place]].mean(),
            "back": back.mean(), "back_low": back_low, "back_high": back_high}


def reached(table: pd.DataFrame) -> float:
    """Tokens a parameter at the last checkpoint."""
    return float(table.per_parameter.max())


# Verdicts


def both_of(one: Sequence[str], other: Sequence[str]) -> list[str]:
    """By seed, what both say `together`; nothing where one has no trend."""
    if not one or not other:
        return []
    return [together(pair) for pair in zip(one, other, strict=True)]


def saturates(tuned: pd.DataFrame, out: str) -> list[str]:
    """By seed, whether loss in distribution falls and loss out of it falls less than `SATURATED` as fast, or rises.

    Both as logarithms. "no" where it surely falls faster, or loss in distribution surely rises.
    """
    within, beyond = np.log(tuned[f"loss_{WITHIN}"]), np.log(tuned[f"loss_{out}"])
    return both_of(outcomes(trends(tuned, within).says, "falls"),
                   outcomes(trends(tuned, beyond - SATURATED * within).says, "rises"))


def decided(parts: Mapping[str, Sequence[str]], reach: float) -> tuple[str, int, int]:
    """The verdict of a claim in parts, each said by seeds; the seeds for which all hold; and how many there are.

    A part without a trend is undecided. Over-training that doesn't show is no finding before pretraining came to
    `REACH` tokens a parameter.
    """
    seeds = max(map(len, parts.values()), default=0)
    said = [each or ["undecided"] * seeds for each in parts.values()]
    verdict = of_parts(map(of_runs, said)) if said else OPEN
    whole = [set(each) == {"yes"} for each in zip(*said, strict=True)]
    if verdict != REPRODUCED and reach < REACH:
        verdict = OPEN
    return verdict, sum(whole), len(whole)


def counts(parts: Mapping[str, Sequence[str]]) -> str:
    """How many seeds say yes and no to each part."""
    return "; ".join(f"{name}, in {list(said).count('yes')} of {len(said)} seeds, surely not in "
                     f"{list(said).count('no')}" for name, said in parts.items())


def loss_verdicts(tuned: pd.DataFrame, scale: str) -> list[Verdict]:
    """Of Fig 5B and 14, from models tuned on A: `fig05-robustness` and `fig14-robustness`."""
    reach = reached(tuned)
    if trends(tuned, tuned[f"loss_{WITHIN}"]).empty:
        return [untold(claim, TOO_FEW, scale) for claim in ("fig05-robustness", "fig14-robustness")]
    slow = {name: saturates(tuned, out) for out, name in OUT.items()}
    rising = {name: outcomes(trends(tuned, np.log(tuned[f"loss_{out}"])).says, "rises") for out, name in OUT.items()}
    slopes = {out: trends(tuned, np.log(tuned[f"loss_{out}"])).slope for out in (WITHIN, *OUT)}
    each = ", ".join(f"{relative(mean_over(slopes[out]))} ({name})" for out, name in
                     ({WITHIN: "in distribution"} | OUT).items())
    where = f"From {LATE} to {reach:.0f} tokens a parameter each doubling changes the loss after tuning by {each}. "
    quantity = "relative change of the loss on another task for each doubling of tokens (%), mean of all seeds"
    change = 100 * np.expm1(mean_over(slopes["reverse"]))
    verdict, whole, of = decided(slow, reach)
    first = Verdict(
        "fig05-robustness", verdict,
        f"{where}Loss in distribution falls while loss out of it rises, or falls less than {SATURATED:g} times as "
        f"fast: {counts(slow)}.{_short(verdict, reach)}",
        quantity, *change, whole, of, scale)
    verdict, whole, of = decided(rising, reach)
    second = Verdict(
        "fig14-robustness", verdict,
        f"{where}Loss out of distribution rises: {counts(rising)}.{_short(verdict, reach)}",
        quantity, *change, whole, of, scale)
    return [first, second]


def _short(verdict: str, reach: float) -> str:
    return (f" Pretraining came to {reach:.0f} tokens a parameter; below {REACH} its absence is not said."
            if verdict == OPEN and reach < REACH else "")


def win_trends(wins: pd.DataFrame) -> dict[tuple[str, str, str], pd.DataFrame]:
    """`trends` of win rates by what they are against, prompts and judge; the final checkpoint against itself left out.

    `wins` : with `per_parameter`.
    """
    wins = wins[(wins.against != "final") | (wins.tokens < wins.tokens.max())]
    return {(against, prompts, judge): trends(its, its.win_rate)
            for (against, prompts, judge), its in wins.groupby(["against", "prompts", "judge"], sort=False)}


def drawn_nearer(wins: pd.DataFrame) -> bool:
    """Whether all mean win rates against the twin are nearer to one half at the end than where the late part begins.

    So they are where both models come to solve nearly all problems, which says nothing of robustness.
    """
    late = wins[(wins.against == "twin") & (wins.per_parameter >= LATE)]
    rates = late.pivot_table(index="tokens", columns=["prompts", "judge"], values="win_rate").sort_index()
    return len(rates) > 1 and bool(((rates.iloc[-1] - 0.5).abs() < (rates.iloc[0] - 0.5).abs()).all())


def win_verdicts(bases: pd.DataFrame, wins: pd.DataFrame, scale: str) -> list[Verdict]:
    """Of Fig 5B and 14: `fig05-win-rate` (against the twin, beside RankMe of the base) and `fig14-win-rates`."""
    reach, by, rankme = reached(bases), win_trends(wins), trends(bases, bases.text_rankme)
    if rankme.empty or not by or by["twin", "reverse", "exact"].empty:
        return [untold(claim, TOO_FEW, scale) for claim in ("fig05-win-rate", "fig14-win-rates")]
    falling = {key: outcomes(found.says, "falls") for key, found in by.items()}
    beside = {key: both_of(said, outcomes(rankme.says, "rises")) for key, said in falling.items() if key[0] == "twin"}
    slope = mean_over(100 * by["twin", "reverse", "exact"].slope)
    quantity = ("change of the win rate against the twin on B's prompts, exact checker, for each doubling of tokens "
                "(points), mean of all seeds")
    stand_in = (f"No chat was judged: the models answer problems, and an {JUDGES['exact']} or a {JUDGES['likelihood']} "
                f"stands in for a language model. From {LATE} to {reach:.0f} tokens a parameter ")
    verdict, whole, of = decided(beside, reach)
    said = {way: int((rankme.says == way).sum()) for way in ("rises", "falls")}
    change = "{:+.2f} ({:+.2f} to {:+.2f})".format(*mean_over(rankme.slope))
    points = "{:+.1f} points ({:+.1f} to {:+.1f})".format(*slope)
    first = Verdict(
        "fig05-win-rate", verdict,
        f"{stand_in}each doubling changes RankMe of the base on ordinary text by {change}, which surely rises in "
        f"{said['rises']} of {len(rankme)} seeds and surely falls in {said['falls']}, and the win rate on B's prompts, "
        f"by the exact checker, by {points}. The win rate falls {_wins_counted(falling, 'twin')}; it does so while "
        f"RankMe rises in {whole} of {of} seeds by all of these.{_short(verdict, reach)}", quantity, *slope, whole, of,
        scale)
    nearer = (" Against the twin all come nearer to one half, from above on one set's prompts and from below on the "
              "other's, as both models solve more." if drawn_nearer(wins) else "")
    verdict, whole, of = decided(falling, reach)
    second = Verdict(
        "fig14-win-rates", verdict,
        f"{stand_in}win rates fall {_wins_counted(falling, 'twin')}; and {_wins_counted(falling, 'final')}.{nearer}"
        f"{_short(verdict, reach)}", quantity, *slope, whole, of, scale)
    return [first, second]


def _wins_counted(falling: Mapping[tuple, Sequence[str]], against: str) -> str:
    """In how many seeds win rates fall, and don't, against one opponent, by prompts and judges."""
    parts = []
    for prompts, name in PROMPTS.items():
        said = [falling.get((against, prompts, judge), []) for judge in JUDGES]
        yes, no = (" and ".join(str(list(each).count(word)) for each in said) for word in ("yes", "no"))
        parts.append(f"on {name} in {yes} of {max(map(len, said))} seeds (surely not in {no})")
    return f"against {AGAINST[against]} {' and '.join(parts)}, by {' and '.join(JUDGES.values())}"


def relative(slope: tuple[float, float, float]) -> str:
    """A slope of logarithms with its interval, in percent."""
    return "{:+.1f} % ({:+.1f} to {:+.1f})".format(*(100 * np.expm1(each) for each in slope))


def scale_of(table: pd.DataFrame) -> str:
    """Sizes and tokens, in words, for a verdict."""
    return (f"{table.seed.nunique()} seeds of GPT-NeoX of {span(table.parameters)} weights, up to "
            f"{span([table.tokens.max()])} tokens of pretraining ({reached(table):.0f} a weight)")

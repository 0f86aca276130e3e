"""What the runs say of Fig 3 and of Tables 7 to 9: from tables to verdicts, and nothing is measured.

Every run says "yes", "no" or "undecided" beyond its own interval. Means over runs come with intervals that cover
another training, and, where all runs answered the same questions, other questions too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd

from reptrace.measures.phases import Phases
from reptrace.memorization.questions import Peak
from reptrace.report.over_runs import NONE, half_width, mean_over
from reptrace.report.said import side
from reptrace.report.verdicts import FEWEST, NOT, OPEN, PARTLY, REPRODUCED, Verdict, of_parts, of_runs
from reptrace.tasks.correlations import METHODS, Correlation, over_runs
from reptrace.tasks.evaluation import paired_change

GROWING, FALLING = "entropy-seeking", "compression-seeking"
PUBLISHED_SHARE = 10 / 2048  # of the directions: Table 8's smaller number, of the narrowest model there
NO_TURN = "without a turn to compare with"
TURN = "the turn of RankMe (its highest value between expansion and compression)"
# What strangers need to know of the tasks that were made here; stock tasks go by their names.
OURS = {"continuation": "continuation, our own task of short context (which words follow a passage?)",
        "cloze": "cloze, our own task of long range (which word, seen earlier in it, ends a passage?)",
        "copy": "copy, our own task of long range (how does an identifier, seen earlier in it, go on that ends a "
                "passage?)"}
EVEN = 20  # checkpoints spaced evenly in tokens: as many as the paper's p-values imply for Pythia
Interval = tuple[float, float, float]  # value, low, high; all nan where there is none


@dataclass(frozen=True)
class Course:
    """A quantity at the first checkpoint of a run, at RankMe's turn (nan without one) and at the last checkpoint, which
    lies at `tokens`."""

    first: float
    turn: float
    last: float
    tokens: float


@dataclass(frozen=True)
class Drops:
    """How many of some cases fell beyond their interval, of how many, and the least and the largest fall of those."""

    count: int
    of: int
    least: float
    most: float

    def __str__(self) -> str:
        by = f", by {self.least:.3f} to {self.most:.3f}" if self.count > 1 else f", by {self.most:.3f}" * self.count
        return f"{self.count} of {self.of} cases{by}"


def drops(cases: pd.DataFrame) -> Drops:
    """Cases (columns change, high) that fell by their whole interval; the range is of these, and of no others."""
    fell = -cases.change[cases.high < 0]
    return Drops(len(fell), len(cases), fell.min(), fell.max())


def by_mean(low: float, high: float, outcomes: Sequence[str], sign: int = 1) -> str:
    """The verdict of a mean over runs (its interval, the claimed sign) and of what each run says by itself.

    See `together`.
    """
    return together(side(low, high, sign), outcomes)


def together(mean: str, outcomes: Sequence[str]) -> str:
    """The verdict of what the mean over runs says and of what each run says by itself, all in words as of `said.side`.

    Not reproduced: no run says yes, and the mean lies beyond zero on the other side or all runs say no. Reproduced: it
    lies on the claimed side and all runs say yes. Partly: some runs say yes, and the mean says so too, or other runs
    say no. Else open, as with fewer than `FEWEST` runs.
    """
    yes = outcomes.count("yes")
    if len(outcomes) < FEWEST:
        return OPEN
    if not yes:
        return NOT if mean == "no" or set(outcomes) == {"no"} else OPEN
    if yes == len(outcomes):
        return REPRODUCED if mean == "yes" else OPEN
    return PARTLY if mean == "yes" or "no" in outcomes else OPEN


def mean_over_both(values: Sequence[Sequence[float]]) -> Interval:
    """Mean over runs and questions, (runs, questions), with a 95 % interval that covers other runs and other questions.

    All runs answer the same questions, so their errors are not independent: the variances over runs and over questions
    are added, which counts twice what is neither's (an interval that is too wide, if anything).
    """
    if len(values) < 2 or len({len(row) for row in values}) > 1:  # questions of several tokenizers are others
        return NONE, NONE, NONE
    table = np.array(values, float)
    questions = 1.96 * table.mean(0).std(ddof=1) / np.sqrt(table.shape[1])
    mean, half = table.mean(), np.hypot(half_width(table.mean(1)), questions)
    return (float(mean), float(mean - half), float(mean + half)) if np.isfinite(half) else (NONE, NONE, NONE)


def course(tokens: Sequence[float], values: Sequence[float], found: Phases) -> Course:
    """The course of a quantity along a run, by its measured checkpoints (in order); at the one nearest to the turn."""
    tokens, values = np.asarray(tokens, float), np.asarray(values, float)
    if not len(tokens):
        return Course(NONE, NONE, NONE, NONE)
    at_turn = values[np.abs(tokens - found.turn.tokens).argmin()] if found.turn else NONE
    return Course(*map(float, (values[0], at_turn, values[-1], tokens[-1])))


def memorization(peaks: Mapping[object, Peak], phases: Mapping[object, Phases], courses: Mapping[object, Course],
                 scale: str) -> Verdict:
    """Fig 3A: whether memorization peaks before the turn of RankMe, after the collapse, and gains nothing from there.

    By the place of each run's highest value, and by the mean gain from the turn to the end of training, which says "no"
    where its whole interval lies above zero: see `together`. A highest value at the end of training is no peak, so its
    place is a lower bound. A run without a turn is in no mean, and undecided.
    """
    everywhere = {run: place(peak, phases[run]) for run, peak in peaks.items()}
    places = {run: found for run, found in everywhere.items() if found != NO_TURN}
    gains = [courses[run].last - courses[run].turn for run in places]
    gain = mean_over(gains)
    said = list(places.values())
    outcomes = [{"before it": "yes", "undecided": "undecided", NO_TURN: "undecided"}.get(each, "no")
                for each in everywhere.values()]
    rises = {"yes": "no", "no": "yes"}.get(side(*gain[1:]), "yes" if np.isfinite(gain[0]) else "undecided")
    here = f"{len(said)} of {len(peaks)} runs have passed {TURN}"
    if said:
        share = [100 * peaks[run].tokens / courses[run].tokens for run in places]
        whole = [courses[run].last - courses[run].first for run in places]
        before = said.count("before it")
        peak = (f"has its peak before RankMe's turn in {before} of {len(said)} runs" if before else
                "has no peak before RankMe's turn")
        form, changes = (".3f", "still rises by") if min(gains) > 0 else ("+.3f", "changes by")
        here = (f"Agreement with the text's counts {peak}: from there to the end it {changes} {_range(gains, form)}, "
                f"of {_range(whole, form)} in all. This rank correlation is highest at {_range(share, '.0f')} % of the "
                f"training tokens ({counted(said)}). The turn is RankMe's later peak")
    return Verdict("fig03-memorization", together(rises, outcomes), f"{here}.",
                   "Spearman's correlation at the end less that at the turn, mean over runs", *gain,
                   runs=outcomes.count("yes"), of=len(outcomes), scale=scale)


def place(peak: Peak, phases: Phases) -> str:
    """Where a peak lies: "before it" (the turn), "in the collapse", "after it", "undecided" or `NO_TURN`.

    Each beyond 95 % of the resamples of the questions and the turn's own interval.
    """
    turn = phases.turn
    if turn is None or turn.open or turn.interval[0] <= 0:
        return NO_TURN
    share = peak.share_after(*turn.interval)
    if share < 0.025:
        return "in the collapse" if phases.collapse_end and peak.high <= phases.collapse_end.tokens else "before it"
    return "after it" if share > 0.975 else "undecided"


def counted(places: Sequence[str]) -> str:
    """How many runs have which of the places that `place` knows, in words."""
    told = [each for each in dict.fromkeys(places) if each not in ("undecided", NO_TURN)]
    said = [f"{each.replace(' it', ' the turn')} in {places.count(each)} of {len(places)} runs" for each in told]
    for place_, words in (("undecided", "it can't be told"), (NO_TURN, "there is no turn")):
        if many := places.count(place_):
            said.append(f"in {many}{'' if said else f' of {len(places)} runs'} {words}")
    return "; ".join(said) or "in no run"


def described(task: str) -> str:
    """A task by its name, and what it asks where it was made here."""
    return OURS.get(task, task)


def short_context(task: str, changes: pd.DataFrame, runs: int, scale: str, apart: str = "") -> Verdict:
    """Fig 3B, SciQ: whether a task of short context rises in both phases.

    `task`: its name; `changes`: a row a run and phase, columns model, phase, low, high, items (changes question by
    question); `runs`: how many there are, with and without phases; `apart`: a sentence on evidence that isn't of these
    runs.
    """
    said = {phase: [*changes[changes.phase == phase].apply(lambda row: side(row.low, row.high), axis=1)]
            for phase in (GROWING, FALLING)}
    verdict = of_parts([of_runs(_filled(each, runs)) for each in said.values()])
    risen = changes[(changes.low > 0) & changes.phase.isin(said)].groupby("model").phase.nunique()
    value = mean_over_both([*changes[changes.phase == FALLING]["items"]])
    here = f"Accuracy in {described(task)} " + ", and ".join(
        f"rises beyond its interval in the {phase} phase in {each.count('yes')} of {runs} runs and falls in "
        f"{each.count('no')}" for phase, each in said.items())
    if np.isfinite(value[0]):
        here += f"; in the latter phase it changes by {_signed(value)} on average"
    return Verdict("fig03-sciq", verdict, f"{here}.{f' {apart}' if apart else ''}",
                   "change of accuracy in the compression-seeking phase, mean over runs", *value,
                   runs=int((risen == 2).sum()), of=runs, scale=scale)


def long_range(task: str, last: Mapping[str, Sequence[float]], changes: pd.DataFrame, chance: float | None, scale: str,
               apart: str = "") -> Verdict:
    """Fig 3B, TriviaQA: whether a task that needs facts from afar rises in the compression-seeking phase alone.

    `task`: its name; `last`: model -> its last checkpoint's answers, right (1) or wrong; `changes`: as of
    `short_context`. A run that is not above chance at its end has no such skill and can't tell when it comes. Without a
    `chance`, both are of what the answers gain over those to the same questions without what stands far back.
    """
    skilled = {model for model, items in last.items() if _mean(items)[1] > (chance or 0)}
    outcomes = []
    for model in last:
        rows = changes[changes.model == model].set_index("phase")
        before = {side(row.low, row.high) for row in rows.drop(index=[FALLING, "later"], errors="ignore").itertuples()}
        there = side(rows.low[FALLING], rows.high[FALLING]) if FALLING in rows.index else "undecided"
        outcomes.append("undecided" if model not in skilled else "no" if there == "no" or "yes" in before else there)
    value = mean_over_both([*last.values()])
    means = [np.mean(items) for items in last.values()]
    does, each, quantity = (
        ("answer better with the whole passage than with its end alone,", "gains in accuracy",
         "accuracy with the whole passage less that with its end alone, after training, mean over runs")
        if chance is None else (f"are above chance ({chance:.2f})", "accuracies",
                                f"accuracy at the end, mean over runs; chance is {chance:.2f}"))
    here = (f"At the end of training {len(skilled)} of {len(last)} runs {does} beyond their interval in "
            f"{described(task)}")
    if means:
        here += f"; their {each} are {_range(means, '.3f')}"
    if len(skilled) < len(last):
        here += ". A run without the skill can't tell in which phase it comes"
    return Verdict("fig03-triviaqa", of_runs(outcomes), f"{here}.{f' {apart}' if apart else ''}", quantity, *value,
                   runs=outcomes.count("yes"), of=len(last), scale=scale)


def short_suffixes(shares: Mapping[str, Interval], scale: str) -> Verdict:
    """Table 7: whether more than half of the look-ups use four tokens and fewer.

    `shares`: infinity-gram model -> percent of its look-ups, low, high. Each counts as a run: one text in one tokenizer
    decides nothing.
    """
    outcomes = [side(low - 50, high - 50) for _, low, high in shares.values()]
    least = min(shares.values())
    half = {"yes": "more than half", "no": "less than half", "undecided": "about half"}
    said = "; ".join(f"{value:.1f} % ({low:.1f} to {high:.1f}) of the look-ups, {half[outcome]}, use four tokens and "
                     "fewer" for outcome, (value, low, high) in zip(outcomes, shares.values(), strict=True))
    which = "one text and one tokenizer" if len(shares) == 1 else f"{len(shares)} texts or tokenizers"
    few = f"; {which} can't tell what others would give" * (len(shares) < FEWEST)
    return Verdict("tab07-short", of_runs(outcomes), f"{said}{few}.",
                   "look-ups with four tokens and fewer (%)" + (", the least" if len(shares) > 1 else ""), *least,
                   runs=outcomes.count("yes"), of=len(shares), scale=scale)


def against(name: str, baseline: Sequence[float], runs: Sequence[Sequence[float]], chance: float) -> str:
    """How a baseline does beside some runs, by the same answers (right or wrong), as a sentence without its full stop.

    It beats a run, or loses to it, beyond the interval of the answers paired item by item.
    """
    share, skilled = np.mean(baseline), sum(_mean(items)[1] > chance for items in (baseline, *runs))
    beside = f"the {len(runs)} runs ({_range([np.mean(items) for items in runs], '.2f')})"
    if not skilled:
        return (f"Neither the {name} ({share:.2f}) nor any of {beside} is above chance ({chance:.2f}) beyond its "
                "interval")
    sides = [side(*paired_change(items, baseline)[1:]) for items in runs]
    return (f"Beyond the interval of paired answers, the {name} ({share:.2f}) beats {sides.count('yes')} of {beside} "
            f"and is beaten by {sides.count('no')}")


def keeps_half(before: Sequence[float], after: Sequence[float], chance: float) -> str:
    """Whether a changed model keeps more than half of its accuracy above chance, beyond the interval of the paired
    answers: "yes", "no" or "undecided"."""
    half = (np.asarray(before, float) + chance) / 2
    return side(*paired_change(half, after)[1:])


def directions(task: str, cases: pd.DataFrame, chance: float, scale: str) -> list[Verdict]:
    """Table 8: what is left without the leading directions, and with them alone.

    `task`: its name; `cases`: a row a model, kind ("remove", "keep") and k, columns width, before, after (answers,
    right or wrong) and random (accuracy with as many random directions). The paper takes 10 and 50 of 2048 and more; so
    the k whose share of the width is nearest decides, and what the others say is told beside it.
    """
    cases = cases.assign(kept=[keeps_half(row.before, row.after, chance) for row in cases.itertuples()],
                         kept_at_random=[row.random - chance > (np.mean(row.before) - chance) / 2
                                         for row in cases.itertuples()], share=cases.k / cases.width)
    return [_directions(claim, task, cases[cases.kind == kind], scale)
            for claim, kind in (("tab08-remove", "remove"), ("tab08-keep", "keep"))]


def _directions(claim: str, task: str, cases: pd.DataFrame, scale: str) -> Verdict:
    keeps = claim == "tab08-remove"  # the claim is that the accuracy is kept; otherwise, that it is lost
    does, half = ("without", "keep more than half") if keeps else ("with only", "lose more than half")
    says = {"yes": "yes", "no": "no"} if keeps else {"yes": "no", "no": "yes"}
    cases = cases.assign(outcome=cases.kept.map(says).fillna("undecided"))
    by_k = {k: list(rows.outcome) for k, rows in cases.groupby("k")}
    near = min(by_k, key=lambda k: abs(np.log(cases.share[cases.k == k] / PUBLISHED_SHARE)).mean())
    rows = cases[cases.k == near]
    changes = [np.subtract(row.after, row.before) for row in rows.itertuples()]
    at_random = [row.random - np.mean(row.before) for row in rows.itertuples()]
    noun = "leading direction" if near == 1 else "leading directions"
    of_width = f"{_range([*100 * rows.share], '.1f')} % of the directions"
    counts = [f"{each.count('yes')} of {len(each)} {does} {k}" for k, each in by_k.items() if k != near]
    here = (f"{by_k[near].count('yes')} of {len(rows)} models {half} of their accuracy above chance {does} {near} "
            f"{noun} ({of_width}, the share nearest to the paper's), beyond the interval. Accuracy in "
            f"{described(task)} then changes by {_range([change.mean() for change in changes], '+.3f')}; with as many "
            f"random directions instead, by {_range(at_random, '+.3f')}, and "
            f"{(rows.kept_at_random == keeps).sum()} of {len(rows)} models {half}, too")
    if counts:
        here += f". With other numbers of them, which do not decide: {', '.join(counts)}"
    return Verdict(claim, of_runs(by_k[near]), f"{here}.",
                   f"change of accuracy {does} k = {near} ({of_width}), mean over models", *mean_over_both(changes),
                   runs=by_k[near].count("yes"), of=len(rows), scale=scale)


def even_in_tokens(tokens: Sequence[float], count: int = EVEN) -> np.ndarray:
    """Which checkpoints lie nearest to `count` even steps in tokens, from the first step to the last: indices, each
    once."""
    tokens = np.asarray(tokens, float)
    steps = np.linspace(0, tokens.max(initial=0), count + 1)[1:]
    return np.unique([np.abs(tokens - step).argmin() for step in steps]) if len(tokens) else np.arange(0)


def correlation(claim: str, measure: str, sign: int, readings: Mapping[str, pd.DataFrame], runs: int, scale: str,
                apart: str = "") -> Verdict:
    """Table 9: whether accuracy correlates with a measure with the claimed sign, over the whole training.

    `readings`: how checkpoints are spaced, in words -> rows of `correlations.table` of single runs; `runs`: how many
    there are, with and without a correlation; `apart`: a sentence more. Neither the paper's coefficient nor its
    checkpoints are known here, so Pearson's and Spearman's must both say it with every spacing, each by its mean over
    runs.
    """
    parts, means, signs, spread = [], [], {}, []
    for spacing, found in readings.items():
        plain = found[(found.measure == measure) & (found.kind == "plain")]
        said = []
        for method in METHODS:
            rows = plain[plain.method == method].set_index("model")
            sides = pd.Series([side(row.low, row.high, sign) for row in rows.itertuples()], rows.index, dtype=str)
            signs[spacing, method] = sides
            means.append(_correlation_over_runs(rows))
            parts.append(by_mean(*means[-1][1:], _filled(list(sides), runs), sign))
            if np.isfinite(means[-1][0]):
                said.append(f"{method.capitalize()}'s {_signed(means[-1], '+.2f')}")
        spread += [f"over checkpoints {spacing}, the mean correlation over runs is {' and '.join(said)}"] * bool(said)
    claimed, opposite = (pd.DataFrame(signs).eq(word).all(axis=1).sum() for word in ("yes", "no"))
    means_of = "; ".join(spread) or "too few runs have a correlation"
    here = (f"{means_of[0].upper()}{means_of[1:]}. By both coefficients and with every spacing, the claimed sign is "
            f"seen beyond the interval in {claimed} of {runs} runs, the opposite sign in {opposite}")
    return Verdict(claim, of_parts(parts), f"{here}.{f' {apart}' if apart else ''}",
                   f"Pearson's correlation over checkpoints {next(iter(readings))}, mean over runs", *means[0],
                   runs=int(claimed), of=runs, scale=scale)


def _correlation_over_runs(rows: pd.DataFrame) -> Interval:
    """The mean, in Fisher's z, of all runs: sizes and seeds alike count as other runs of such a suite."""
    each = [Correlation(**{field.name: row[field.name] for field in fields(Correlation)})
            for row in rows.to_dict("records")]
    mean = over_runs(each) if len(each) > 1 else None
    return (mean.value, mean.low, mean.high) if mean else (NONE, NONE, NONE)


def stretches(tokens: Sequence[float], phases: Phases) -> tuple[int, int, int]:
    """How many checkpoints lie in the warmup, from its end to the turn, and after the turn.

    Those at 0 tokens are left out, as they are of correlations. Turn and end of the collapse must have been seen.
    """
    tokens = np.asarray(tokens, float)
    low, turn = phases.collapse_end.tokens, phases.turn.tokens
    return int(((tokens > 0) & (tokens < low)).sum()), int(((tokens >= low) & (tokens <= turn)).sum()), int(
        (tokens > turn).sum())


def most_before(counts: Sequence[float]) -> str:
    """Whether most checkpoints of a run lie before the turn, by their numbers in its three stretches, in words."""
    warmup, rise, fall = counts
    if rise > fall:
        return "with the warmup or without it"
    return "only if the warmup is counted" if warmup + rise > fall else "not even with the warmup"


def _mean(items: Sequence[float]) -> Interval:
    return paired_change(np.zeros(len(items)), items)


def _filled(outcomes: list[str], runs: int) -> list[str]:
    """With those of the runs that say nothing."""
    return outcomes + ["undecided"] * (runs - len(outcomes))


def _signed(found: Interval, form: str = "+.3f") -> str:
    return "{} ({} to {})".format(*(format(each, form) for each in found))


def _range(values: Sequence[float], form: str) -> str:
    """Smallest to largest, or the one value."""
    ends = dict.fromkeys(format(float(each), form) for each in (min(values), max(values)))
    return " to ".join(ends)

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
from reptrace.report.verdicts import FEWEST, NOT, OPEN, PARTLY, REPRODUCED, Verdict, of_parts, of_runs
from reptrace.tasks.correlations import METHODS, Correlation, over_runs
from reptrace.tasks.evaluation import paired_change

GROWING, FALLING = "entropy-seeking", "compression-seeking"
PUBLISHED_SHARE = 10 / 2048  # of the directions: Table 8's smaller number, of the narrowest model there
NO_TURN = "without a turn to compare with"
Interval = tuple[float, float, float]  # value, low, high; all nan where there is none


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


def side(low: float, high: float, sign: int = 1) -> str:
    """Whether a whole interval lies on the claimed side of zero: "yes", "no" (on the other) or "undecided"."""
    return "yes" if min(sign * low, sign * high) > 0 else "no" if max(sign * low, sign * high) < 0 else "undecided"


def by_mean(low: float, high: float, outcomes: Sequence[str], sign: int = 1) -> str:
    """The verdict of a mean over runs (its interval, the claimed sign) and of what each run says by itself.

    Not reproduced: no run says yes, and the mean lies beyond zero on the other side or all runs say no. Reproduced: it
    lies on the claimed side and all runs say yes. Partly: some runs say yes, and the mean says so too, or other runs
    say no. Else open, as with fewer than `FEWEST` runs.
    """
    mean, yes = side(low, high, sign), outcomes.count("yes")
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


def memorization(peaks: Mapping[object, Peak], phases: Mapping[object, Phases], scale: str) -> Verdict:
    """Fig 3A: whether memorization peaks before the turn of RankMe, after the collapse.

    By the mean over runs of ln(tokens at the peak / tokens at the turn), see `by_mean`. A run without a turn is in no
    mean, and undecided.
    """
    places = {run: place(peak, phases[run]) for run, peak in peaks.items()}
    turned = [run for run, found in places.items() if found != NO_TURN]
    # a peak before any training counts as one at the first token: it has no logarithm
    value, low, high = mean_over([np.log(max(peaks[run].tokens, 1) / phases[run].turn.tokens) for run in turned])
    said = list(places.values())
    outcomes = [{"before it": "yes", "undecided": "undecided", NO_TURN: "undecided"}.get(each, "no") for each in said]
    here = f"{len(turned)} of {len(peaks)} runs have a turn to compare the peak with"
    if len(turned) > 1:
        here = (f"Against the turn of RankMe, the peak of memorization comes {counted(said)}, on average at "
                f"{_ratio(value, low, high)} times the turn's tokens")
    if peaks:
        here += f"; from the peak to the end it changes by {_range([peak.fall[0] for peak in peaks.values()], '+.3f')}"
    return Verdict("fig03-memorization", by_mean(low, high, outcomes, -1), f"{here}.",
                   "tokens at the peak over tokens at RankMe's turn, geometric mean over runs",
                   *np.exp([value, low, high]),
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
    return f"{', '.join(f'{each} in {places.count(each)}' for each in dict.fromkeys(places))} of {len(places)} runs"


def short_context(changes: pd.DataFrame, runs: int, scale: str, apart: str = "") -> Verdict:
    """Fig 3B, SciQ: whether a task of short context rises in both phases.

    `changes`: a row a run and phase, columns model, phase, low, high, items (changes question by question); `runs`: how
    many there are, with and without phases; `apart`: a sentence on evidence that isn't of these runs.
    """
    said = {phase: [*changes[changes.phase == phase].apply(lambda row: side(row.low, row.high), axis=1)]
            for phase in (GROWING, FALLING)}
    verdict = of_parts([of_runs(_filled(each, runs)) for each in said.values()])
    risen = changes[(changes.low > 0) & changes.phase.isin(said)].groupby("model").phase.nunique()
    value = mean_over_both([*changes[changes.phase == FALLING]["items"]])
    here = "Accuracy " + "; ".join(f"rises beyond its interval in the {phase} phase in {each.count('yes')} of {runs} "
                                   f"runs and falls in {each.count('no')}" for phase, each in said.items())
    if np.isfinite(value[0]):
        here += f"; there by {_signed(value)} on average"
    return Verdict("fig03-sciq", verdict, f"{here}.{f' {apart}' if apart else ''}",
                   "change of accuracy in the compression-seeking phase, mean over runs", *value,
                   runs=int((risen == 2).sum()), of=runs, scale=scale)


def long_range(last: Mapping[str, Sequence[float]], changes: pd.DataFrame, chance: float, scale: str, apart: str = ""
               ) -> Verdict:
    """Fig 3B, TriviaQA: whether a task that needs facts from afar rises in the compression-seeking phase alone.

    `last`: model -> its last checkpoint's answers, right (1) or wrong; `changes`: as of `short_context`. A run that is
    not above chance at its end has no such skill and can't tell when it comes.
    """
    skilled = {model for model, items in last.items() if _mean(items)[1] > chance}
    outcomes = []
    for model in last:
        rows = changes[changes.model == model].set_index("phase")
        before = {side(row.low, row.high) for row in rows.drop(index=[FALLING, "later"], errors="ignore").itertuples()}
        there = side(rows.low[FALLING], rows.high[FALLING]) if FALLING in rows.index else "undecided"
        outcomes.append("undecided" if model not in skilled else "no" if there == "no" or "yes" in before else there)
    value = mean_over_both([*last.values()])
    accuracies = [np.mean(items) for items in last.values()]
    here = (f"At the end of training {len(skilled)} of {len(last)} runs are above chance ({chance:.2f}) beyond their "
            f"interval; accuracy {_range(accuracies, '.3f')}")
    if len(skilled) < len(last):
        here += ". A run without the skill can't tell in which phase it comes"
    return Verdict("fig03-triviaqa", of_runs(outcomes), f"{here}.{f' {apart}' if apart else ''}",
                   f"accuracy at the end, mean over runs; chance is {chance:.2f}", *value,
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
    few = f"; fewer than {FEWEST} texts or tokenizers can't tell what others would give" * (len(shares) < FEWEST)
    return Verdict("tab07-short", of_runs(outcomes), f"{said}{few}.",
                   "look-ups with four tokens and fewer (%)" + (", the least" if len(shares) > 1 else ""), *least,
                   runs=outcomes.count("yes"), of=len(shares), scale=scale)


def against(name: str, baseline: float, accuracies: Sequence[float]) -> str:
    """How a baseline does beside some runs, as a sentence without its full stop."""
    beaten = sum(each < baseline for each in accuracies)
    return (f"The {name} ({baseline:.2f}) beats {beaten} of {len(accuracies)} runs "
            f"({_range(accuracies, '.2f')})")


def keeps_half(before: Sequence[float], after: Sequence[float], chance: float) -> str:
    """Whether a changed model keeps more than half of its accuracy above chance, beyond the interval of the paired
    answers: "yes", "no" or "undecided"."""
    half = (np.asarray(before, float) + chance) / 2
    return side(*paired_change(half, after)[1:])


def directions(cases: pd.DataFrame, chance: float, scale: str) -> list[Verdict]:
    """Table 8: what is left without the leading directions, and with them alone.

    `cases`: a row a model, kind ("remove", "keep") and k, columns width, before, after (answers, right or wrong) and
    random (accuracy with as many random directions). The paper takes 10 and 50 of 2048 and more; so the k whose share
    of the width is nearest decides what is counted, and all k must agree for a verdict that isn't partly.
    """
    cases = cases.assign(kept=[keeps_half(row.before, row.after, chance) for row in cases.itertuples()],
                         share=cases.k / cases.width)
    return [_directions(claim, cases[cases.kind == kind], says, scale)
            for claim, kind, says in (("tab08-remove", "remove", {"yes": "yes", "no": "no"}),
                                      ("tab08-keep", "keep", {"yes": "no", "no": "yes"}))]


def _directions(claim: str, cases: pd.DataFrame, says: Mapping[str, str], scale: str) -> Verdict:
    cases = cases.assign(outcome=cases.kept.map(says).fillna("undecided"))
    by_k = {k: list(rows.outcome) for k, rows in cases.groupby("k")}
    near = min(by_k, key=lambda k: abs(np.log(cases.share[cases.k == k] / PUBLISHED_SHARE)).mean())
    rows = cases[cases.k == near]
    value = mean_over_both([np.subtract(row.after, row.before) for row in rows.itertuples()])
    does, half = {"tab08-remove": ("without", "keep more than half"),
                  "tab08-keep": ("with only", "lose more than half")}[claim]
    counts = ", ".join(f"{each.count('yes')} of {len(each)} {does} {k}" for k, each in by_k.items())
    changed = [np.subtract(row.after, row.before).mean() for row in rows.itertuples()]
    at_random = [row.random - np.mean(row.before) for row in rows.itertuples()]
    contrary = sum(each.count("no") for each in by_k.values())
    here = (f"Models that {half} of their accuracy above chance, beyond the interval: {counts} directions; "
            f"in {contrary} of {len(cases)} cases a model surely does not. {does.capitalize()} {near}, "
            f"accuracy changes by {_range(changed, '+.3f')}, with as many random directions by "
            f"{_range(at_random, '+.3f')}.")
    return Verdict(claim, of_parts([of_runs(each) for each in by_k.values()]), here,
                   f"change of accuracy {does} k = {near} ({_range([*100 * rows.share], '.1f')} % of the directions), "
                   "mean over models", *value,
                   runs=by_k[near].count("yes"), of=len(rows), scale=scale)


def correlation(claim: str, measure: str, sign: int, found: pd.DataFrame, runs: int, scale: str, apart: str = ""
                ) -> Verdict:
    """Table 9: whether accuracy correlates with a measure with the claimed sign, over the whole training.

    `found`: rows of `correlations.table` of single runs; `runs`: how many there are, with and without a correlation;
    `apart`: a sentence more. The paper's coefficient is not known here, so Pearson's and Spearman's must both say it,
    each by its mean over runs.
    """
    plain = found[(found.measure == measure) & (found.kind == "plain")]
    parts, means, signs = [], {}, {}
    for method in METHODS:
        rows = plain[plain.method == method].set_index("model")
        signs[method] = pd.Series([side(row.low, row.high, sign) for row in rows.itertuples()], rows.index, dtype=str)
        means[method] = _correlation_over_runs(rows)
        parts.append(by_mean(*means[method][1:], _filled(list(signs[method]), runs), sign))
    claimed = pd.DataFrame(signs).eq("yes").all(axis=1).sum()
    spread = "; ".join(f"{method.capitalize()}'s {_signed(mean, '+.2f')} over runs, single ones "
                       f"{_range([*plain.value[plain.method == method]], '+.2f')}"
                       for method, mean in means.items() if np.isfinite(mean[0]))
    here = (f"{spread or 'Too few runs have a correlation'}. Of the claimed sign beyond the interval, by both "
            f"coefficients, in {claimed} of {runs} runs")
    return Verdict(claim, of_parts(parts), f"{here}.{f' {apart}' if apart else ''}",
                   "Pearson's correlation over all checkpoints, mean over runs", *means[METHODS[0]], runs=int(claimed),
                   of=runs, scale=scale)


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


def _ratio(value: float, low: float, high: float) -> str:
    return "{:.1f} ({:.1f} to {:.1f})".format(*np.exp([value, low, high]))


def _range(values: Sequence[float], form: str) -> str:
    """Smallest to largest, or the one value."""
    ends = dict.fromkeys(format(float(each), form) for each in (min(values), max(values)))
    return " to ".join(ends)

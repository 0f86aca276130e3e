"""What the pages of Fig 3 and Tables 7 to 9 conclude of their tables.

Trusted: planted tables, whose counts, ranges and verdicts are known, and simulated runs that share their questions,
whose true mean is known.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from reptrace.checkpoints import published
from reptrace.checkpoints.suites import suite
from reptrace.measures.phases import Phases, Turn
from reptrace.memorization.questions import Peak
from reptrace.report import capabilities
from reptrace.report import capability_verdicts as verdicts
from reptrace.report.verdicts import NOT, OPEN, PARTLY, REPRODUCED, claims
from reptrace.tasks import correlations

NAN = float("nan")


def test_a_range_is_of_the_cases_that_are_counted_and_of_no_others():
    cases = pd.DataFrame({"change": [-0.01, -0.05, -0.2, 0.3], "high": [0.02, -0.01, -0.1, 0.4]})
    found = verdicts.drops(cases)  # 0.01 fell less, but within its interval
    assert (found.count, found.of, found.least, found.most) == (2, 4, 0.05, 0.2)
    assert str(found) == "2 of 4 cases, by 0.050 to 0.200"
    assert str(verdicts.drops(cases[:1])) == "0 of 1 cases"
    assert str(verdicts.drops(cases[1:2])) == "1 of 1 cases, by 0.050"


def test_a_mean_over_runs_and_questions_covers_other_runs_and_other_questions(rng):
    covered = 0
    for _ in range(300):
        run, question = rng.normal(0, 0.1, (5, 1)), rng.normal(0, 1, (1, 200))
        _, low, high = verdicts.mean_over_both(run + question + rng.normal(0, 1, (5, 200)))
        covered += low <= 0 <= high
    # 95 % or more: three standard errors of a count of 300 are 3.8 %. Either variance by itself covers less than 80 %.
    assert covered / 300 > 0.95 - 0.038
    assert np.isnan(verdicts.mean_over_both([[1.0, 0.0], [1.0]])).all()


@pytest.mark.parametrize(("low", "high", "outcomes", "expected"), [
    (0.1, 0.3, ["yes"] * 3, REPRODUCED), (0.1, 0.3, ["yes", "yes", "yes", "undecided", "undecided"], PARTLY),
    (0.1, 0.3, ["undecided"] * 3, OPEN), (-0.3, -0.1, ["no", "undecided", "no"], NOT),
    (-0.3, -0.1, ["yes", "no", "no"], PARTLY), (-0.1, 0.3, ["yes", "undecided", "yes"], OPEN),
    (-0.1, 0.3, ["yes", "no", "yes"], PARTLY), (0.1, 0.3, ["yes"] * 2, OPEN), (NAN, NAN, [], OPEN)])
def test_a_verdict_is_no_stronger_than_the_mean_and_the_single_runs(low, high, outcomes, expected):
    assert verdicts.by_mean(low, high, outcomes) == expected


# Fig 3


def phases(collapse_end=1e5, turn=1e6, interval=(9e5, 1.1e6)):
    at = Turn(collapse_end, 2, 0.1, 3, (collapse_end, collapse_end), "")
    return Phases(at, Turn(turn, 9, 0.1, 9, interval, ""), None, None, None, [])


def peak(tokens):
    return Peak(tokens, tokens, tokens, 0.2, (0.1, 0.05, 0.15), (0.0, -0.01, 0.0), np.full(100, tokens))


def course(gain):
    return verdicts.Course(0.1, 0.2, 0.2 + gain, 1e7)


@pytest.mark.parametrize(("tokens", "gains", "expected"), [
    ([8e6, 4e6, 8e6, 9e6, 7e6], [0.1] * 5, NOT), ([8e6, 1e6, 1e6], [0.1, 0.11, 0.12], NOT),
    ([8e6, 1e6, 1e6], [0.1, -0.1, 0.0], OPEN), ([7e5, 8e5, 6e5], [0.0, -0.01, 0.01], REPRODUCED),
    ([7e5, 8e5, 6e5], [0.1, 0.11, 0.12], OPEN), ([7e5, 8e6, 9e6], [0.1] * 3, PARTLY),
    ([5e4, 2e4, 6e4], [0.0] * 3, NOT), ([8e6, 8e6], [0.1] * 2, OPEN), ([], [], OPEN)])
def test_memorization_that_gains_after_the_turn_is_not_as_claimed(tokens, gains, expected):
    peaks = dict(enumerate(map(peak, tokens)))
    found = verdicts.memorization(peaks, dict.fromkeys(peaks, phases()), dict(enumerate(map(course, gains))), "tiny")
    assert found.verdict == expected
    assert (found.runs, found.of) == (sum(1e5 < each < 9e5 for each in tokens), len(tokens))
    if len(gains) > 1:
        assert found.value == pytest.approx(np.mean(gains))


def test_runs_without_a_turn_decide_nothing_about_memorization():
    nothing = Phases(None, None, None, None, None, [])
    found = verdicts.memorization({0: peak(0.0), 1: peak(8e6), 2: peak(8e6)}, dict.fromkeys(range(3), nothing),
                                  dict.fromkeys(range(3), course(NAN)), "tiny")
    assert (found.verdict, found.runs, found.of) == (OPEN, 0, 3) and np.isnan(found.value)


def test_a_course_is_read_at_the_checkpoint_nearest_to_the_turn():
    found = verdicts.course([1e5, 1.1e6, 4e6], [0.1, 0.2, 0.5], phases())
    assert found == verdicts.Course(0.1, 0.2, 0.5, 4e6)
    assert np.isnan(verdicts.course([], [], phases()).turn)


def test_places_are_counted_in_words():
    some = ["after it"] * 3 + ["undecided"] * 2
    assert verdicts.counted(some) == "after the turn in 3 of 5 runs; in 2 it can't be told"
    assert verdicts.counted([verdicts.NO_TURN]) == "in 1 of 1 runs there is no turn" and verdicts.counted([])


def test_a_peak_before_the_turn_of_a_run_without_a_collapse_is_before_it():
    assert verdicts.place(peak(5e4), replace(phases(), collapse_end=None)) == "before it"
    assert verdicts.place(peak(5e4), phases()) == "in the collapse"


def changes(**rises):
    """Runs of 100 questions: model -> mean change in the two phases; the interval is 0.02 to either side."""
    rows = [{"model": model, "phase": phase, "low": mean - 0.02, "high": mean + 0.02,
             "items": mean + np.tile([-0.1, 0.1], 50)} for model, means in rises.items()
            for phase, mean in zip((verdicts.GROWING, verdicts.FALLING), means, strict=True)]
    return pd.DataFrame(rows, columns=["model", "phase", "low", "high", "items"])


def test_a_rise_in_both_phases_must_be_seen_in_every_run():
    every = verdicts.short_context("continuation", changes(a=(0.1, 0.1), b=(0.1, 0.2), c=(0.2, 0.1)), 3, "")
    assert every.verdict == REPRODUCED and "our own task" in every.here
    some = verdicts.short_context("continuation", changes(a=(0.1, 0.1), b=(0.1, 0.01), c=(0.2, 0.01)), 3, "")
    assert (some.verdict, some.runs, some.of) == (PARTLY, 1, 3)
    assert some.value == pytest.approx(0.04)
    fallen = changes(a=(-0.1, -0.1), b=(-0.1, -0.1), c=(-0.1, -0.1))
    assert verdicts.short_context("continuation", fallen, 3, "").verdict == NOT


def test_without_phases_nothing_is_said_of_tasks():
    found = verdicts.short_context("continuation", changes(), 3, "")
    assert (found.verdict, found.runs, found.of) == (OPEN, 0, 3) and np.isnan(found.value)


def test_a_skill_that_no_model_has_comes_in_no_phase():
    def told(last, **rises):
        return verdicts.long_range("cloze", dict.fromkeys("abc", np.tile(last, 50)), changes(**rises), 0.25, "")

    at_chance, skilled = [1, 0, 0, 0], [1, 1, 1, 0]
    found = told(at_chance, a=(0, 0.1), b=(0, 0.1), c=(0, 0.1))
    assert (found.verdict, found.runs, found.value) == (OPEN, 0, 0.25)
    assert told(skilled, a=(0, 0.1), b=(0, 0.1), c=(0, 0.1)).verdict == REPRODUCED
    assert told(skilled, a=(0.1, 0.1), b=(0.1, 0.1), c=(0.1, 0)).verdict == NOT
    assert told(skilled).verdict == OPEN


def test_what_is_gained_from_far_back_needs_no_chance():
    def told(gains, **rises):
        return verdicts.long_range("copy", dict.fromkeys("abc", np.tile(gains, 50)), changes(**rises), None, "")

    late = {"a": (0, 0.1), "b": (0, 0.1), "c": (0, 0.1)}
    found = told([1, 0, 0, 0], **late)  # a quarter of the answers is right only with the whole passage
    assert (found.verdict, found.runs, found.value) == (REPRODUCED, 3, 0.25) and "end alone" in found.here
    nothing = told([1, -1, 0, 0], **late)  # as many are right with the end alone
    assert (nothing.verdict, nothing.runs) == (OPEN, 0) and "0 of 3 runs answer better" in nothing.here


def test_a_gain_is_of_the_same_items_and_a_gap_where_either_is():
    def answers(*items):
        return pd.DataFrame({"model": "m", "revision": list("abc"), "tokens": [1, 2, 3], "items": list(items),
                             "status": ["failed" if each is None else "measured" for each in items]})

    far, near = answers([1, 1, 0, 1], [1, 0, 0, 0], None), answers([0, 1, 0, 0], None, [1, 1, 1, 1])
    found = capabilities.gain(far, near, "more")
    assert found.status.tolist() == ["measured", "failed", "failed"] and found.tokens.tolist() == [1, 2, 3]
    assert found["items"][0].tolist() == [1, 0, 0, 1] and found["items"][1] is None
    assert (found.more[0], found.more_stderr[0]) == (0.5, pytest.approx(np.std([1, 0, 0, 1], ddof=1) / 2))
    assert found.more[1:].isna().all()
    assert capabilities.gain(far[:0], near, "more").empty


def right(share, items=400):
    return (np.arange(items) < share * items).astype(float)


def test_a_baseline_beats_a_model_only_beyond_the_interval_and_only_above_chance():
    runs = [right(0.4), right(0.6), right(0.499)]  # of the last, one answer of 400 differs: within its interval
    assert verdicts.against("5-gram model", right(0.5), runs, 0.25) == (
        "Beyond the interval of paired answers, the 5-gram model (0.50) beats 1 of the 3 runs (0.40 to 0.60) and is "
        "beaten by 1")
    assert verdicts.against("5-gram model", right(0.25), [right(0.23), right(0.26)], 0.25) == (
        "Neither the 5-gram model (0.25) nor any of the 2 runs (0.23 to 0.26) is above chance (0.25) beyond its "
        "interval")


# Tables 7 to 9


def test_one_text_and_tokenizer_decide_nothing_about_suffixes():
    assert verdicts.short_suffixes({"a": (40.0, 39.0, 41.0)}, "").verdict == OPEN
    three = verdicts.short_suffixes({"a": (60.0, 59.0, 61.0), "b": (70.0, 69.0, 71.0), "c": (55.0, 54.0, 56.0)}, "")
    assert (three.verdict, three.value, three.runs) == (REPRODUCED, 55.0, 3)


@pytest.mark.parametrize(("after", "expected"), [(0.65, "yes"), (0.3, "no"), (0.5, "undecided")])
def test_half_of_what_lies_above_chance_is_kept_beyond_the_interval(after, expected):
    assert verdicts.keeps_half(right(0.75), right(after), 0.25) == expected


def cases(**after):
    """Three models alike, of 16 directions: name "remove_1" -> accuracy after it; untouched 0.75."""
    return pd.DataFrame([{"model": model, "kind": name.split("_")[0], "k": int(name.split("_")[1]), "width": 16,
                          "before": right(0.75), "after": right(share), "random": 0.7}
                         for model in "abc" for name, share in after.items()])


def test_the_number_of_directions_nearest_to_the_published_share_decides():
    found = verdicts.directions("continuation", cases(remove_1=0.7, remove_10=0.3, keep_1=0.3, keep_10=0.7), 0.25, "")
    assert [(each.claim, each.verdict) for each in found] == [("tab08-remove", REPRODUCED), ("tab08-keep", REPRODUCED)]
    remove, keep = found
    assert (remove.runs, remove.of) == (3, 3) and remove.value == pytest.approx(-0.05)
    assert "which do not decide: 0 of 3 without 10" in remove.here
    # random directions leave 0.7, more than half of what 0.75 has above 0.25: they keep, and so do not lose
    assert "3 of 3 models keep more than half, too" in remove.here
    assert "0 of 3 models lose more than half, too" in keep.here


def test_the_shares_that_the_claims_name_are_those_of_the_published_table():
    widths = [suite(name.lower().replace("olmo-2", "olmo2")).shape["width"] for name in set(published.table(8).model)]
    named = claims()[claims().id.isin(["tab08-remove", "tab08-keep"])].decided_by
    assert named.str.contains(f"{1000 / max(widths):.2g} to {5000 / min(widths):.2g} %", regex=False).all()


def test_models_that_answer_all_alike_do_not_break_the_verdict():
    flat = cases(remove_1=0.75, keep_1=0.75).assign(before=[right(0)] * 6, after=[right(0)] * 6)
    assert [each.verdict for each in verdicts.directions("sciq", flat[flat.model == "a"], 0.25, "")] == [OPEN, OPEN]


def correlated(rng, sign, runs=4):
    """Table of runs whose accuracy follows the measure, with this sign."""
    found = []
    for number in range(runs):
        tokens, x = np.geomspace(1e5, 1e7, 30), np.linspace(0, 1, 30)
        one = pd.DataFrame({"tokens": tokens, "accuracy": sign * x + 0.05 * rng.standard_normal(30), "alpha": x})
        found.append(correlations.table(one, measures="alpha", draws=100).assign(model=f"run {number}"))
    return pd.concat(found)


def concluded(runs, log, even=None):
    readings = {"spaced evenly in log tokens": log, "spaced evenly in tokens": log if even is None else even}
    return verdicts.correlation("tab09-alpha", "alpha", 1, readings, runs, "")


def test_the_sign_of_a_correlation_is_told_from_all_runs(rng):
    assert concluded(4, correlated(rng, 1)).verdict == REPRODUCED
    against = concluded(4, correlated(rng, -1))
    assert (against.verdict, against.runs, against.of) == (NOT, 0, 4) and against.high < 0
    both = pd.concat([correlated(rng, 1, 2), correlated(rng, -1, 2).assign(model=lambda t: t.model + "b")])
    assert concluded(4, both).verdict == PARTLY


def test_a_sign_that_hangs_on_the_spacing_of_checkpoints_is_not_told(rng):
    mixed = pd.concat([correlated(rng, sign, 1).assign(model=f"run {number}")
                       for number, sign in enumerate([-1, 0, 0, -1])])
    found = concluded(4, correlated(rng, -1), mixed)
    assert (found.verdict, found.runs) == (OPEN, 0) and found.high < 0
    assert concluded(4, correlated(rng, 1), mixed).verdict == PARTLY


def test_a_run_without_a_correlation_shows_none(rng):
    found = concluded(5, correlated(rng, 1))
    assert (found.verdict, found.runs, found.of) == (PARTLY, 4, 5)


def test_without_any_correlation_it_is_left_open(rng):
    found = concluded(3, correlated(rng, 1)[:0])
    assert (found.verdict, found.runs, found.of) == (OPEN, 0, 3) and np.isnan(found.value)


def test_checkpoints_spaced_evenly_in_tokens_are_the_nearest_to_even_steps_each_once():
    tokens = np.array([0, 1, 2, 4, 8, 16, 32])
    assert list(verdicts.even_in_tokens(tokens, 4)) == [4, 5, 6]  # steps 8, 16, 24 (as near to 16 as to 32), 32
    assert list(verdicts.even_in_tokens(tokens, 32)) == [1, 2, 3, 4, 5, 6]
    assert not len(verdicts.even_in_tokens([]))


def test_whether_most_checkpoints_lie_before_the_turn_depends_on_the_warmup():
    tokens = [0, 1e4, 5e4, 8e4, 1e5, 5e5, 1e6, 2e6, 4e6, 8e6]
    counts = verdicts.stretches(tokens, phases())
    assert counts == (3, 3, 3)  # the step before training has no logarithm
    assert verdicts.most_before(counts) == "only if the warmup is counted"
    assert verdicts.most_before((0, 3, 2)) == "with the warmup or without it"
    assert verdicts.most_before((1, 1, 5)) == "not even with the warmup"

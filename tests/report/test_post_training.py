"""What the pages on post-training read off their tables, and their verdicts.

Trusted: effects that were planted, what must follow from a table by hand, enumeration of drawn answers, scipy's lines.
"""

import math

import numpy as np
import pandas as pd
import planted_posttraining as planted
import pytest
from scipy.stats import linregress, t

from reptrace.measures import pass_at_k
from reptrace.report import post_training as post
from reptrace.report import post_training_passes as solved
from reptrace.report import robustness
from reptrace.report.verdicts import NOT, OPEN, PARTLY, REPRODUCED


def all_of(stage, gain):
    return {(probe, "sequence", stage): gain for probe in post.PROBES}


# Stages


@pytest.mark.parametrize(("gains", "seeds", "verdict", "whole"), [
    ({}, 5, REPRODUCED, 5), ({}, 2, OPEN, 2), (all_of("RLVR", 0.5), 5, PARTLY, 0),
    (all_of("SFT", -1) | all_of("DPO", -1) | all_of("RLVR", 1), 5, NOT, 0),
    (all_of("SFT", 0.01) | all_of("DPO", 0.01) | all_of("RLVR", 0.01), 5, OPEN, 0),
    ({("text", "sequence", "RLVR"): 0.5}, 5, PARTLY, 0)])
def test_the_verdict_on_the_stages_is_that_of_what_was_planted(gains, seeds, verdict, whole):
    found = post.stages_verdict(post.changes(planted.stages(gains, seeds)), "small")
    assert (found.verdict, found.runs, found.of) == (verdict, whole, seeds)


def test_seeds_that_disagree_leave_a_stage_in_part_and_one_that_cannot_be_told_leaves_it_open():
    table = planted.stages()
    here = table.seed.eq(3) & table.stage.eq("SFT")
    for change, verdict in ((-1.0, PARTLY), (0.01, OPEN)):
        changed = table.assign(text_rankme_change=table.text_rankme_change.mask(here, change))
        row = post.stage_summary(post.changes(changed)).query("stage == 'SFT' and probe == 'text'").iloc[0]
        assert row.statistic == "rankme" and row.verdict == verdict and row.rises == 4


def test_the_whole_pattern_is_counted_by_seed():
    says = post.patterns(post.changes(planted.stages({("text", "sequence", "RLVR"): 0.5})), "sequence", "text")
    assert list(says) == ["SFT", "DPO", "RLVR"] and not post.whole_pattern(says).any()
    assert post.whole_pattern(post.patterns(post.changes(planted.stages()), "sequence", "prompts")).all()


def test_a_change_has_its_paired_interval_and_beside_it_the_unpaired_error():
    found = post.changes(planted.stages(stderr=0.02)).query("stage == 'SFT' and statistic == 'rankme'")
    np.testing.assert_allclose(found.high - found.low, 2 * 1.96 * 0.02)
    np.testing.assert_allclose(found.alone, math.sqrt(2) * 0.3)  # two errors of 0.3


def test_what_a_stage_began_from_is_the_end_of_the_stage_before_and_the_base_for_the_first():
    table = planted.stages()
    assert post.began_from("sequence", "RLVR") == ("sequence", "DPO")
    assert post.began_from("direct", "RLVR") == post.began_from("sequence", "SFT") == post.BASE
    its = post.along(table, "sequence", "RLVR").query("seed == 0")
    assert list(its.step) == [0, 20, 40, 60]
    assert its.text_rankme.iloc[0] == post.ends(table).text_rankme["sequence", "DPO", 0]
    # Changes along a stage start there: planted as steps in proportion
    np.testing.assert_allclose(its.text_rankme.diff()[1:], -0.5 / 3)


def test_places_along_an_arm_begin_at_the_base_and_each_stage_takes_one():
    its = post.placed(planted.stages(), "sequence", ["text_rankme"]).query("seed == 2")
    np.testing.assert_allclose(its.place, [0, 0.5, 1, 2, 2 + 1 / 3, 2 + 2 / 3, 3])
    np.testing.assert_allclose(its.text_rankme, [0, 0.5, 1, 1.5, 1.5 - 1 / 6, 1.5 - 1 / 3, 1])
    direct = post.placed(planted.stages(), "direct", ["text_rankme"]).query("seed == 2")
    np.testing.assert_allclose(direct.place, [0, 1 / 3, 2 / 3, 1])


def test_one_group_decides_and_others_stand_beside():
    table = pd.concat([planted.stages(seeds=3, group="gpu"), planted.stages()])
    assert post.groups(table) == ["cpu", "gpu"]
    assert set(post.of_group(table, "gpu").seed) == {0, 1, 2}
    assert post.groups(planted.stages(group="gpu")) == ["gpu"]


def test_training_facts_are_means_over_seeds_at_a_stage_s_ends():
    table = planted.stages()
    table.loc[table.stage == "DPO", "chosen"] = -3 - table.seed
    facts = post.training_facts(table)
    assert facts.loc[("sequence", "DPO"), ["chosen_start", "chosen_end", "chosen_low", "chosen_high"]].tolist() == [
        -1.5, -5, -7, -3]
    assert facts.entropy_start["direct", "RLVR"] == 0.5
    assert facts.entropy_end["direct", "RLVR"] == pytest.approx(0.4)
    assert np.isnan(facts.reward_end["sequence", "SFT"])


# pass@k


def test_curves_are_those_of_the_exact_probabilities_at_the_stages_ends():
    table = planted.passes(sharper=1)
    curves = solved.passes_of(table, "sequence", "RLVR")
    last = table[(table.arm == "sequence") & (table.stage == "RLVR") & (table.step == 60)]
    p = np.exp(last.log_probability.to_numpy(float)).reshape(5, planted.PROBLEMS)
    np.testing.assert_allclose(curves, 1 - (1 - p[..., None]) ** solved.K, atol=1e-12)


def test_seeds_that_were_asked_other_problems_are_refused():
    table = planted.passes()
    with pytest.raises(ValueError, match="same problems, got"):
        solved.passes_of(table[(table.seed != 1) | (table.problem != 7)], "sequence", "SFT")


@pytest.mark.parametrize(("sharper", "verdict"), [(0.6, REPRODUCED), (-0.4, NOT)])
def test_a_sharpened_policy_wins_few_tries_and_loses_many_and_a_flattened_one_does_not(sharper, verdict):
    table = planted.passes(sharper)
    one, other = (solved.passes_of(table, "sequence", stage) for stage in ("DPO", "RLVR"))
    # Positive control: the planted policies do what their name says, on each seed's mean
    apart = (other - one).mean(1)
    found = solved.pass_at_k_verdict(table, "small")
    if sharper > 0:
        assert (apart[:, 0] > 0).all() and (apart[:, -1] < 0).all()
    assert found.verdict in ({REPRODUCED, OPEN} if sharper > 0 else {verdict})


def outcomes_of(few, many, scatter=0.01):
    """Curves of 40 problems in two seeds, of which one model is ahead by so much in few and in many tries."""
    rng = np.random.default_rng(0)
    one = np.full((2, 40, len(solved.K)), 0.5)
    ahead = np.interp(np.log2(solved.K), [0, 4, 8], [few, few, many])
    return one, one + ahead + scatter * rng.standard_normal(one.shape[:2])[..., None]


@pytest.mark.parametrize(("few", "many", "said"), [
    (0.1, -0.1, "yes"), (0.1, 0.1, "no"), (-0.1, -0.1, "no"), (0.1, 0, "undecided"), (0, -0.1, "undecided")])
def test_a_crossing_takes_both_ends_of_the_curves(few, many, said):
    assert solved.crossing_outcomes(*outcomes_of(few, many)) == [said] * 2


def test_a_crossing_is_told_with_its_interval_or_as_none():
    one, other = outcomes_of(0.1, -0.1)
    found = pass_at_k.crossing(one, other, solved.K)
    assert found.sure and solved.crossing_in_words(found).startswith(f"k = {found.k:.1f} (")
    assert 2**5 < found.k < 2**7  # planted at k = 2^6
    assert solved.crossing_in_words(pass_at_k.crossing(*outcomes_of(0.1, 0.1), solved.K)).startswith("none")
    assert "below 1" in solved.crossing_in_words(pass_at_k.Crossing(2.0, 0.0, math.inf, 0.6))


@pytest.mark.parametrize(("gain", "easier", "verdict"), [
    (-0.5, -1, REPRODUCED), (0.5, -1, NOT), (-0.5, 1, NOT), (0.01, -1, OPEN)])
def test_pass_at_256_and_rankme_must_fall_together(gain, easier, verdict):
    table = planted.passes()
    table["log_probability"] += easier * (table.stage == "RLVR") - 4  # so hard that 256 tries may not do
    found = solved.pass_at_256_verdict(post.changes(planted.stages(all_of("RLVR", gain))), table, "small")
    assert found.verdict == verdict and found.runs == (5 if verdict == REPRODUCED else 0)


def test_along_rlvr_pass_at_256_begins_with_the_model_that_it_began_from():
    table, exact = planted.stages(), planted.passes(1.0)
    found = solved.by_step(table, exact, "direct").query("seed == 0")
    assert list(found.step) == [0, 20, 40, 60]
    base = solved.passes_of(exact, *post.BASE, [256])[0].mean()
    assert found.pass_at_256.iloc[0] == pytest.approx(base) and found.text_rankme.iloc[0] == 28


def test_effects_of_rl_are_told_as_expansion_only_where_all_that_spreads_grows():
    table, exact = planted.stages(), planted.passes(1.0)
    found = solved.effects(table, exact, "sequence")
    assert found.loc["text_rankme", "mean"] == pytest.approx(-0.5) and found.down["entropy"] == 5
    spread = pd.DataFrame({"says": "rises"}, index=list(solved.EFFECTS))
    assert solved.spreads(spread) == "expands" and solved.spreads(spread.replace("rises", "falls")) == "sharpens"
    spread.loc["entropy", "says"] = "falls"
    assert solved.spreads(spread) == "neither"


def test_drawn_answers_agree_with_the_probabilities_that_they_were_drawn_by_and_not_with_others():
    exact = planted.passes()
    drawn = planted.sampled(exact)
    found = solved.sampled_check(drawn, exact)
    assert len(found) == 25 and (found.problems == 20).all()
    assert found.z.abs().max() < 4  # of 25 normal numbers, one beyond 4 comes in 600 tables
    assert (found.drawn_1 - found.exact_1).abs().max() < 4 / np.sqrt(20 * 512) / 2
    drawn["right"] = (drawn.right + 30).clip(upper=512)
    assert solved.sampled_check(drawn, exact).z.min() > 4
    with pytest.raises(ValueError, match="no exact probability"):
        solved.sampled_check(drawn.assign(problem=drawn.problem + 1000), exact)


def test_accuracy_by_difficulty_is_the_mean_probability_of_each_grade():
    exact = planted.passes()
    found = solved.by_difficulty(exact)
    assert list(found.columns[2:]) == list(post.MODELS.values())
    its = exact.query("task == 'sort' and difficulty == 2 and stage == 'SFT' and step == 200")
    assert found.query("task == 'sort' and difficulty == 2").SFT.item() == pytest.approx(
        np.exp(its.log_probability.astype(float)).mean())


def test_models_are_compared_in_order_with_crossings_of_the_mean_and_of_each_seed():
    found = dict(solved.comparisons(planted.passes(1.0)))
    assert list(found) == ["SFT against the base", "DPO against SFT", "RLVR against DPO",
                           "RLVR from the base against the base"]
    assert len(found["DPO against SFT"]["seeds"]) == 5
    assert found["SFT against the base"]["ahead"][1].low > 0  # planted: log-odds half a unit higher


# Robustness


def late(table, which="A"):
    return robustness.tuned_on(robustness.per_parameter(table), which)


def test_trends_are_the_lines_of_the_late_checkpoints_with_a_pooled_interval():
    table = late(planted.tuned())
    found = robustness.trends(table, table.loss_add)
    its = table[(table.seed == 2) & (table.per_parameter >= 20)]
    line = linregress(np.log2(its.tokens), its.loss_add)
    assert found.slope[2] == pytest.approx(line.slope)
    residuals = []
    for seed in range(5):
        its = table[(table.seed == seed) & (table.per_parameter >= 20)]
        line = linregress(np.log2(its.tokens), its.loss_add)
        residuals += list(its.loss_add - line.intercept - line.slope * np.log2(its.tokens))
    free = len(residuals) - 10
    x = np.log2(its.tokens)
    stderr = math.sqrt(np.square(residuals).sum() / free / np.square(x - x.mean()).sum())
    assert (found.high - found.slope)[2] == pytest.approx(t.ppf(0.975, free) * stderr)


def test_a_trend_takes_three_late_checkpoints():
    table = late(planted.tuned(tokens=planted.TOKENS[:6]))  # two of them beyond 20 tokens a parameter
    assert (table.per_parameter >= 20).groupby(table.seed).sum().eq(2).all()
    assert robustness.trends(table, table.loss_sort).empty


def test_intervals_of_trends_hold_the_planted_slope_in_95_of_100():
    rng, held = np.random.default_rng(0), []
    frame = pd.DataFrame([(seed, 2.0**k, 2.0**k) for seed in range(5) for k in range(5, 10)],
                         columns=["seed", "tokens", "per_parameter"])
    for _ in range(100):
        found = robustness.trends(frame, -0.3 * np.log2(frame.tokens) + rng.standard_normal(len(frame)))
        held += list((found.low < -0.3) & (found.high > -0.3))
    assert np.mean(held) == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 100))  # five of a draw go together


@pytest.mark.parametrize(("slopes", "saturates", "rises"), [
    ({}, NOT, NOT), ({"sort_phrasings": 0.1, "reverse": 0.1}, REPRODUCED, REPRODUCED),
    ({"sort_phrasings": -0.005, "reverse": -0.005}, REPRODUCED, {NOT, OPEN, PARTLY}),
    ({"reverse": 0.1}, PARTLY, PARTLY),
    ({"sort": 0.1, "sort_phrasings": 0.1, "reverse": 0.1}, NOT, REPRODUCED)])
def test_verdicts_on_losses_are_those_of_the_planted_slopes(slopes, saturates, rises):
    first, second = robustness.loss_verdicts(late(planted.tuned(slopes)), "small")
    assert (first.claim, second.claim) == ("fig05-robustness", "fig14-robustness")
    assert first.verdict == saturates and second.verdict in ({rises} if isinstance(rises, str) else rises)


def test_over_training_is_not_said_to_be_absent_before_pretraining_was_long():
    short = planted.tuned(tokens=planted.TOKENS * 0.3)  # up to 96 tokens a parameter
    assert [each.verdict for each in robustness.loss_verdicts(late(short), "small")] == [OPEN, OPEN]
    assert "came to 96 tokens a parameter" in robustness.loss_verdicts(late(short), "small")[0].here
    showing = planted.tuned({"sort_phrasings": 0.1, "reverse": 0.1}, tokens=planted.TOKENS * 0.3)
    assert robustness.loss_verdicts(late(showing), "small")[1].verdict == REPRODUCED


def win_verdicts(slope, rankme=0.5, seeds=5, **more):
    bases = late(planted.tuned({"rankme": rankme}, seeds, **more), "none")
    table = robustness.per_parameter(planted.wins(slope, seeds, **more), bases.groupby("seed").parameters.first())
    return robustness.win_verdicts(bases, table, "small")


@pytest.mark.parametrize(("slope", "rankme", "expected"), [
    (-0.01, 0.5, [REPRODUCED, REPRODUCED]), (0.01, 0.5, [NOT, NOT]), (-0.01, -0.5, [NOT, REPRODUCED]),
    (0, 0.5, [OPEN, OPEN])])
def test_verdicts_on_win_rates_are_those_of_the_planted_slopes(slope, rankme, expected):
    if slope == 0:
        assert all(each.verdict in {OPEN, PARTLY} for each in win_verdicts(slope, rankme))  # chance decides some
    else:
        assert [each.verdict for each in win_verdicts(slope, rankme)] == expected
    assert "No chat was judged" in win_verdicts(slope, rankme)[0].here


def test_win_rates_that_go_to_a_draw_from_both_sides_are_told():
    table = robustness.per_parameter(planted.wins(-0.01), dict.fromkeys(range(5), planted.PARAMETERS))
    assert robustness.drawn_nearer(table)  # planted: one half at the end
    away = table.assign(win_rate=table.win_rate.where(table.prompts == "sort", 1.2 - table.win_rate))
    assert not robustness.drawn_nearer(away)


def test_the_final_checkpoint_against_itself_is_no_evidence():
    tokens = planted.TOKENS[:7]  # three of them late, the last of which is final
    parameters = dict.fromkeys(range(5), planted.PARAMETERS)
    table = robustness.per_parameter(planted.wins(-0.01, tokens=tokens), parameters)
    found = robustness.win_trends(table)
    late_ones = int((tokens / planted.PARAMETERS >= 20).sum())
    assert late_ones == 3 and found["final", "sort", "exact"].empty  # two are left
    assert len(found["twin", "sort", "exact"]) == 5


def test_too_few_seeds_or_checkpoints_leave_every_verdict_open():
    for verdicts in (win_verdicts(-0.01, seeds=2), win_verdicts(-0.01, tokens=planted.TOKENS[:3]),
                     robustness.loss_verdicts(late(planted.tuned(seeds=1)), "small"),
                     robustness.loss_verdicts(late(planted.tuned(tokens=planted.TOKENS[:3])), "small")):
        assert [each.verdict for each in verdicts] == [OPEN, OPEN]
    assert "Fewer than 3 checkpoints" in verdicts[0].here


def test_damage_is_what_tuning_adds_to_the_base_s_loss():
    table = robustness.per_parameter(planted.tuned(noise=0))
    found = robustness.damage(table, "A", ["loss_text"])
    base = robustness.tuned_on(table, "none")
    np.testing.assert_allclose(found.loss_text, base.loss_text / 9)  # planted: a tenth more of the tuned one's


def test_where_a_loss_is_lowest_and_how_far_it_came_back_is_told():
    row = robustness.trend_row(late(planted.tuned({"reverse": 0.1}, noise=0)), late(planted.tuned(
        {"reverse": 0.1}, noise=0)).loss_reverse)
    at = planted.TOKENS[np.searchsorted(planted.TOKENS, 20 * planted.PARAMETERS)] / planted.PARAMETERS
    assert row["lowest"] in (pytest.approx(at, rel=1e-3), pytest.approx(at * planted.TOKENS[0] / planted.TOKENS[1],
                                                                       rel=1e-3))
    assert row["back"] > 0 and row["rises"] == 5

"""Which readings tell RankMe's story, which foretell the tasks, and what others found: on planted tables.

Trusted: what was planted; scikit-learn's line fitted to all runs but one; scipy's analysis of variance.
"""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import f_oneway
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict

from reptrace.report.other_readings import (
    ANOTHER,
    PART,
    SAME,
    at_equal_loss,
    foretold,
    late_alignment,
    over_cases,
    story,
    told,
    without_each,
)
from reptrace.report.verdicts import NOT, OPEN, REPRODUCED

RUNS, CHECKPOINTS = 5, 24
CURVE = np.exp(np.interp(np.arange(CHECKPOINTS), [0, 7, 16, 23], np.log([20, 4, 16, 11])))  # falls, rises, falls


def planted(**columns):
    """Runs whose RankMe has the three phases; a column is a function of the run's number, or an array."""
    rows = [pd.DataFrame({"model": f"run{run}", "tokens": 1000 * 1.5 ** np.arange(CHECKPOINTS), "rankme": CURVE,
                          "rankme_stderr": 0.01 * CURVE, "loss": np.linspace(7, 4, CHECKPOINTS),
                          **{name: each(run) if callable(each) else each for name, each in columns.items()}})
            for run in range(RUNS)]
    return pd.concat(rows, ignore_index=True)


def test_a_reading_that_turns_where_rankme_does_tells_its_story_and_so_does_its_inverse():
    late = np.exp(np.interp(np.arange(CHECKPOINTS), [0, 7, 20, 23], np.log([20, 4, 16, 11])))
    table = planted(alpha=3 * CURVE**0.5, curvature=1 / CURVE, mean_share=np.linspace(0.1, 0.9, CHECKPOINTS),
                    sentence_erank=late, prompt_entropy=lambda run: CURVE if run else late)
    found = {name: story(table, name) for name in ("alpha", "curvature", "mean_share", "sentence_erank",
                                                   "prompt_entropy")}
    assert {name: told(each) for name, each in found.items()} == {
        "alpha": SAME, "curvature": SAME, "mean_share": ANOTHER, "sentence_erank": PART, "prompt_entropy": PART}
    assert found["alpha"].upright.all() and not found["curvature"].upright.any()
    assert found["curvature"].correlation.tolist() == pytest.approx([-1] * RUNS)
    assert found["sentence_erank"].turn.tolist() == ["no"] * RUNS
    assert found["prompt_entropy"].turn.tolist() == ["no"] + ["yes"] * (RUNS - 1)


def test_a_reading_foretells_what_was_made_from_it_and_noise_nothing():
    rng = np.random.default_rng(0)
    drivers = rng.normal(size=(RUNS, CHECKPOINTS))
    noise = rng.normal(size=(RUNS, CHECKPOINTS))
    drivers[:, 0] = 0  # a reading counts from its first value
    values = 0.3 + 0.02 * np.cumsum(np.c_[np.zeros(RUNS), drivers[:, :-1]], axis=1)
    table = planted(curvature=lambda run: drivers[run], mean_cosine=lambda run: noise[run], cka_last=CURVE,
                    copy=lambda run: values[run] + 0.002 * rng.normal(size=CHECKPOINTS))
    found = foretold(table, ["copy"]).set_index(["reading", "how"])
    assert "cka_last" not in found.index.get_level_values(0)  # it knows the end
    assert (found.low_of_all["curvature"] > 0.5).all()
    assert found.low["mean_cosine", "beside"] < 0
    assert (found.low_of_all < found.low)[["curvature", "mean_cosine"]].all()
    # the gain of the reading beside the loss, by scikit-learn, from the same rows
    table["next"] = table.groupby("model")["copy"].shift(-1)
    table["reading"] = table.curvature - table.groupby("model").curvature.transform("first")
    rows = table.dropna(subset="next")

    def errors(names):
        guessed = cross_val_predict(LinearRegression(), rows[names], rows.next, groups=rows.model,
                                    cv=LeaveOneGroupOut())
        return ((rows.next - guessed) ** 2).groupby(rows.model).mean()

    gains = 1 - errors(["copy", "loss", "reading"]) / errors(["copy", "loss"])
    assert found.gain["curvature", "beside"] == pytest.approx(gains.mean(), rel=1e-6)


def test_alignment_that_falls_after_the_turn_is_seen_and_one_that_grows_too():
    falling = np.interp(np.arange(CHECKPOINTS), [0, 7, 16, 23], [0.3, 0.9, 0.7, 0.2])
    table = planted(readout_quarter_share=lambda run: falling if run else 1 - falling,
                    readout_quarter_share_stderr=0.01)
    found = late_alignment(table)
    assert found.falls.tolist() == ["no"] + ["yes"] * (RUNS - 1)
    assert found.change[1] == pytest.approx(0.2 - 0.7)
    assert found.high[1] - found.low[1] == pytest.approx(2 * 1.96 * 0.01 * 2**0.5)
    unsure = late_alignment(table.assign(readout_quarter_share_stderr=0.5))
    assert set(unsure.falls) == {"undecided"}


@pytest.mark.parametrize("effect", [0, 1])
def test_settings_that_move_rankme_at_equal_loss_are_told_from_seeds(effect):
    rng = np.random.default_rng(1)
    setting, of_setting = np.repeat(range(8), 3), np.repeat(rng.normal(size=8), 3)
    loss = rng.normal(4, 0.1, 24)
    runs = pd.DataFrame({"batch": setting, "final_loss": loss, "rankme_last": np.exp(
        3 - 2 * loss + 0.05 * rng.normal(size=24) + effect * of_setting)})
    ratio, low, high = at_equal_loss(runs, ["batch"])
    # by scipy, about the line within settings, whose slope takes one degree of freedom more
    inside = runs.assign(y=np.log(runs.rankme_last))
    centred = inside[["final_loss", "y"]] - inside.groupby("batch")[["final_loss", "y"]].transform("mean")
    slope = np.polyfit(centred.final_loss, centred.y, 1)[0]
    of_lines = (inside.y - slope * inside.final_loss).groupby(inside.batch)
    between = f_oneway(*[each for _, each in of_lines]).statistic / 3 * 15 / 16
    assert ratio == pytest.approx(between**0.5)
    assert (low > 1) == bool(effect) and low < ratio < high
    assert over_cases(without_each(runs, ["batch"])) == ((REPRODUCED, 8) if effect else (
        over_cases(without_each(runs, ["batch"]))[0], 0))


def test_cases_that_disagree_decide_nothing():
    assert over_cases([REPRODUCED, REPRODUCED]) == (REPRODUCED, 2)
    assert over_cases([REPRODUCED, OPEN]) == (OPEN, 1)
    assert over_cases([NOT, NOT]) == (NOT, 0)
    few = pd.DataFrame({"batch": [1, 2, 3], "final_loss": [4.0, 4.1, 4.2], "rankme_last": [9.0, 8, 7]})
    assert without_each(few, ["batch"]) == [OPEN] * 3

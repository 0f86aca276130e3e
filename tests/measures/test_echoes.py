"""Text that says things again. Trusted: counts by hand, and texts whose repetition is known by construction."""

import math

import numpy as np
import pytest

from reptrace.measures.echoes import echoes


def test_stretches_that_stood_before_are_counted():
    assert echoes([1, 2, 3], [4, 5, 4, 5, 4], 2) == {"repeated": 0.5, "copied": 0}  # 45, 54, then again
    assert echoes([1, 2, 3], [1, 2, 3, 9, 9], 2) == {"repeated": 0, "copied": 0.5}


@pytest.mark.parametrize("period", [1, 3, 8])
def test_a_loop_repeats_all_but_its_first_round(period):
    written = [*range(period)] * 50
    assert echoes([], written)["repeated"] == pytest.approx(1 - period / (50 * period - 3))


def test_tokens_that_all_differ_repeat_nothing_and_tokens_by_chance_as_often_as_birthdays_fall_together(rng):
    assert echoes([], range(64)) == {"repeated": 0, "copied": 0}
    found = [echoes([], rng.integers(0, 3, 23).tolist(), 4)["repeated"] for _ in range(4000)]
    # 20 stretches over 81 values, nearly independent: 1 - 81 (1 - (80/81)^20) / 20, 0.108; dependence adds a little
    assert np.mean(found) == pytest.approx(1 - 81 * (1 - (80 / 81) ** 20) / 20, abs=0.015)


def test_a_text_shorter_than_a_stretch_says_nothing():
    assert all(math.isnan(each) for each in echoes([1, 2, 3, 4], [1, 2, 3]).values())

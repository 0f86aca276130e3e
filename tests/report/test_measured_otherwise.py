"""Whether a run shows the same phases when measured otherwise.

Trusted: planted curves, whose turns are set by hand, and numpy's variance of planted draws.
"""

import numpy as np
import pandas as pd
import pytest

from reptrace.measures.phases import phases_of
from reptrace.report import measured_otherwise as otherwise

TOKENS = np.array([0.0, *np.geomspace(1e3, 1e6, 31)])  # ten a decade, so that 10^4 and 10^5 are among them


def curve(low=1e4, high=1e5, end=10.0, error=0.1, scale=1.0):
    """From 20 down to 4 at `low`, up to 16 at `high`, then to `end` in a straight line of ln tokens."""
    x = np.log(np.maximum(TOKENS, 500))
    at = np.log([500, low, high, 1e6])
    return pd.DataFrame({"tokens": TOKENS, "rankme": scale * np.interp(x, at, [20, 4, 16, end]),
                         "rankme_stderr": scale * error})


KNOWN = phases_of(curve())


def test_the_same_curve_at_another_level_agrees():
    other = curve(scale=0.3)
    assert otherwise.all_phases(other, KNOWN) == otherwise.both_places(other, KNOWN) == "yes"
    assert otherwise.moved(other, KNOWN, "turn") == 1


def test_a_turn_elsewhere_is_none_at_the_same_place():
    later = curve(high=5e5)
    assert otherwise.all_phases(later, KNOWN) == "yes"
    assert otherwise.same_place(later, KNOWN, "collapse_end") == "yes"
    assert otherwise.same_place(later, KNOWN, "turn") == otherwise.both_places(later, KNOWN) == "no"
    assert otherwise.moved(later, KNOWN, "turn") == pytest.approx(5, rel=0.3)  # checkpoints are a factor of 1.26 apart


def test_a_curve_that_surely_rises_where_the_known_one_falls_says_no():
    rising = curve(end=19)
    assert otherwise.all_phases(rising, KNOWN) == otherwise.same_place(rising, KNOWN, "turn") == "no"


def test_a_fall_lost_in_noise_says_nothing():
    for noisy in (curve(end=15.6, error=0.8), curve(end=16)):
        assert otherwise.all_phases(noisy, KNOWN) == otherwise.same_place(noisy, KNOWN, "turn") == "undecided"
    assert otherwise.same_place(curve(), phases_of(curve(end=19)), "turn") == "undecided"


def test_layers_go_up_and_fall_into_parts_of_any_depth():
    table = pd.concat([curve().assign(layer=layer) for layer in ("final", "10", "2", "0", "1")])
    assert list(otherwise.by_layer(table)) == ["0", "1", "2", "10", "final"]
    assert otherwise.parts_of_depth(["0", "1", "2", "10", "final"]) == {
        "embeddings": ["0"], "blocks before the last": ["1", "2"], "last block": ["10"], "final norm": ["final"]}
    assert otherwise.parts_of_depth(["0", "1", "final"]) == {
        "embeddings": ["0"], "last block": ["1"], "final norm": ["final"]}


def test_stated_errors_that_are_half_of_the_scatter_give_two():
    draw = np.random.default_rng(0)
    rows = [{"tokens": tokens, "times_width": times, "rankme": draw.normal(10, 0.5 / times), "rankme_stderr":
             0.25 / times} for tokens in range(200) for times in (1.0, 4.0) for _ in range(8)]
    rows.append({"tokens": 0, "times_width": np.nan, "rankme": 99.0, "rankme_stderr": 1.0})
    found = otherwise.stderr_ratios(pd.DataFrame(rows), "rankme")
    # 1,400 degrees of freedom each: a standard error of 2 %
    assert list(found.index) == [1, 4] and found.to_numpy() == pytest.approx(2, rel=0.06)

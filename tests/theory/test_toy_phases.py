"""Phases of curves without noise. Trusted: curves made of straight lines, and Wilson's formula.

Not test_phases.py: pytest asks for file names that differ, and the measures wing has one.
"""

from itertools import pairwise

import numpy as np
import pytest

from reptrace.theory.phases import phases, prevalence, turns_late


def curve(*corners):
    return np.concatenate([np.linspace(a, b, 10, endpoint=False) for a, b in pairwise(corners)]
                          + [[corners[-1]]])


@pytest.mark.parametrize(("corners", "shown", "ends"), [
    ((3, 2, 4, 3), (True, True, True), (10, 20)),
    ((3, 2, 4), (True, True, False), (10, 20)),
    ((3, 3.5, 2, 4, 3), (True, True, True), (20, 30)),  # a rise before the collapse
    ((2, 4, 3), (False, True, True), (0, 10)),
    ((2, 4), (False, True, False), (0, 10)),
    ((4, 2), (True, False, False), (-1, -1)),
    ((3, 2, 4, 3, 5), (True, True, False), (10, 40)),  # a dip that is outgrown
    ((3, 2.95, 3.0), (False, False, False), (-1, -1)),
    ((2, 2), (False, False, False), (-1, -1))])
def test_phases_of_known_curves(corners, shown, ends):
    values = curve(*corners)
    found = phases(np.arange(len(values)), values)
    assert (found.shows_collapse, found.shows_expansion, found.shows_fall) == shown
    assert (found.collapse_end, found.turn) == ends
    assert found.all_three == all(shown)


@pytest.mark.parametrize(("corners", "spans"), [
    ((3, 2, 4, 3), [("warmup", 0, 10), ("entropy-seeking", 10, 20), ("compression-seeking", 20, 30)]),
    ((3, 2, 4, 3.99), [("warmup", 0, 10), ("entropy-seeking", 10, 30)]),
    ((2, 4, 3, 2.5), [("entropy-seeking", 0, 10), ("compression-seeking", 10, 30)]),
    ((3, 2, 4, 3, 3.5), [("warmup", 0, 10), ("entropy-seeking", 10, 20), ("compression-seeking", 20, 30),
                         ("later", 30, 40)]),
    ((3, 2.5, 2.2, 2), [("warmup", 0, 30)]), ((2, 2, 2, 2), [])])
def test_spans_of_known_curves(corners, spans):
    values = curve(*corners)
    found = phases(range(len(values)), values[None])
    assert found.spans(0, len(values) - 1) == spans


def test_sizes_of_phases():
    found = phases(range(31), curve(3, 2, 4, 3))
    assert (found.collapse, found.expansion, found.fall) == pytest.approx((1 / 3, 1.0, 0.25))
    assert not phases(range(31), curve(3, 2, 4, 3), size=0.3).shows_fall
    uneven = phases(range(31), curve(3, 2, 4, 3), size=(0.3, 0.9, 0.26))
    assert (uneven.shows_collapse, uneven.shows_expansion, uneven.shows_fall) == (True, True, False)


@pytest.mark.parametrize(("corners", "lasting", "passing", "any_fall", "remaining"), [
    ((3, 2, 4, 3), True, False, 1 / 4, 1 / 4),
    ((3, 2, 4, 3, 3.5), True, False, 1 / 4, 1 / 8),
    ((3, 2, 4, 3, 4), False, True, 1 / 4, 0),
    ((3, 2, 4, 3, 5), False, True, 1 / 4, 0),  # outgrown: no fall from the highest value, which is the last
    ((3, 2, 4, 3, 5, 4.5), True, False, 1 / 4, 1 / 10),
    ((3, 2, 2.01, 2.0, 4), False, False, 0, 0),  # before the expansion
    ((2, 4, 3), False, False, 1 / 4, 1 / 4)])
def test_falls_that_last_and_falls_that_pass(corners, lasting, passing, any_fall, remaining):
    values = curve(*corners)
    found = phases(np.arange(len(values)), values)
    assert (found.lasting, found.passing) == (lasting, passing)
    assert (found.any_fall, found.remaining) == pytest.approx((any_fall, remaining))
    assert found.any_turn == (-1 if any_fall == 0 else 20 if corners[0] == 3 else 10)


def test_phases_of_many_trajectories_are_those_of_each(rng):
    many = np.exp(0.05 * rng.standard_normal((4, 50, 30)).cumsum(-1))
    many[0, 0, -1] = np.nan
    together = phases(range(30), many)
    for i, j in np.ndindex(4, 50):
        alone = phases(range(30), many[i, j])
        for name in ("collapse_end", "turn", "fall_end", "any_turn", "collapse", "expansion", "fall", "any_fall",
                     "shows_collapse", "all_three", "lasting", "passing"):
            np.testing.assert_equal(getattr(together, name)[i, j], getattr(alone, name))
    assert not together.shows_collapse[0, 0] and np.isnan(together.fall[0, 0])


def test_a_turn_is_late_once_half_of_the_loss_is_lost():
    values = np.stack([curve(3, 2, 4, 3)] * 3 + [curve(4, 3, 2, 1)])
    loss = np.stack([np.linspace(9, 1, 31), np.r_[np.full(20, 9.0), np.linspace(9, 1, 11)],
                     np.r_[np.linspace(9, 5, 21), np.linspace(5, 1, 10)], np.linspace(9, 1, 31)])
    found = phases(range(31), values)
    np.testing.assert_array_equal(turns_late(found.turn, loss), [True, False, True, False])  # at 3.67, 9, 5 of 9 to 1
    assert turns_late(phases(range(31), values[0]).turn, loss[0])


def test_prevalence_is_a_share_with_wilsons_interval():
    share, low, high = prevalence([True] * 6 + [False] * 58)
    assert share == 6 / 64
    z = 1.959964  # Wilson 1927: roots of (p - share)^2 = z^2 p (1 - p) / n
    for p in (low, high):
        assert (p - share) ** 2 == pytest.approx(z**2 * p * (1 - p) / 64, rel=1e-5)


def test_bad_curves_are_refused():
    with pytest.raises(ValueError, match="steps must increase"):
        phases([0, 2, 1], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="shapes"):
        phases([0, 1, 2], [1.0, 2.0])
    with pytest.raises(ValueError, match="share between 0 and 1"):
        phases([0, 1], [1.0, 2.0], size=2)
    with pytest.raises(ValueError, match="share between 0 and 1"):
        phases([0, 1], [1.0, 2.0], size=(0.1, 0.1, 0))

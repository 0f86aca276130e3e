"""What one run says. Trusted: cases written out by hand."""

import numpy as np
import pytest

from reptrace.report.said import direction, outcomes, side, together


@pytest.mark.parametrize(("low", "high", "above", "below", "way"), [
    (0.1, 0.2, "yes", "no", "rises"), (-0.2, -0.1, "no", "yes", "falls"),
    (-0.1, 0.1, "undecided", "undecided", "undecided"), (0, 0.1, "undecided", "undecided", "undecided"),
    (np.nan, np.nan, "undecided", "undecided", "undecided")])
def test_an_interval_decides_only_where_all_of_it_lies_on_one_side(low, high, above, below, way):
    assert (side(low, high), side(low, high, -1), direction(low, high)) == (above, below, way)


def test_a_direction_is_the_claimed_one_or_not_or_neither():
    assert outcomes(["falls", "rises", "undecided"], "falls") == ["yes", "no", "undecided"]


@pytest.mark.parametrize(("said", "whole"), [
    (["yes", "yes"], "yes"), (["yes", "no"], "no"), (["yes", "undecided"], "undecided"), (["undecided", "no"], "no"),
    (["not seen", "yes"], "undecided"), ([], "undecided")])
def test_answers_together(said, whole):
    assert together(said) == whole

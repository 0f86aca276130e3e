"""The last fall by both kinds of weights, on planted trajectories."""

import numpy as np
import pandas as pd
import pytest

from reptrace.measures.phases import find_phases
from reptrace.report.averaged import averaged_phases, compression


def table(values, first=0):
    values = np.array(values, float)
    tokens = 2.0 ** np.arange(first, first + len(values))
    return pd.DataFrame({"tokens": tokens, "rankme": values, "rankme_stderr": 0.01 * values})


FALLS = [20, 10, 4, 6, 10, 16, 20, 18, 14, 10]
STAYS = [20, 10, 4, 6, 10, 16, 20, 20, 20, 20]


def phases(values):
    return find_phases(*(table(values)[name] for name in ("tokens", "rankme", "rankme_stderr")))


def test_the_average_s_trajectory_begins_with_the_weights_as_they_are():
    found = averaged_phases(table(FALLS), table(FALLS[3:], first=3))
    assert found == phases(FALLS)
    assert found.collapse.ratio == pytest.approx(0.2)  # which the average alone has not seen


@pytest.mark.parametrize(("raw", "averaged", "said"), [
    (FALLS, FALLS, "yes"), (FALLS, STAYS, "not seen"), (STAYS, FALLS, "not seen"), (FALLS, None, "yes"),
    (STAYS, None, "not seen")])
def test_it_is_compression_where_both_fall(raw, averaged, said):
    assert compression(phases(raw), averaged and phases(averaged)) == said

"""Which claims survive a choice: by planted trajectories whose ratios and turns are known.

Trusted: what was planted.
"""

import numpy as np
import pandas as pd
import pytest

from reptrace.report.choice_claims import CLAIMS, alike, of_runs_by_choice, survival, together
from reptrace.report.verdicts import NOT, OPEN, PARTLY, REPRODUCED

TOKENS = np.r_[0, np.geomspace(1e3, 1e6, 12)]
SHAPE = [20, 18, 10, 5, 4, 8, 14, 20, 24, 24, 20, 17, 14]  # falls to a fifth, grows to six times, falls by 42 %


def planted(choice: str, run: int, rankme, alpha=None, error: float = 0.01) -> pd.DataFrame:
    values = np.array(rankme, float)
    alphas = 10 / values if alpha is None else np.array(alpha, float)
    return pd.DataFrame({"choice": choice, "run": run, "tokens": TOKENS, "rankme": values,
                         "rankme_stderr": error * values, "alpha": alphas, "alpha_stderr": error * alphas})


@pytest.fixture
def table():
    early = [20, 4, 8, 14, 20, 24, 22, 20, 18, 17, 16, 15, 14]
    shallow = [20, 20, 19, 17, 16, 18, 19, 20, 24, 24, 20, 17, 14]
    others = {"alike": SHAPE, "noisy": SHAPE, "early": early, "shallow": shallow, "alpha early": SHAPE, "mixed": SHAPE}
    parts = [planted("the usual", run, SHAPE) for run in range(3)]
    for name, shape in others.items():
        for run in range(3):
            given = shallow if name == "mixed" and run else shape
            alphas = 10 / np.array(early) if name == "alpha early" else None
            parts.append(planted(name, run, given, alphas, 0.5 if name == "noisy" else 0.01))
    return pd.concat(parts, ignore_index=True)


def test_each_choice_gets_the_verdict_of_what_was_planted(table):
    found = together(of_runs_by_choice(table, "the usual")).set_index(["choice", "claim"])
    told = {choice: [found.verdict[choice, claim] for claim in CLAIMS] for choice in table.choice.unique()}
    yes = REPRODUCED
    assert told == {
        "the usual": [yes] * 5, "alike": [yes] * 5, "noisy": [OPEN] * 5, "early": [yes] * 4 + [NOT],
        "shallow": [NOT, NOT, yes, yes, yes], "alpha early": [yes, yes, yes, NOT, yes],
        "mixed": [PARTLY, PARTLY, yes, yes, yes]}
    assert tuple(found.loc["mixed", "collapse"][["yes", "no", "of"]]) == (1, 2, 3)
    assert found.loc["mixed", "collapse"].tolist()[-2:] == [0.2, 0.8]  # 4 of 20 and 16 of 20
    assert found.loc["alike", "turn"].tolist()[-2:] == [1, 1]


def test_a_choice_that_tells_nothing_speaks_neither_for_nor_against(table):
    found = survival(together(of_runs_by_choice(table, "the usual")), "the usual")
    assert found == {"collapse": ["shallow", "mixed"], "expansion": ["shallow", "mixed"], "compression": [],
                     "alpha": ["alpha early"], "turn": ["early"]}


def test_runs_too_few_decide_nothing(table):
    found = together(of_runs_by_choice(table[table.run < 2], "the usual"))
    assert set(found[found.choice == "alike"].verdict) == {OPEN}


def test_likeness_is_rank_correlation_and_the_median_ratio(table):
    doubled = table.assign(rankme=table.rankme.where(table.choice != "alike", 2 * table.rankme))
    found = alike(doubled, "the usual").set_index(["choice", "run"])
    assert found.loc["alike", 0].tolist() == pytest.approx([1, 2])
    assert found.loc["early", 0].correlation < 0.6

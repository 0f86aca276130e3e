"""What the pages on pretraining say in fixed words, against what it is said of.

Trusted: the plan of the settings, and torch's own account of bfloat16.
"""

import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from reptrace.report.profiles import ROOT
from reptrace.training.runs import Run


def test_the_table_of_settings_holds_the_whole_plan_and_the_older_list():
    plan = yaml.safe_load((ROOT / "studies/settings.yaml").read_text())
    tried = pd.read_csv(ROOT / "data/results/settings_tried.csv")
    asked = [plan | plan["common"] | setting | {"seed": seed} for setting in plan["settings"]
             for seed in (plan["common"] | setting)["seeds"]]
    new = tried[tried.recipe == Run.recipe]
    assert len(asked) == len(new) and len(tried) - len(new) == (tried.recipe == 1).sum() == 16
    for want, row in zip(asked, new.itertuples(), strict=True):
        for key in ("width", "layers", "seed", "vocabulary", "context", "batch", "learning_rate", "warmup_steps",
                    "schedule", "weight_decay"):
            assert getattr(row, key) == want[key], key
        assert (row.rotary, row.decay_steps) == (want.get("rotary", 0.25), want.get("decay_steps", 0))
        step = row.batch * row.context  # training tokens are whole steps
        assert abs(row.tokens - want["tokens"]) <= step / 2


def test_the_curves_and_moments_of_the_settings_are_of_its_runs_and_of_one_probe():
    tried, curves = (pd.read_csv(ROOT / f"data/results/settings_{name}.csv") for name in ("tried", "curves"))
    moments = pd.read_parquet(ROOT / "data/results/settings_moments.parquet")
    new = tried[tried.recipe == Run.recipe].set_index("repository")
    assert set(curves.repository) == set(new.index) and set(moments.repository) <= set(new.index)
    last = curves.sort_values("tokens").groupby(["weights", "repository"]).rankme.last()
    pd.testing.assert_series_equal(last["raw"], new.rankme_last, check_names=False, check_like=True, rtol=1e-5)
    pd.testing.assert_series_equal(last["averaged"], new.averaged_rankme_last, check_names=False, check_like=True,
                                   rtol=1e-5)
    for row in moments.itertuples():  # by the definition: exp of the entropy of the covariance's eigenvalues
        values = np.linalg.eigvalsh(np.reshape(row.covariance, (len(row.mean),) * 2).astype(float)).clip(min=1e-30)
        share = values / values.sum()
        assert np.exp(-(share * np.log(share)).sum()) == pytest.approx(row.rankme, rel=1e-4)  # kept in float32
    ends = moments[(moments.place == "end") & (moments.weights == "raw")].set_index("repository").rankme
    pd.testing.assert_series_equal(ends, new.rankme_last[ends.index], check_names=False, rtol=1e-3)


def test_bfloat16_rounds_as_the_page_on_precision_says():
    text = "".join(json.loads((ROOT / "notebooks/precision.ipynb").read_text())["cells"][0]["source"])
    bits, power = re.search(r"keeps (\d+) significant bits.*?\$2\^\{-(\d+)\}\$", text, flags=re.S).groups()
    spacing = torch.finfo(torch.bfloat16).eps  # from 1 to the next larger number: 2^(1 - bits)
    assert spacing == 2.0 ** (1 - int(bits)) and spacing / 2 == 2.0 ** -int(power)
    x = torch.logspace(-3, 3, 100_001, dtype=torch.float64)
    worst = ((x.to(torch.bfloat16).double() - x).abs() / x).max().item()
    assert 0.9 * 2.0 ** -int(power) < worst <= 2.0 ** -int(power)

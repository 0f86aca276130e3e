"""What the pages on pretraining say in fixed words, against what it is said of.

Trusted: the plan of the settings, and torch's own account of bfloat16.
"""

import json
import re

import pandas as pd
import torch
import yaml

from reptrace.report.profiles import ROOT


def test_the_table_of_settings_holds_the_whole_plan_and_nothing_else():
    plan = yaml.safe_load((ROOT / "studies/settings.yaml").read_text())
    tried = pd.read_csv(ROOT / "data/results/settings_tried.csv")
    asked = [plan | size for size in plan["sizes"]]
    assert len(asked) == len(tried) and (tried.seed == 0).all()
    for want, row in zip(asked, tried.itertuples(), strict=True):
        for key in ("width", "layers", "vocabulary", "context", "batch", "learning_rate", "warmup_steps", "schedule",
                    "weight_decay"):
            assert getattr(row, key) == want[key], key
        step = row.batch * row.context  # training tokens are whole steps
        assert abs(row.tokens - want["tokens"]) <= step / 2


def test_bfloat16_rounds_as_the_page_on_precision_says():
    text = "".join(json.loads((ROOT / "notebooks/precision.ipynb").read_text())["cells"][0]["source"])
    bits, power = re.search(r"keeps (\d+) significant bits.*?\$2\^\{-(\d+)\}\$", text, flags=re.S).groups()
    spacing = torch.finfo(torch.bfloat16).eps  # from 1 to the next larger number: 2^(1 - bits)
    assert spacing == 2.0 ** (1 - int(bits)) and spacing / 2 == 2.0 ** -int(power)
    x = torch.logspace(-3, 3, 100_001, dtype=torch.float64)
    worst = ((x.to(torch.bfloat16).double() - x).abs() / x).max().item()
    assert 0.9 * 2.0 ** -int(power) < worst <= 2.0 ** -int(power)

"""What the pages on pretraining say in fixed words, against what it is said of.

Trusted: the plan of the settings, torch's own account of bfloat16, and the sentences of the notebooks as they are kept.
"""

import json
import re

import pandas as pd
import pytest
import torch
import yaml

from reptrace.report.profiles import ROOT

PAGES = ("start_here", "fig02_pretraining_phases", "causes_in_transformers", "settings_tried", "precision")


def prose(page):
    """The Markdown cells of a notebook, without code, mathematics, citations and exercises."""
    cells = json.loads((ROOT / f"notebooks/{page}.ipynb").read_text())["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return re.sub(r"```.*?```|## Exercises.*|`[^`]*`|\$[^$]*\$", "", text, flags=re.S)


@pytest.mark.parametrize("page", PAGES)
def test_no_measured_number_stands_in_fixed_prose(page):
    # not measured: a place in the paper, a level, how well its figure can be read; and runs of which no table is left
    kept = re.sub(r"section \d\.\d|95 %|about 3 %|\*\*Not in the table:\*\*.*", "", prose(page), flags=re.S)
    assert re.findall(r"\d+\.\d+|\d+ (?:%|minutes?|seconds?|hours?|of \d+)", kept) == []


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

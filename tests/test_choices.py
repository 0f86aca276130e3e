"""The study of choices, on a tiny model with checkpoints, and its tracked tables.

Trusted: states of the same model by transformers' own hidden states, token by token; numpy; counts by hand; of the
tracked tables, the plan.
"""

import sys
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from limits import in_background
from transformers import GPTNeoXConfig, GPTNeoXModel

from reptrace.checkpoints.suites import Checkpoint
from reptrace.measures.spectra import geometry, singular_value_rankme, singular_values
from reptrace.measures.variants import variant
from reptrace.models.hidden_states import FINAL, extract
from reptrace.records.store import Store
from reptrace.report.profiles import ROOT

sys.path.insert(0, str(ROOT / "studies"))
import choices

PLAN = {"plan": {
    "nothing": {"usual": {}}, "token": {"any": {"token": "any"}, "mean": {"token": "mean"}, "third": {"token": 3}},
    "layer": {"before": {"before_norm": True}}, "spectrum": {"Garrido": {"centred": False, "singular": True}},
    "sequences": {"few": {"times_width": 2}}, "text": {"shuffled": {"shuffled": True}},
    "dtype": {"bfloat16": {"dtype": "bfloat16"}}}}
RANKS = (2, 7)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return GPTNeoXModel(GPTNeoXConfig(vocab_size=50, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
                                      intermediate_size=16, max_position_embeddings=16, initializer_range=0.3)).eval()


@pytest.fixture(scope="module")
def points(model, tmp_path_factory):
    folders = [tmp_path_factory.mktemp("model") for _ in range(2)]
    for folder in folders:
        model.save_pretrained(folder)
    return [Checkpoint(str(folder), None, step, step * 100) for step, folder in enumerate(folders)]


@pytest.fixture(scope="module")
def sequences():
    rng = np.random.default_rng(0)
    plain = [rng.integers(50, size=length).tolist() for length in rng.integers(4, 9, size=60)]
    return {("docstrings", False): plain, ("docstrings", True): [each[::-1] for each in plain]}


@pytest.fixture(scope="module")
def found(points, sequences):
    rows = pd.DataFrame(choices.measured(points[1], choices.chosen(PLAN), sequences, RANKS))
    return rows[rows.choice.notna()].set_index("choice"), rows[rows.layer.notna()].set_index("layer")


@pytest.fixture(scope="module")
def by_hand(model, sequences):
    """All hidden states of each sequence, layer by layer, one at a time: lists of (t, d); the last is normed."""
    with torch.inference_mode():
        return [[each[0] for each in model(torch.tensor([ids]), output_hidden_states=True).hidden_states]
                for ids in sequences["docstrings", False]]


def same(row, features, **how):
    known = variant(features, RANKS, **how)
    assert (row.rankme, row.rankme_stderr, row.alpha) == pytest.approx(
        (known.rankme, known.rankme_stderr, known.alpha), rel=1e-4)  # float32 in other batches


def test_every_choice_s_features_are_those_of_transformers_own_hidden_states(found, by_hand, model, sequences):
    table, _ = found
    last = torch.stack([each[-1][-1] for each in by_hand])
    same(table.loc["usual"], last)
    assert table.loc["usual"].rankme == pytest.approx(geometry(last, RANKS).rankme, rel=1e-4)
    same(table.loc["mean"], torch.stack([each[-1].mean(0) for each in by_hand]))
    same(table.loc["third"], torch.stack([each[-1][2] for each in by_hand]))
    same(table.loc["few"], last[:16])
    assert table.loc["Garrido"].rankme == pytest.approx(singular_value_rankme(singular_values(last)), rel=1e-4)
    with torch.inference_mode():
        backwards = torch.stack([model(torch.tensor([ids[::-1]])).last_hidden_state[0, -1]
                                 for ids in sequences["docstrings", False]])
    same(table.loc["shuffled"], backwards)
    assert table.loc["bfloat16"].rankme == pytest.approx(table.loc["usual"].rankme, rel=0.05)  # 8 bits of mantissa
    assert table.loc["bfloat16"].rankme != table.loc["usual"].rankme
    assert table.sequences.to_dict() == dict.fromkeys(table.index, 60) | {"few": 16}


def test_the_last_block_s_states_before_the_norm_are_turned_by_it_into_those_after(model, points, sequences):
    states = extract(choices.load(points[0].model), sequences["docstrings", False], "all")
    before, after = (choices.states(states, choices.Choice(before_norm=flag)) for flag in (True, False))
    with torch.inference_mode():
        assert torch.allclose(model.final_layer_norm(before), after, atol=1e-5)
    assert not torch.allclose(before, after)


def test_layers_have_their_spikes_and_the_first_token_s_length(found, by_hand):
    _, layers = found
    assert list(layers.index) == ["0", "1", "2", FINAL] and (layers.massive == 0).all()
    norms = [each[0].norm(dim=1) for each in by_hand]
    ratios = [float(each[0] / each[1:].median()) for each in norms]
    assert layers.loc["0"].first_over_later == pytest.approx(np.sort(ratios)[29], rel=1e-4)  # torch's median of 60


def test_what_is_measured_is_kept_and_not_measured_again(points, sequences, tmp_path, monkeypatch):
    store = Store(tmp_path)
    choices.measure_and_keep(PLAN, sequences, RANKS, store, points[0])
    done = []
    monkeypatch.setattr(choices, "_measure", lambda point: done.append(point))
    here = SimpleNamespace(submit=in_background)
    monkeypatch.setattr(choices, "ProcessPoolExecutor", lambda *given: nullcontext(here))
    choices.measure_missing(points, PLAN, sequences, RANKS, store)
    assert done == [points[1]]
    choices.measure_and_keep(PLAN, sequences, RANKS, store, points[1])
    made = choices.tables({point.model: "d = 8" for point in points}, [points], PLAN, sequences, RANKS, store)
    assert len(made["choices"]) == 18 and len(made["choices_spikes"]) == 8
    assert set(made["choices"].changed) == set(PLAN["plan"]) and set(made["choices"].run) == {"d = 8"}


def test_the_tracked_tables_are_whole_and_those_of_the_plan():
    plan = yaml.safe_load(choices.PLAN.read_text())
    table, spiky = (pd.read_parquet(choices.RESULTS / f"{name}.parquet") for name in ("choices", "choices_spikes"))
    assert set(table.choice) == set(choices.chosen(plan)) and set(spiky.model) == set(table.model)
    counts = table.groupby("choice").size()
    assert counts.nunique() == 1 and counts.iloc[0] == len(spiky[spiky.layer == FINAL])
    assert table[["rankme", "rankme_stderr"]].notna().all().all()
    default = table[table.choice == next(iter(choices.chosen(plan)))].merge(
        spiky[spiky.layer == FINAL], on=["model", "step"], suffixes=("", "_too"))
    assert default.rankme.to_numpy() == pytest.approx(default.rankme_too, rel=1e-9)  # one pass, by another function

"""What checkpoints write and how much of it repeats itself, for the page of Fig 6.

Trusted: counts by hand, a model that says one token for ever, and planted shares whose verdict is plain.
"""

from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from reptrace.checkpoints.listing import Checkpoint
from reptrace.report import writing
from reptrace.report.verdicts import NOT, OPEN, PARTLY, REPRODUCED
from reptrace.report.writing import DRAWN, GREEDY, WAYS, echolalia, ends, repetition
from reptrace.texts.corpora import Corpus, probe, train_tokenizer

RUN = namedtuple("Run", "vocabulary context")(300, 64)
TEXTS = [" ".join(f"word{(k * j) % 89}" for j in range(1, 60)) for k in range(1, 60)]


def curve(minimum):
    """RankMe of a run that falls to a third of its start up to one of the checkpoints, and rises again."""
    steps = np.array([0, 1, 2, 4, 8, 16, 32, 64, 128])
    rankme = 10 + 20 * np.abs(np.arange(9) - minimum) / 4
    return pd.DataFrame({"step": steps, "tokens": steps * 100, "rankme": rankme, "rankme_stderr": 0.1})


@pytest.fixture
def profile(tmp_path):
    """One run of two checkpoints: as it came, and one that says a single token, the last of the curve."""
    tokenizer = train_tokenizer(TEXTS, 300)
    torch.manual_seed(0)
    model = GPTNeoXForCausalLM(GPTNeoXConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, bos_token_id=0, eos_token_id=0, pad_token_id=1)).eval()
    model.save_pretrained(tmp_path / "own")
    with torch.no_grad():
        model.gpt_neox.final_layer_norm.weight.zero_()
        model.gpt_neox.final_layer_norm.bias.fill_(1.0)
        model.lm_head.weight.zero_()
        model.lm_head.weight[7] = 1.0  # a logit of 32, the others' 0
    model.save_pretrained(tmp_path / "loop")
    kept, held = {}, probe(Corpus("texts", TEXTS), tokenizer, 40, 64, 2)
    points = [Checkpoint(str(tmp_path / name), step=step, tokens=100 * step)
              for name, step in (("own", 0), ("loop", 16))]
    return SimpleNamespace(
        runs=[RUN], kept=kept, suite=SimpleNamespace(tokenizer=lambda vocabulary: tokenizer),
        points=lambda run: points, probe=lambda run: held,
        by_run=lambda table: {RUN: table}, asked=lambda name, make: kept.setdefault(name, make()))


def test_a_model_that_says_one_token_repeats_all_but_one_stretch(profile):
    table = writing.written(profile, {RUN: 16})[RUN]
    assert list(table.columns) == writing.COLUMNS and list(profile.kept) == [writing.TABLE]
    assert table.groupby(["step", "way"]).size().to_dict() == {
        (step, way): writing.PROMPTS for step in (0, 16) for way in WAYS}
    stretches = writing.FURTHER - 3
    assert (table[table.step == 16].repeated == 1 - 1 / stretches).all()
    assert (table.written.ne("") == table.prompt.lt(writing.EXAMPLES)).all()
    found = repetition(table).set_index(["way", "step"])
    assert found.repeated[GREEDY, 16] == pytest.approx(1 - 1 / stretches)


def test_the_minimum_is_where_the_collapse_ends():
    flat = curve(5).assign(rankme=20.0)
    assert writing.minima({RUN: curve(5), "flat": flat}) == {RUN: 16, "flat": None}


def rows(early, late, real=0.02, texts=20):
    """Of one run: shares of repeated stretches at steps 1 and 9, greedy and drawn, which differ a little by text."""
    found = []
    for way, ends_ in zip(WAYS, zip(early, late, strict=True), strict=True):
        for step, share in zip((1, 9), ends_, strict=True):
            found += [{"way": way, "step": step, "tokens": 10 * step, "repeated": share + 0.001 * (k % 3), "real": real,
                       "ended": False} for k in range(texts)]
    return pd.DataFrame(found)


def concluded(*runs, early=1):
    found = {k: repetition(its) for k, its in enumerate(runs)}
    return echolalia({way: ends(found, dict.fromkeys(found, early), way) for way in WAYS}, "3 runs")


def test_texts_that_ended_are_not_counted():
    table = rows((0.9, 0.5), (0.3, 0.2))
    table.loc[(table.way == DRAWN) & (table.index % 2 == 0), ["ended", "repeated"]] = [True, np.nan]
    found = repetition(table).set_index(["way", "step"])
    assert found.ended[DRAWN, 9] == 0.5 and found.ended[GREEDY, 9] == 0
    assert found.repeated[DRAWN, 9] == pytest.approx(0.201) and found.excess[DRAWN, 9] == pytest.approx(0.181)
    assert found.low[DRAWN, 9] < 0.181 < found.high[DRAWN, 9]
    table.loc[table.way == DRAWN, ["ended", "repeated"]] = [True, np.nan]
    assert repetition(table).set_index(["way", "step"]).loc[DRAWN].low.isna().all()


@pytest.mark.parametrize(("early", "late", "verdict", "wholly"), [
    ((0.9, 0.5), (0.05, 0.02), REPRODUCED, 3), ((0.9, 0.02), (0.4, 0.02), PARTLY, 0),
    ((0.05, 0.02), (0.4, 0.5), NOT, 0), ((0.05, 0.02), (0.05, 0.02), NOT, 0)])
def test_verdicts_of_runs_that_agree(early, late, verdict, wholly):
    found = concluded(*[rows(early, late)] * 3)
    assert (found.verdict, found.runs, found.of) == (verdict, wholly, 3)
    assert found.value == pytest.approx(late[0] - early[0])


def test_what_is_said_is_counted():
    said = concluded(*[rows((0.9, 0.02), (0.4, 0.02))] * 2, rows((0.8, 0.02), (0.05, 0.02)))
    assert said.verdict == PARTLY and said.here.startswith("Greedy, 80 to 90 % of the stretches")
    assert said.here.endswith("in 3 of 3 (greedy) and 0 of 3 (drawn) runs, late text in 2 of 3 (greedy) and 0 of 3 "
                              "(drawn).")


def test_runs_without_a_minimum_or_too_few_decide_nothing():
    assert concluded(*[rows((0.9, 0.5), (0.9, 0.5))] * 3, early=None).verdict == OPEN
    assert concluded(*[rows((0.9, 0.5), (0.05, 0.02))] * 2).verdict == OPEN

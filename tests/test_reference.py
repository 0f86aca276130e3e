"""The reference suite's study, on a plan of seconds.

Trusted: a run that was never stopped, `geometry` and transformers' own loss on a model that was trained by `Loop`
alone, and the operations counted by hand for one shape.
"""

import copy
import json
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pyarrow
import pytest
import torch
import yaml
from filelock import FileLock

from reptrace.measures.spectra import geometry
from reptrace.models.hidden_states import FINAL, last_token_states
from reptrace.report.profiles import ROOT
from reptrace.texts.corpora import Corpus
from reptrace.training.lean import Averaging, Loop
from reptrace.training.runs import Run

sys.path.insert(0, str(ROOT / "studies"))
import reference

PLAN = {"text": "weather", "vocabulary": 300, "tokenizer_from": 1, "sequences": 40, "length": 8, "held_out_tokens": 256,
        "learning_rate": 0.005, "warmup_steps": 4, "schedule": "constant_with_warmup", "weight_decay": 0.01,
        "averaging": {"weight": 0.1, "every": 2}, "alpha_ranks": [4, 15],
        "groups": {"cpu": {"context": 16, "batch": 2, "head_width": 8, "keep_state": True, "sizes": [
            {"width": 16, "layers": 1, "tokens": 32 * 80, "seeds": [0, 1]},
            {"width": 32, "layers": 1, "tokens": 32 * 4, "seeds": [0]}]}}}
WORDS = np.random.default_rng(0).choice(["sun", "rain", "wind", "snow", "fog", "hail", "and", "then", "."], 20_000)
CORPUS = Corpus("weather", [" ".join(WORDS[k : k + 100]) for k in range(0, 20_000, 100)])


@pytest.fixture(scope="module")
def text():
    return reference.make_text(CORPUS, PLAN)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(reference, "matmul_peak", lambda device, dtype: 1e12)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="module")
def whole(text, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "matmul_peak", lambda device, dtype: 1e12)
        folder = tmp_path_factory.mktemp("whole")
        reference.Reference(PLAN, "cpu", text, folder / "out", folder / "build").train(float("inf"))
    return folder


def read(folder, name="cpu-d16.parquet"):
    return pd.read_parquet(folder / "out" / name)


def test_the_text_is_split_by_document_and_its_stretches_lie_inside_of_documents(text):
    train, _ = CORPUS.split()
    assert (text.train == 0).sum() == len(train.documents)
    assert text.probe.shape == (40, 8) and text.held_out.size == 256 and text.probe.all() and text.held_out.all()
    assert len(np.unique(text.probe, axis=0)) > 30  # the words are few, but stretches don't repeat by construction


@pytest.mark.parametrize("suffix", ["", ".zst"])
def test_a_packed_text_comes_back_as_it_was(text, tmp_path, suffix):
    text.write(tmp_path / "text.npz")
    content = (tmp_path / "text.npz").read_bytes()
    path = tmp_path / f"text.npz{suffix}"
    path.write_bytes(pyarrow.compress(content, "zstd", asbytes=True) if suffix else content)
    back = reference.Text.read(path)
    for kept in ("train", "held_out", "probe"):
        np.testing.assert_array_equal(getattr(back, kept), getattr(text, kept))
    assert back.facts == text.facts


def test_every_size_and_seed_has_every_checkpoint_and_nothing_is_left_to_go_on_from(whole):
    table = read(whole)
    raw = table[table.weights == "raw"]
    assert [list(part.step) for _, part in raw.groupby("seed")] == [[0, 1, 2, 4, 8, 16, 32, 64, 80]] * 2
    assert list(table[table.weights == "averaged"].step) == [64, 80, 64, 80]
    assert list(read(whole, "cpu-d32.parquet").step) == [0, 1, 2, 4]
    assert not list(whole.glob("build/**/*.pt"))
    assert raw.held_out_loss.iloc[8] < 0.9 * raw.held_out_loss.iloc[0]
    for _, row in table.iterrows():
        assert row.rankme == pytest.approx(np.exp(-(p := row.eigenvalues / row.eigenvalues.sum()) @ np.log(p + 1e-30)),
                                           rel=1e-4)  # the eigenvalues are kept in float32


def test_the_last_row_is_what_the_loop_and_the_library_s_own_functions_give(whole, text):
    torch.set_flush_denormal(True)
    plan = PLAN["groups"]["cpu"]
    loop = Loop(Run(**json.loads(read(whole).identity[0])), text.train, Averaging(**PLAN["averaging"]))
    loop.advance(80)
    states = last_token_states(loop.model, text.probe.tolist())[FINAL]
    ids = torch.from_numpy(text.held_out.astype(np.int64)).view(-1, plan["context"])
    with torch.no_grad():
        loss = loop.model(ids, labels=ids).loss.item()
    row = read(whole).query("seed == 0 and weights == 'raw' and step == 80").iloc[0]
    # other batches and other sizes of the chunks of training: float32 rounding
    assert row.held_out_loss == pytest.approx(loss, rel=1e-5)
    assert row.rankme == pytest.approx(geometry(states, (4, 15)).rankme, rel=1e-4)


def test_runs_cut_short_again_and_again_end_as_those_never_stopped(whole, text, tmp_path, monkeypatch):
    ticks = iter(range(10**9))
    monkeypatch.setattr(reference.time, "perf_counter", lambda: next(ticks))  # every look at the clock takes a second
    for _ in range(200):
        suite = reference.Reference(PLAN, "cpu", text, tmp_path / "out", tmp_path / "build")
        suite.train(next(ticks) + 30)
        if (tmp_path / "out" / "cpu-d32.parquet").exists() and (read(tmp_path).step == 80).sum() == 4:
            break
    else:
        pytest.fail("it never came to an end")
    keys, measured = ["seed", "step", "weights"], ["rankme", "alpha", "held_out_loss", "tokens"]
    found, expected = read(tmp_path).set_index(keys), read(whole).set_index(keys)
    assert len(found) > len(expected)  # those of the stops
    assert found.loc[expected.index, measured].equals(expected[measured])


def test_time_that_is_up_before_the_first_step_leaves_a_whole_checkpoint(text, tmp_path):
    suite = reference.Reference(PLAN, "cpu", text, tmp_path / "out", tmp_path / "build")
    suite.go_on(suite.planned[0], 0.0)
    assert list(read(tmp_path).step) == [0] and len(list(tmp_path.glob("build/*/state.pt"))) == 1


def test_time_that_is_up_before_the_next_step_leaves_the_row_of_a_stop_as_it_is(text, tmp_path, monkeypatch):
    ticks = iter(range(10**9))
    monkeypatch.setattr(reference.time, "perf_counter", lambda: next(ticks))
    suite = reference.Reference(PLAN, "cpu", text, tmp_path / "out", tmp_path / "build")
    suite.go_on(suite.planned[0], next(ticks) + 40)
    stopped = suite.rows(suite.planned[0])
    assert 0 < stopped.step.max() < 80 and stopped[stopped.step > 0].query("weights == 'raw'").train_loss.notna().all()
    suite.go_on(suite.planned[0], 0.0)
    pd.testing.assert_frame_equal(suite.rows(suite.planned[0]), stopped)


def test_a_text_is_made_anew_for_other_settings(monkeypatch, tmp_path):
    monkeypatch.setattr(reference, "BUILD", tmp_path)
    monkeypatch.setattr("reptrace.texts.corpora.open_text", lambda name: CORPUS)
    plans = [PLAN, PLAN | {"length": 4}, PLAN | {"sequences": 30}, PLAN | {"tokenizer_from": 2}, PLAN]
    texts = [reference.default_text(plan) for plan in plans]
    assert [each.probe.shape for each in texts] == [(40, 8), (40, 4), (30, 8), (40, 8), (40, 8)]
    assert len(list(tmp_path.iterdir())) == 4


def test_a_second_call_waits_for_the_first(text, tmp_path):
    suite = reference.Reference(PLAN, "cpu", text, tmp_path / "out", tmp_path / "build")
    (tmp_path / "build").mkdir()
    with ThreadPoolExecutor(1) as pool, FileLock(tmp_path / "build/lock"):
        other = pool.submit(suite.train, 0.0)  # its time is up already, so that it ends once it may begin
        with pytest.raises(TimeoutError):
            other.result(timeout=0.3)


def test_a_run_is_not_continued_with_other_settings(whole, text):
    plan = copy.deepcopy(PLAN)
    plan["learning_rate"] = 0.001
    with pytest.raises(ValueError, match=r"width 16, seed 0 in .*cpu-d16.parquet' .* other settings: learning_rate"):
        reference.Reference(plan, "cpu", text, whole / "out", whole / "build").train(float("inf"))


@pytest.mark.parametrize(("arguments", "said"), [
    (["--hours", "0"], "above 0"), (["tpu"], "must be one of cpu, gpu, got 'tpu'")])
def test_what_is_asked_wrongly_is_said(arguments, said, capsys):
    with pytest.raises(SystemExit):
        reference.main(arguments)
    assert said in capsys.readouterr().err


def test_too_short_a_held_out_text_is_said():
    with pytest.raises(ValueError, match="has 2 stretches of 3 tokens, less than 3"):
        reference.stretches(np.array([1, 2, 3, 0, 1, 2, 3, 4, 5], np.uint16), 3, 3, 0)


def test_operations_are_those_counted_by_hand():
    run = Run(width=16, layers=1, steps=1, seed=0, vocabulary=300, context=8, batch=1, learning_rate=1, warmup_steps=0,
              schedule="constant", weight_decay=0, corpus="x")
    weights = 16 * 48 + 16 * 16 + 2 * 16 * 64 + 300 * 16  # attention, its output, the MLP, the unembedding
    attention = 2 * 16 * 8  # two products of width 16 over 4 of the 8 positions in the mean, 2 operations each
    small = 48 + 16 + 64 + 16 + 6 * 16  # biases and norms
    assert reference.operations_per_token(run) == 3 * (2 * (weights + small) + attention)


def test_the_plan_of_the_repository_makes_runs_of_the_sizes_it_says():
    plan = yaml.safe_load(reference.PLAN.read_text())
    cpu, gpu = (list(reference.planned(plan, group, "x")) for group in ("cpu", "gpu"))
    assert len({each.run.width for each in cpu}) >= 5 and [each.run.width for each in gpu[:3]] == [256, 512, 768]
    assert 8e7 < gpu[2].run.parameters < 1e8
    assert len({each.run.repository for each in cpu + gpu}) == len(cpu + gpu)

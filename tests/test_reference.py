"""The reference suite's study, on a plan of seconds, and its tracked tables.

Trusted: a run that was never stopped, `geometry` and transformers' own loss on a model that was trained by `Loop`
alone, and the operations counted by hand for one shape; of the tracked tables the plan, the definition of RankMe and
numpy's fit of a line, applied to the spectra in them.
"""

import copy
import json
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow
import pytest
import torch
import yaml
from filelock import FileLock
from limits import SOON, in_background

from reptrace.measures.phases import claims, find_phases
from reptrace.measures.spectra import geometry
from reptrace.measures.within import curvatures, diff_erank
from reptrace.models.hidden_states import FINAL, extract, last_token_states
from reptrace.report.profiles import ROOT
from reptrace.texts.corpora import Corpus
from reptrace.training.lean import Averaging, Loop
from reptrace.training.runs import Run

sys.path.insert(0, str(ROOT / "studies"))
import reference

PLAN = {"text": "weather", "vocabulary": 300, "tokenizer_from": 1, "sequences": 40, "length": 8, "held_out_tokens": 256,
        "learning_rate": 0.005, "warmup_steps": 4, "schedule": "constant_with_warmup", "weight_decay": 0.01,
        "averaging": {"weight": 0.1, "every": 2}, "alpha_ranks": [4, 15], "recipe": 1,
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
        reference.train([reference.Reference(PLAN, "cpu", text, folder / "out", folder / "build")], float("inf"))
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
    units = states / states.norm(dim=1, keepdim=True)
    assert row.mean_cosine == pytest.approx(float((units @ units.T)[~torch.eye(40, dtype=bool)].mean()), rel=1e-3)
    angles = extract(loop.model, text.probe.tolist(), reductions={"of": curvatures}).reduced["of"][FINAL]
    assert row.curvature == pytest.approx(float(angles.mean()), rel=1e-4)


def test_other_readings_are_of_the_weights_as_they_are_and_count_from_the_untrained_model(whole):
    table = read(whole)
    raw = table[table.weights == "raw"]
    names = ["mean_share", "readout_quarter_share", "attention_stable_rank", "prompt_entropy", "sentence_erank"]
    assert raw[names].notna().all(axis=None) and table.loc[table.weights == "averaged", names].isna().all(axis=None)
    assert "cka_last" not in table and "intrinsic_dimension" not in table  # no last yet; too few sequences
    assert raw[raw.step == 0].cka_first.tolist() == pytest.approx([1, 1])
    assert raw[raw.step == 80].cka_first.max() < 0.999
    found = [diff_erank(its) for _, its in raw.groupby("seed")]
    assert all(each.diff_erank.iloc[0] == 0 and each.diff_erank_stderr.iloc[-1] > 0 for each in found)


def test_a_table_from_before_there_were_other_readings_is_gone_on_with(whole, text, tmp_path):
    (tmp_path / "out").mkdir()
    older = read(whole).drop(columns=["mean_share", "curvature", "cka_first"])
    older[older.seed == 0].to_parquet(tmp_path / "out/cpu-d16.parquet")
    reference.train([reference.Reference(PLAN, "cpu", text, tmp_path / "out", tmp_path / "build")], float("inf"))
    both = read(tmp_path)
    assert both[both.seed == 0].curvature.isna().all() and both[both.seed == 1].query(
        "weights == 'raw'").curvature.notna().all()


def test_runs_cut_short_again_and_again_end_as_those_never_stopped(whole, text, tmp_path, monkeypatch):
    ticks = iter(range(10**9))
    monkeypatch.setattr(reference.time, "perf_counter", lambda: next(ticks))  # every look at the clock takes a second
    for _ in range(200):
        suite = reference.Reference(PLAN, "cpu", text, tmp_path / "out", tmp_path / "build")
        reference.train([suite], next(ticks) + 30)
        if (tmp_path / "out" / "cpu-d32.parquet").exists() and (read(tmp_path).step == 80).sum() == 4:
            break
    else:
        pytest.fail("it never came to an end")
    keys, measured = ["seed", "step", "weights"], ["rankme", "alpha", "held_out_loss", "tokens"]
    found, expected = read(tmp_path).set_index(keys), read(whole).set_index(keys)
    assert len(found) > len(expected)  # those of the stops
    assert found.loc[expected.index, measured].equals(expected[measured])


def test_runs_of_two_folders_are_put_together_as_if_they_were_of_one(whole, tmp_path):
    table, (one, two, out) = read(whole), (tmp_path / name for name in ("one", "two", "out"))
    for folder, part in ((one, table[(table.seed == 0) & (table.step < 80)]), (two, table)):
        folder.mkdir()
        part.to_parquet(folder / "cpu-d16.parquet")
    reference.join(one, out)
    reference.main(["--join", str(two), "--out", str(out)])
    pd.testing.assert_frame_equal(pd.read_parquet(out / "cpu-d16.parquet"), table)
    other = json.dumps({**json.loads(table.identity[0]), "seed": 2, "batch": 3})
    table.assign(seed=2, identity=other).to_parquet(two / "cpu-d16.parquet")
    with pytest.raises(ValueError, match="with other settings: batch 3, not 2"):
        reference.join(two, out)
    table.assign(seed=2, averaging="0.2 every 2").to_parquet(two / "cpu-d16.parquet")
    with pytest.raises(ValueError, match=r"with other settings: averaging '0\.2 every 2', not '0\.1 every 2'"):
        reference.join(two, out)
    pd.testing.assert_frame_equal(pd.read_parquet(out / "cpu-d16.parquet"), table)  # as it was
    with pytest.raises(ValueError, match="there is no table"):
        reference.join(tmp_path, out)


def test_time_that_is_up_before_the_first_step_leaves_a_whole_checkpoint(text, tmp_path):
    suite = reference.Reference(PLAN, "cpu", text, tmp_path / "out", tmp_path / "build")
    suite.go_on(suite.planned[0], 0.0)
    assert list(read(tmp_path).step) == [0] and len(list(tmp_path.glob("build/*/state.pt"))) == 1


def test_time_that_is_up_before_anything_is_trained_is_said_and_leaves_nothing(text, tmp_path, capsys):
    suite = reference.Reference(PLAN, "cpu", text, tmp_path / "out", tmp_path / "build")
    reference.train([suite], 0.0)
    assert capsys.readouterr().out == "time is up before cpu, width 32, seed 0\n"
    assert not list(tmp_path.glob("**/*.p*"))


def test_time_that_is_up_before_the_next_step_leaves_the_row_of_a_stop_as_it_is(text, tmp_path, monkeypatch):
    ticks = iter(range(10**9))
    monkeypatch.setattr(reference.time, "perf_counter", lambda: next(ticks))
    suite = reference.Reference(PLAN, "cpu", text, tmp_path / "out", tmp_path / "build")
    suite.go_on(suite.planned[0], next(ticks) + 40)
    stopped = suite.rows(suite.planned[0])
    assert 0 < stopped.step.max() < 80 and stopped[stopped.step > 0].query("weights == 'raw'").train_loss.notna().all()
    suite.go_on(suite.planned[0], 0.0)
    pd.testing.assert_frame_equal(suite.rows(suite.planned[0]), stopped)


def test_a_state_is_not_gone_on_with_where_the_table_lacks_what_came_before_it(text, tmp_path, monkeypatch):
    ticks = iter(range(10**9))
    monkeypatch.setattr(reference.time, "perf_counter", lambda: next(ticks))
    suite = reference.Reference(PLAN, "cpu", text, tmp_path / "out", tmp_path / "build")
    suite.go_on(suite.planned[0], next(ticks) + 40)
    elsewhere = reference.Reference(PLAN, "cpu", text, tmp_path / "elsewhere", tmp_path / "build")
    with pytest.raises(ValueError, match=r"elsewhere/cpu-d16\.parquet' lacks checkpoints before it, from step 0"):
        elsewhere.go_on(elsewhere.planned[0], float("inf"))
    assert not (tmp_path / "elsewhere").exists()


def test_a_text_is_made_anew_for_other_settings(monkeypatch, tmp_path):
    monkeypatch.setattr(reference, "BUILD", tmp_path)
    monkeypatch.setattr("reptrace.texts.corpora.open_text", lambda name: CORPUS)
    plans = [PLAN, PLAN | {"length": 4}, PLAN | {"sequences": 30}, PLAN | {"tokenizer_from": 2}, PLAN]
    texts = [reference.default_text(plan) for plan in plans]
    assert [each.probe.shape for each in texts] == [(40, 8), (40, 4), (30, 8), (40, 8), (40, 8)]
    assert len(list(tmp_path.iterdir())) == 4


def test_a_group_may_have_a_text_of_its_own(monkeypatch, tmp_path):
    plan = copy.deepcopy(PLAN)
    plan["groups"]["other"] = plan["groups"]["cpu"] | {"text": "climate", "tokenizer_from": 2}
    own = reference.plan_of(plan, "other")
    assert (own["text"], own["tokenizer_from"], own["length"]) == ("climate", 2, PLAN["length"])
    assert reference.plan_of(plan, "cpu") == plan


def test_what_costs_least_is_trained_first_whatever_its_group(text, tmp_path, monkeypatch):
    plan, order = copy.deepcopy(PLAN), []
    plan["groups"]["other"] = plan["groups"]["cpu"] | {"sizes": [{"width": 16, "layers": 1, "tokens": 32 * 40,
                                                                 "seeds": [0]}]}
    suites = [reference.Reference(plan, group, text, tmp_path / "out", tmp_path / "build") for group in plan["groups"]]
    monkeypatch.setattr(reference.Reference, "go_on", lambda self, each, deadline: order.append(str(each)))
    reference.train(suites, float("inf"))
    assert order == ["cpu, width 32, seed 0", "other, width 16, seed 0", "cpu, width 16, seed 0",
                     "cpu, width 16, seed 1"]


def test_a_second_call_waits_for_the_first(text, tmp_path):
    suite = reference.Reference(PLAN, "cpu", text, tmp_path / "out", tmp_path / "build")
    (tmp_path / "build").mkdir()
    with FileLock(tmp_path / "build/lock", timeout=SOON):
        other = in_background(reference.train, [suite], 0.0)  # its time is up, so that it ends once it may begin
        with pytest.raises(TimeoutError):
            other.result(timeout=0.3)
    other.result(timeout=SOON)


@pytest.mark.parametrize(("changed", "said"), [
    ({"learning_rate": 0.001}, "learning_rate"), ({"sequences": 30}, "sequences 40, not 30"),
    ({"length": 4}, "length 8, not 4"),
    ({"averaging": {"weight": 0.2, "every": 2}}, "averaging '0.1 every 2', not '0.2 every 2'")])
def test_a_run_is_not_continued_with_other_settings(whole, text, changed, said):
    plan, before = copy.deepcopy(PLAN) | changed, (whole / "out/cpu-d16.parquet").read_bytes()
    text = replace(text, probe=text.probe[:, : plan["length"]])
    with pytest.raises(ValueError, match=rf"width 32, seed 0 in .*cpu-d32.parquet' .* other settings: {said}"):
        reference.train([reference.Reference(plan, "cpu", text, whole / "out", whole / "build")], float("inf"))
    assert (whole / "out/cpu-d16.parquet").read_bytes() == before


def test_a_run_is_not_continued_with_another_tokenizer(whole, text):
    many = len(text.train)
    text = replace(text, train=text.train[:-1])  # as another one would cut it
    with pytest.raises(ValueError, match=f"other settings: unique_tokens {many}, not {many - 1}"):
        reference.train([reference.Reference(PLAN, "cpu", text, whole / "out", whole / "build")], float("inf"))


def test_a_table_that_does_not_say_how_it_was_measured_is_not_gone_on_with(whole, text, tmp_path):
    (tmp_path / "out").mkdir()
    read(whole).drop(columns=reference.ASKED).to_parquet(tmp_path / "out/cpu-d16.parquet")
    with pytest.raises(ValueError, match=r"sequences None, not 40, length None, not 8, averaging None, not '0\.1"):
        reference.train([reference.Reference(PLAN, "cpu", text, tmp_path / "out", tmp_path / "build")], float("inf"))


@pytest.mark.parametrize(("arguments", "said"), [
    (["--hours", "0"], "above 0"), (["cpu", "gpu", "--text", "x"], "the text of one group, got cpu, gpu"),
    (["tpu"], "must be one of cpu, docstrings, gpu, got 'tpu'")])
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
    cpu, _, gpu = (list(reference.planned(plan, group, "x")) for group in plan["groups"])
    assert len({each.run.width for each in cpu}) >= 5 and {each.run.width for each in gpu} == {256, 512, 768}
    assert 8e7 < gpu[-1].run.parameters < 1e8
    assert len({each.run.repository for each in cpu + gpu}) == len(cpu + gpu)


# The tracked tables

TRACKED = sorted(reference.OUT.glob("*.parquet"))
REPOSITORY_PLAN = yaml.safe_load(reference.PLAN.read_text())


def test_the_gpu_s_tables_are_tracked_with_every_size_and_seed_of_the_plan_and_one_text():
    tables = pd.concat([pd.read_parquet(path) for path in TRACKED if path.name.startswith("gpu-")])
    sizes = {size["width"]: size["seeds"] for size in REPOSITORY_PLAN["groups"]["gpu"]["sizes"]}
    assert {width: sorted(part.seed.unique()) for width, part in tables.groupby("width")} == sizes
    assert (tables[["text", "text_fingerprint", "unique_tokens"]].nunique() == 1).all()
    assert tables.text.iloc[0] == REPOSITORY_PLAN["text"]
    assert tables.device.str.startswith("NVIDIA").all() and tables.peak_tflops.between(100, 1000).all()


@pytest.mark.parametrize("path", TRACKED, ids=lambda path: path.stem)
def test_a_tracked_table_is_small_and_holds_what_the_plan_says(path):
    table, (group, _) = pd.read_parquet(path), path.stem.rsplit("-", 1)
    assert path.stat().st_size < 1_000_000
    planned = {each.run.seed: each.run for each in
               reference.planned(REPOSITORY_PLAN, group, json.loads(table.identity[0])["corpus"]) if
               each.table == path.name}
    for (seed, weights), part in table.groupby(["seed", "weights"]):
        run = planned[seed]
        assert [json.loads(identity) for identity in part.identity.unique()] == [run.identity]
        assert (part.parameters == run.parameters).all() and (part.tokens == part.step * run.tokens_per_step).all()
        assert part.tokens.is_monotonic_increasing and part.tokens.is_unique
        every = [step for step in run.checkpoint_steps if step <= part.step.max()]
        assert set(every) - set(part.step) == (
            {step for step in every if step < reference.AVERAGED_FROM} if weights == "averaged" else set())
    averaging = Averaging(**REPOSITORY_PLAN["averaging"])
    assert table[["sequences", "length", "averaging"]].drop_duplicates().values.tolist() == [
        [REPOSITORY_PLAN["sequences"], REPOSITORY_PLAN["length"], str(averaging)]]
    assert table.code.str.match(r"^\d+\.\d+\.\d+").all() and table.packages.str.contains('"torch"').all()


@pytest.mark.parametrize("path", TRACKED, ids=lambda path: path.stem)
def test_rankme_and_alpha_of_a_tracked_table_are_those_of_the_spectra_in_it(path):
    table = pd.read_parquet(path)
    spectra = np.stack(table.eigenvalues).astype(np.float64)
    assert spectra.shape == (len(table), table.width[0]) and (np.diff(spectra) <= 0).all()
    shares = spectra / spectra.sum(1, keepdims=True)
    # the spectra are kept in float32: seven digits
    np.testing.assert_allclose(table.rankme, np.exp(-(shares * np.log(shares + 1e-300)).sum(1)), rtol=1e-5)
    for row, spectrum in zip(table.itertuples(), spectra, strict=True):
        ranks = np.arange(row.alpha_first, row.alpha_last + 1)
        slope = np.polyfit(np.log(ranks), np.log(spectrum[ranks - 1]), 1, w=ranks**-0.5)[0]
        assert row.alpha == pytest.approx(-slope, rel=1e-4)


def test_the_changelog_s_sentences_about_the_gpu_s_tables_are_what_the_detector_finds_in_them():
    tables = pd.concat([pd.read_parquet(path) for path in TRACKED if path.name.startswith("gpu-")])
    raw = tables[tables.weights == "raw"]
    runs = [run for _, run in raw.groupby(["width", "seed"])]
    phases = [find_phases(run.tokens, run.rankme, run.rankme_stderr) for run in runs]
    assert all(set(claims(found).values()) == {"yes"} for found in phases)
    assert all(found.turn.tokens < run.unique_tokens.iloc[0] for found, run in zip(phases, runs, strict=True))
    assert all(not find_phases(run.tokens, 1 / run.alpha, run.alpha_stderr / run.alpha**2).compression for run in runs)
    weights, turns = [run.parameters.iloc[0] for run in runs], np.array([found.turn.tokens for found in phases])
    steady = raw[(raw.width == 768) & (raw.step > 200)]  # after what was compiled
    share = (steady.peak_share * steady.train_seconds).sum() / steady.train_seconds.sum()
    ends, ratios = raw.groupby(["width", "seed"]).tokens.max() / 1e6, turns / weights
    said = " ".join((ROOT / "CHANGELOG.md").read_text().split())
    for sentence in (f"{ends.min():.0f} to {ends.max():.0f} million tokens of code", f"in all {len(runs)} runs",
                     f"the turn is at {turns.min() / 1e6:.0f} to {turns.max() / 1e6:.0f} million tokens",
                     f"at {ratios.min():.1f} to {ratios.max():.1f} tokens a weight",
                     f"peak at width 768 was {share * 100:.0f} %"):
        assert sentence in said


def test_readme_says_which_widths_are_tracked():
    widths = {"from a CPU": set(), "from one GPU": set()}
    for path in TRACKED:
        widths["from one GPU" if path.name.startswith("gpu-") else "from a CPU"] |= set(pd.read_parquet(path).width)
    text = " ".join((ROOT / "README.md").read_text().split())
    for where, its in widths.items():
        *first, last = (str(width) for width in sorted(its))
        assert f"width {', '.join(first)} and {last} {where}" in text

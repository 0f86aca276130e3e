"""Measures that compare checkpoints of a run, and states kept for them.

Trusted: `linear_cka` (tested against kernels) on states that transformers' own model returns for each sequence alone,
numpy on a model's own weights, and the files on the disk.
"""

import json
import os
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from standin_hub import tiny_model, tiny_tokenizer
from test_hidden_states import tiny

from reptrace.__main__ import main
from reptrace.checkpoints.listing import Checkpoint
from reptrace.measures.cka import linear_cka
from reptrace.models.hidden_states import extract
from reptrace.records.store import RecordError, Store
from reptrace.sweeps import references
from reptrace.sweeps.dispatch import Means
from reptrace.sweeps.located import Opening
from reptrace.sweeps.measurement import Settings
from reptrace.sweeps.references import Kept
from reptrace.sweeps.sweep import SuiteSpec, measure_suites, trace, with_others
from reptrace.texts.probes import Probe

RNG = np.random.default_rng(0)
SEQUENCES = [RNG.integers(3, 97, length).tolist() for length in RNG.integers(4, 13, 40)]
PROBE = Probe("made", SEQUENCES, 12, 4)
OPTIONS = {"ranks": (2, 8), "device": "cpu", "progress": False, "batch_size": 8}


@pytest.fixture
def run(tmp_path):
    """Three checkpoints and their states, shape (3, M, d), float64."""
    points, states = [], []
    for step in range(3):
        model = tiny("GPTNeoX", torch.float32)
        torch.manual_seed(step)
        for weight in model.parameters():
            weight.data += 0.1 * torch.randn_like(weight)
        model.save_pretrained(tmp_path / "run" / f"step{step}")
        points.append(Checkpoint(str(tmp_path / "run" / f"step{step}"), step=step))
        with torch.no_grad():
            states.append([model.base_model(torch.tensor([ids])).last_hidden_state[0, -1].numpy() for ids in SEQUENCES])
    return points, torch.tensor(np.array(states), dtype=torch.float64)


@pytest.fixture
def opened(monkeypatch):
    """Steps of the checkpoints that were opened as references."""
    steps, open_at = [], references.open_at
    monkeypatch.setattr(references, "open_at", lambda point, *rest: steps.append(point.step) or open_at(point, *rest))
    return steps


def test_each_checkpoint_is_compared_with_the_first_last_and_previous_and_one_alone_is_opened_for_it(
        run, opened, tmp_path):
    points, states = run
    store = Store(tmp_path / "records")
    table = trace(points, PROBE, store, measures="cka", **OPTIONS)
    assert table.status.tolist() == ["measured"] * 3
    for k in range(3):
        for name, other in {"first": 0, "last": 2, **({"previous": k - 1} if k else {})}.items():
            found = table.loc[k, [f"cka_{name}", f"cka_{name}_stderr"]].astype(float).tolist()
            assert found == pytest.approx(linear_cka(states[k], states[other]), rel=1e-3, abs=1e-6)  # from float32
    assert table.loc[0, ["cka_previous", "cka_previous_stderr"]].isna().all()
    assert opened == [2]  # all others' states are kept as they are measured
    kept = list((store.folder / references.FOLDER).iterdir())
    assert len(kept) == 3 and {path.suffix for path in kept} == {".safetensors"}


def test_a_record_holds_whose_states_it_was_compared_with_and_a_changed_neighbour_means_a_new_one(
        run, opened, tmp_path):
    points, _ = run
    store = Store(tmp_path / "records")
    whole = trace(points, PROBE, store, measures="cka", **OPTIONS)
    first, second, third = map(json.loads, whole.identity)
    assert first["previous"] is None and second["previous"] == first["weights"]
    assert {each["first"] for each in (first, second, third)} == {first["weights"]}
    assert {each["last"] for each in (first, second, third)} == {third["weights"]}
    opened.clear()
    fewer = trace(points[::2], PROBE, store, measures="cka", **OPTIONS)
    assert fewer.identity[0] == whole.identity[0] and fewer.identity[1] not in set(whole.identity)
    assert fewer.cka_previous[1] == fewer.cka_first[1] == whole.cka_first[2]
    assert not opened
    # without what was kept, they are opened once more
    shutil.rmtree(store.folder / references.FOLDER)
    assert trace(points[1:], PROBE, store, measures="cka", **OPTIONS).cka_last[0] == whole.cka_last[1]
    assert opened == [2]


def test_states_of_another_probe_are_refused_with_both_fingerprints(run, tmp_path):
    points, _ = run
    store, other = Store(tmp_path / "records"), Probe("other", SEQUENCES[::-1], 12, 4)
    folder = store.folder / references.FOLDER
    trace(points[:1], other, store, measures="cka", **OPTIONS)
    (foreign,) = folder.iterdir()
    trace(points[:2], PROBE, Store(tmp_path / "others"), measures="cka", **OPTIONS)
    for path in (tmp_path / "others" / references.FOLDER).iterdir():
        shutil.copy(foreign, folder / path.name)  # as after a careless copy
    table = trace(points[:2], PROBE, store, measures="cka", **OPTIONS)
    assert table.status.tolist() == ["failed"] * 2
    assert all(f"expected states of probe {PROBE.fingerprint}" in reason and f"holds those of probe {other.fingerprint}"
               in reason for reason in table.reason)


def test_states_are_kept_within_the_budget_and_the_least_recently_used_go_first(tmp_path):
    kept = Kept(tmp_path / "states", budget=3 * 600)  # a file has a header, too
    states = {"final": torch.arange(100.0).view(20, 5)}
    names = [{"weights": str(k), "probe": "p"} for k in range(4)]
    for k, each in enumerate(names[:3]):
        kept.put(each, states)
        os.utime(kept.path(each), (k, k))
    assert torch.equal(kept.get(names[0])["final"], states["final"])  # used now
    kept.put(names[3], states)
    assert [kept.path(each).exists() for each in names] == [True, False, True, True] and kept.get(names[1]) is None
    kept.put({"weights": "large", "probe": "p"}, {"final": torch.zeros(1000, 5)})  # more than all of the budget
    assert len(list(kept.folder.iterdir())) == 3
    kept.path(names[3]).write_bytes(b"cut short")
    assert kept.get(names[3]) is None
    kept.put(names[3], states)  # what was damaged is kept anew
    assert torch.equal(kept.get(names[3])["final"], states["final"])


def test_a_failure_that_is_another_checkpoints_names_that_one(run, tmp_path):
    points, _ = run
    path = tmp_path / "run" / "step2"
    broken = tiny("GPTNeoX", torch.float32).from_pretrained(path)
    broken.base_model.layers[0].mlp.dense_h_to_4h.weight.data.fill_(float("nan"))
    broken.save_pretrained(path)
    table = trace(points, PROBE, Store(tmp_path / "records"), measures=["rankme", "cka"], **OPTIONS)
    assert table[["step", "status"]].values.tolist() == [[0, "measured"], [0, "failed"], [1, "measured"], [1, "failed"],
                                                         [2, "failed"]]
    assert all("cka: " in reason and "step2, which this one is compared with: NonFiniteError" in reason
               for reason in table.reason[[1, 3]])
    assert "compared" not in table.reason[4]
    plain = trace(points[:2], PROBE, Store(tmp_path / "plain"), **OPTIONS)
    assert table.rankme[[0, 2]].tolist() == plain.rankme.tolist() and "cka_first" not in table


def test_a_layer_s_measures_all_join_into_the_rows_of_another_call(run, tmp_path):
    points, _ = run
    store = Store(tmp_path / "records")
    plain = trace(points, PROBE, store, layers=[1, "final"], **OPTIONS)
    shape = trace(points, PROBE, store, layers=[1, "final"], measures=["anisotropy", "cka"], **OPTIONS)
    trace(points[:1], Probe("other", SEQUENCES[:30], 12, 4), store, layers=[1, "final"], measures="cka", **OPTIONS)
    together = with_others(shape, store)
    assert together.layer.tolist() == shape.layer.tolist() and "conflicts" not in together
    for name, table in {"rankme": plain, "alpha_stderr": plain, "cka_last": shape, "mean_cosine": shape}.items():
        np.testing.assert_array_equal(together[name], table[name])
    assert with_others(plain, store).mean_cosine.equals(shape.mean_cosine)


def test_what_was_compared_with_another_last_checkpoint_is_not_mixed_in(run, tmp_path):
    points, _ = run
    store = Store(tmp_path / "records")
    trace(points[:2], PROBE, store, measures="cka", **OPTIONS)
    grown = trace(points, PROBE, store, measures="cka", **OPTIONS)
    assert with_others(grown, store).equals(grown)
    both = with_others(trace(points, PROBE, store, **OPTIONS), store)  # either may be meant: both are told
    assert both.cka_first.notna().all() and both.rankme.notna().all()
    assert "cka_last" in both.conflicts[0] and "(record " in both.conflicts[0] and pd.isna(both.conflicts[2])


def test_what_failed_in_another_call_is_no_gap_of_this_one_and_a_damaged_record_is_named(run, tmp_path):
    points, _ = run
    store = Store(tmp_path / "records")
    failed = trace(points, Probe("few", SEQUENCES[:9], 12, 4), store, measures="readout", **OPTIONS)
    plain = trace(points, Probe("few", SEQUENCES[:9], 12, 4), store, **OPTIONS)
    assert failed.status.eq("failed").all() and with_others(plain, store).equals(plain)
    store.path(json.loads(failed.identity[0])).write_bytes(b"cut short")
    with pytest.raises(RecordError, match=r"is damaged .* Delete that"):
        with_others(plain, store)


def test_what_was_measured_beside_a_failure_joins_into_the_rows_of_another_call(run, tmp_path):
    points, _ = run
    store, few = Store(tmp_path / "records"), Probe("few", SEQUENCES[:9], 12, 4)
    partly = trace(points, few, store, measures=["anisotropy", "readout"], **OPTIONS)
    plain = trace(points, few, store, **OPTIONS)
    together = with_others(plain, store)
    assert together.status.eq("measured").all() and together.rankme.tolist() == plain.rankme.tolist()
    assert together.mean_cosine.tolist() == partly.mean_cosine.dropna().tolist()
    own = with_others(partly, store)  # its own gaps stay
    assert own.status.tolist() == ["measured", "failed"] * 3
    assert own.rankme.dropna().tolist() == plain.rankme.tolist() == own.rankme[::2].tolist()


def test_too_few_sequences_for_readout_are_told_before_the_forward_pass(run, tmp_path, monkeypatch, capsys):
    points, _ = run
    few, told = Probe("few", SEQUENCES[:9], 12, 4), []

    def passed(*arguments):
        told.append(capsys.readouterr().err)
        return extract(*arguments)

    monkeypatch.setattr("reptrace.models.hidden_states.extract", passed)
    said = r"readout compares (\d+) leading directions of the states: that needs (\d+) sequences at least, got 9: "
    alone = trace(points[:1], few, Store(tmp_path / "records"), measures="readout", **OPTIONS)
    assert alone.status.tolist() == ["failed"] and not told
    needed, least = map(int, re.search(said, alone.reason[0]).groups())
    assert least == needed + 2 > 9
    both = trace(points[:1], few, Store(tmp_path / "records"), measures=["rankme", "readout"], **OPTIONS)
    assert both.status.tolist() == ["measured", "failed"] and both.rankme.notna().tolist() == [True, False]
    assert "step0: readout will be missing: " in told[0]
    assert re.search(said, told[0]) and re.search(said, both.reason[1])


def test_refining_is_refused_where_it_would_change_the_previous_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="another previous one: ask for cka in a second call, without refining"):
        measure_suites(SuiteSpec("pythia-14m", refine=2), "docstrings", tmp_path, None,
                       Settings(measures=("rankme", "cka")), Opening(), Means())


def test_readout_and_weights_are_read_off_the_models_own_matrices(run, tmp_path):
    points, states = run
    row = trace(points[2:], PROBE, Store(tmp_path / "records"), measures=["readout", "weights"], **OPTIONS).iloc[0]
    head = tiny("GPTNeoX", torch.float32).from_pretrained(points[2].model).get_output_embeddings().weight.detach()
    weights = head.double().numpy() - head.double().numpy().mean(0)
    inside = np.linalg.svd(weights)[2][:8].T  # a quarter of 32
    centred = states[2].numpy() - states[2].numpy().mean(0)
    assert row.readout_quarter_share == pytest.approx(np.square(centred @ inside).sum() / np.square(centred).sum(),
                                                      rel=1e-4)
    assert row.unembedding_condition == pytest.approx(np.linalg.cond(head.numpy()), rel=1e-4)
    assert not row.unembedding_tied and row.attention_fused == 0


def test_the_command_line_takes_all_measures_and_joins_calls(tmp_path, capsys):
    for step in range(3):
        (tmp_path / "run" / f"step{step}").mkdir(parents=True)
        for name, content in (tiny_model("gpt_neox", step) | tiny_tokenizer()).items():
            (tmp_path / "run" / f"step{step}" / name).write_bytes(content)
    (tmp_path / "texts.jsonl").write_text("".join(
        json.dumps({"text": " ".join(map(str, RNG.integers(0, 9, 12)))}) + "\n" for _ in range(120)))
    words = ["trace", "--model", str(tmp_path / "run"), "--text", str(tmp_path / "texts.jsonl"), "--max-length", "12",
             "--min-length", "4", "--sequences", "110", "--device", "cpu", "--ranks", "2", "8", "--out",
             str(tmp_path / "out"), "--measures"]
    assert main([*words, "rankme", "alpha"]) == 0
    assert main([*words, "anisotropy", "cka", "readout", "weights", "intrinsic_dimension"]) == 0
    table = pd.read_csv(tmp_path / "out" / "table.csv")
    names = ["rankme", "alpha", "mean_cosine", "cka_last", "readout_share", "mlp_stable_rank", "intrinsic_dimension"]
    assert len(table) == 3 and table[names].notna().all(axis=None)
    said = capsys.readouterr()
    assert "cka_last 1 +- " in said.out and "RankMe" in said.out
    assert main([*words, "ckaa"]) == 1 and "Did you mean cka?" in capsys.readouterr().err
    words[words.index("110")] = "50"
    assert main([*words, "intrinsic_dimension"]) == 1
    assert "intrinsic_dimension needs 100 sequences at least, got 50" in capsys.readouterr().err

"""Trusted: numpy's eigenvalues of features taken from transformers' own unbatched output, and files left on disk."""

import json
import shutil
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch
from limits import SOON, line
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

import reptrace
from reptrace.checkpoints.listing import Checkpoint, checkpoints
from reptrace.records.store import RecordError, Store
from reptrace.sweeps.measurement import GeometryPart
from reptrace.sweeps.sweep import sweep, trace
from reptrace.texts.corpora import Probe, train_tokenizer
from reptrace.training.pretrain import publish

VOCABULARY, WIDTH = 300, 16


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(["ice", "water", "steam", "heat", "cold", "."], 12)) for _ in range(60)]


@pytest.fixture(scope="module")
def tokenizer(texts):
    return train_tokenizer(texts, VOCABULARY)


def save_model(folder, seed, tokenizer=None):
    torch.manual_seed(seed)
    config = GPTNeoXConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2,
                           intermediate_size=32, max_position_embeddings=32)
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    if tokenizer:
        tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, tokenizer):
    """A Trainer's folder of three checkpoints, out of order by name."""
    folder = tmp_path_factory.mktemp("run")
    for step in (20, 100, 3):
        save_model(folder / f"checkpoint-{step}", step, tokenizer)
    return folder


@pytest.fixture(scope="module")
def probe():
    rng = np.random.default_rng(1)
    return Probe("random", [rng.integers(2, VOCABULARY, n).tolist() for n in rng.integers(3, 20, 80)], 20, 3)


def eigenvalues_by_numpy(folder, sequences):
    model = GPTNeoXForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        rows = [model(torch.tensor([s]), output_hidden_states=True).hidden_states[-1][0, -1].numpy() for s in sequences]
    return np.linalg.eigvalsh(np.cov(np.array(rows, dtype=np.float64).T, bias=True))[::-1]


def test_measure_equals_numpy_on_the_model_s_own_unbatched_states(run, texts, tokenizer):
    found = reptrace.measure(str(run / "checkpoint-3"), texts, max_length=10, ranks=(2, 10))
    cut = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=10)["input_ids"]
    expected = eigenvalues_by_numpy(run / "checkpoint-3", cut)
    # float32 forward passes in other batches differ by 1e-6 relative to the largest eigenvalue
    np.testing.assert_allclose(found.eigenvalues, expected, atol=1e-5 * expected[0])
    p = expected[:-1] / expected[:-1].sum()  # the last one is the direction that the layer norm removes
    assert found.rankme == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-4)
    low, high = found.rankme_interval
    assert low < found.rankme < high and found.alpha.ranks == (2, 10)


def test_a_model_object_needs_its_tokenizer_and_texts_long_enough(run, texts, tokenizer):
    model = reptrace.load(str(run / "checkpoint-3"))
    with pytest.raises(ValueError, match="tokenizer"):
        reptrace.measure(model, texts)
    with pytest.raises(ValueError, match="0 of 60 different texts have at least 500 tokens"):
        reptrace.measure(model, texts, tokenizer, min_length=500)


def test_a_folder_of_trainer_checkpoints_is_traced_whole_in_order_of_steps(run, probe, tmp_path):
    table = trace(checkpoints(str(run), tokens_per_step=7), probe, Store(tmp_path), ranks=(2, 10), progress=False)
    assert table.step.tolist() == [3, 20, 100] and table.tokens.tolist() == [21, 140, 700]
    for _, row in table.iterrows():
        expected = eigenvalues_by_numpy(row.model, probe.sequences)
        np.testing.assert_allclose(row.eigenvalues, expected, atol=1e-5 * expected[0])  # float32, as above
    assert (table.status == "measured").all() and table.rankme_stderr.gt(0).all()
    for column in ("code", "packages", "weights", "probe_fingerprint", "dtype_forward", "device", "batch_size",
                   "wall_seconds", "alpha_first_rank"):
        assert table[column].notna().all(), column


def test_one_of_a_kind_counts_as_a_list_of_one(run, probe, tmp_path):
    several = trace(checkpoints(str(run))[:1], [probe], Store(tmp_path), layers=("final",), ranks=(2, 10),
                    progress=False)
    one = trace(checkpoints(str(run))[0], probe, Store(tmp_path), layers="final", ranks=(2, 10),
                trust="me/mine", progress=False)
    assert one.equals(several)


@pytest.mark.parametrize(("change", "told"), [
    ({"checkpoints": "me/model"}, r"expected checkpoints, got str 'me/model'.*listing.checkpoints\(name\)"),
    ({"checkpoints": [3]}, "expected checkpoints"), ({"checkpoints": None}, "expected checkpoints"),
    ({"probe": "text.txt"}, r"expected a probe, or several, got str .*Corpus\(name, texts\)"),
    ({"probe": [[1, 2], [3]]}, "expected a probe"), ({"probe": []}, "expected a probe"),
    ({"trust": True}, "expected repositories to trust, by name"), ({"trust": {"a": False}}, "to trust, by name")])
def test_what_is_no_checkpoint_probe_or_name_is_refused(run, probe, tmp_path, change, told):
    given = {"checkpoints": checkpoints(str(run)), "probe": probe, "store": Store(tmp_path), "progress": False} | change
    with pytest.raises(TypeError, match=told):
        trace(**given)


def test_a_sweep_needs_names(tmp_path):
    with pytest.raises(ValueError, match="a sweep needs a suite and a text at least"):
        sweep([], "docstrings", tmp_path)
    with pytest.raises(TypeError, match="expected suites, by name, one or a list of them; got int 3"):
        sweep(3, "docstrings", tmp_path)


def test_an_option_that_there_is_not_is_refused_with_those_that_there_are(tmp_path):
    with pytest.raises(TypeError, match=r"no option sequences; there are .*workers.* as ProbeSpec\(text"):
        sweep("pythia-14m", "docstrings", tmp_path, sequences=100)
    with pytest.raises(TypeError, match=r"no option layer; there are .*layers, [^P]*$"):
        trace([], Probe("made", [[1, 2], [3, 4]], 2, 2), Store(tmp_path), layer=3)


def test_what_is_done_is_not_done_again_and_other_weights_or_settings_are(run, probe, tmp_path, monkeypatch):
    store, points = Store(tmp_path / "records"), checkpoints(str(run))
    first = trace(points, probe, store, ranks=(2, 10), progress=False)
    with monkeypatch.context() as patched:
        patched.setattr("reptrace.models.loading.load", lambda *a, **k: pytest.fail("measured again"))
        again = trace(points, probe, store, ranks=(2, 10), progress=False)
    assert again.equals(first)
    trace(points, probe, store, ranks=(2, 9), progress=False)
    assert len(list(store.folder.glob("*.parquet"))) == 6
    other = Probe("other", probe.sequences[::-1], 20, 3)
    trace(points[:1], other, store, ranks=(2, 10), progress=False)
    assert len(list(store.folder.glob("*.parquet"))) == 7


def test_two_processes_give_what_one_gives(run, probe, tmp_path, side_by_side):
    one, two = (trace(checkpoints(str(run)), probe, Store(tmp_path / str(n)), ranks=(2, 10), workers=n, progress=False)
                for n in (1, 2))
    # the same computation, up to the order of sums in products on one thread or several
    np.testing.assert_allclose(two.rankme, one.rankme, rtol=1e-5)


def test_all_layers_are_rows(run, probe, tmp_path):
    table = trace(checkpoints(str(run))[:1], probe, Store(tmp_path), layers="all", ranks=(2, 10), progress=False)
    assert table.layer.tolist() == ["0", "1", "2", "final"]


def test_a_layer_that_does_not_vary_is_a_gap_beside_the_others_and_is_tried_again(run, probe, tmp_path, monkeypatch):
    ends = Probe("ends", [[*ids[:-1], 7] for ids in probe.sequences], 20, 3)  # layer 0 is that token's embedding
    points, store, options = checkpoints(str(run))[:1], Store(tmp_path), {"ranks": (2, 10), "progress": False}
    table = trace(points, ends, store, layers="all", **options)
    assert table[["layer", "status"]].values.tolist() == [["0", "failed"], *([layer, "measured"] for layer in
                                                                            ("1", "2", "final"))]
    assert "layer 0: all eigenvalues are zero" in table.reason[0] and np.isnan(table.rankme[0])
    final = eigenvalues_by_numpy(run / "checkpoint-3", ends.sequences)
    np.testing.assert_allclose(table.eigenvalues[3], final, rtol=1e-4, atol=1e-5 * final[0])  # states in float32
    asked = []
    monkeypatch.setattr(GeometryPart, "rows", lambda part, *_: asked.append(part) or [{"layer": "0", "rankme": 2.5}])
    assert trace(points, ends, store, layers="all", **options).rankme.tolist() == [2.5] and len(asked) == 1
    trace(points, ends, store, layers="all", **options)
    assert len(asked) == 1


def test_a_failed_checkpoint_is_a_gap_with_its_reason_and_is_tried_again(run, probe, tmp_path, tokenizer):
    broken = tmp_path / "run"
    for step in (1, 2, 3):
        save_model(broken / f"checkpoint-{step}", step)
    model = GPTNeoXForCausalLM.from_pretrained(broken / "checkpoint-2")
    with torch.no_grad():
        model.gpt_neox.layers[1].mlp.dense_h_to_4h.weight[0, 0] = float("nan")
    model.save_pretrained(broken / "checkpoint-2")
    points, store = checkpoints(str(broken)), Store(tmp_path / "records")
    table = trace(points, probe, store, ranks=(2, 10), progress=False)
    assert table.status.tolist() == ["measured", "failed", "measured"]
    assert "NaN or infinity" in table.reason[1] and "layer final" in table.reason[1]
    assert np.isnan(table.rankme[1]) and table.step[1] == 2

    save_model(broken / "checkpoint-2", 2)
    mended = trace(points, probe, store, ranks=(2, 10), progress=False)
    assert (mended.status == "measured").all()


def test_a_missing_revision_is_a_gap_that_says_what_there_is(run, probe, tmp_path, tokenizer):
    save_model(tmp_path / "files", 0, tokenizer)
    publish(tmp_path / "files", "a/b", "step1", tmp_path / "hub")
    points = [Checkpoint("a/b", f"step{step}", step, None, str(tmp_path / "hub")) for step in (1, 2)]
    table = trace(points, probe, Store(tmp_path / "records"), ranks=(2, 10), progress=False)
    assert table.status.tolist() == ["measured", "failed"]
    assert "'step2'" in table.reason[1] and "It has step1" in table.reason[1]


def test_a_corrupt_record_is_an_error_that_names_the_file(run, probe, tmp_path):
    store = Store(tmp_path)
    trace(checkpoints(str(run))[:1], probe, store, ranks=(2, 10), progress=False)
    (record,) = store.folder.glob("*.parquet")
    record.write_bytes(record.read_bytes()[:100])
    with pytest.raises(RecordError, match=record.name):
        trace(checkpoints(str(run))[:1], probe, store, ranks=(2, 10), progress=False)


def test_a_store_that_cannot_be_written_stops_the_sweep(run, probe, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="cannot write to folder"):
        trace(checkpoints(str(run))[:1], probe, Store(tmp_path / "file" / "records"), ranks=(2, 10), progress=False)


def test_a_killed_sweep_leaves_no_worker_behind(tmp_path):
    script = tmp_path / "pool.py"
    script.write_text(
        "import os, time\nfrom concurrent.futures import ProcessPoolExecutor\n"
        "from reptrace.support.processes import end_with_parent\n"
        "if __name__ == '__main__':\n"
        "    with ProcessPoolExecutor(1, initializer=end_with_parent) as pool:\n"
        "        print(pool.submit(os.getpid).result(), flush=True)\n        time.sleep(60)\n")
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    with parent:
        worker = int(line(parent))
        parent.kill()
    deadline = time.monotonic() + SOON
    while psutil.pid_exists(worker) and psutil.Process(worker).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the worker outlived its parent"
        time.sleep(0.05)


def test_steps_and_tokens_are_those_asked_for_now_not_those_of_the_record(run, probe, tmp_path):
    store = Store(tmp_path)
    trace(checkpoints(str(run)), probe, store, ranks=(2, 10), progress=False)
    table = trace(checkpoints(str(run), tokens_per_step=100), probe, store, ranks=(2, 10), progress=False)
    assert table.tokens.tolist() == [300, 2000, 10000]


def test_another_configuration_with_the_same_weights_is_another_measurement(run, probe, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(run / "checkpoint-3", folder)
    store = Store(tmp_path / "records")
    (folder / "optimizer.bin").write_bytes(b"1")
    first = trace(checkpoints(str(folder)), probe, store, ranks=(2, 10), progress=False)
    (folder / "optimizer.bin").write_bytes(b"2")  # decides nothing
    again = trace(checkpoints(str(folder)), probe, store, ranks=(2, 10), progress=False)
    assert again.identity[0] == first.identity[0]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 0.1}))
    changed = trace(checkpoints(str(folder)), probe, store, ranks=(2, 10), progress=False)
    assert changed.rankme[0] != first.rankme[0]


@pytest.mark.parametrize("options, message", [({"ranks": (5, 3)}, "1-based"), ({"batch_size": 0}, "positive")])
def test_options_that_cannot_be_right_stop_before_any_checkpoint_is_opened(run, probe, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        trace(checkpoints(str(run)), probe, Store(tmp_path), progress=False, **options)
    assert list(tmp_path.iterdir()) == []

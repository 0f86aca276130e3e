"""Sweeps of registered suites, over a hub: each checkpoint once, whatever happens, and nothing lost.

Trusted: the stand-in hub's log of what was asked for and its commits; numpy's eigenvalues of the models' own states,
one sequence at a time and unpadded; hashlib; pyarrow reading files without our code; the operating system (SIGKILL, a
mounted file system that is really full). Where a number is compared with another of the same computation (a sweep that
was cut with one that was not), there is no tolerance; against numpy, float32 in other batches allows 1e-5 of the
largest eigenvalue.
"""

import errno
import hashlib
import io
import json
import os
import pickle
import re
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
import torch
from clusters import wait_until
from limits import SOON, in_background, join, run
from standin_hub import fineweb, tiny_model, tiny_state, tiny_tokenizer

from reptrace.__main__ import main
from reptrace.checkpoints import listing
from reptrace.checkpoints.downloads import weights_cache
from reptrace.checkpoints.listing import checkpoints
from reptrace.checkpoints.suites import suite
from reptrace.measures import spectra
from reptrace.models.loading import load, load_tokenizer
from reptrace.records.store import Store
from reptrace.sweeps import plan
from reptrace.sweeps.sweep import sweep, trace
from reptrace.texts import corpora

PYTHIA, WEIGHTS = "EleutherAI/pythia-14m", "model.safetensors"
STEPS = (0, 1, 2, 1000, 3000)
OF_TEXT, SMALL = {"sequences": 60, "max_length": 24, "min_length": 4}, {"ranks": (2, 8), "progress": False}
ON_SHELL = ["--sequences", "60", "--max-length", "24", "--min-length", "4", "--ranks", "2", "8"]


@pytest.fixture(scope="module")
def documents():
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), n)) for n in rng.integers(1, 8, 500)]
    return [" ".join(rng.choice(words, n)) for n in rng.integers(1, 12, 150)]


@pytest.fixture(scope="module")
def text(documents, tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": document}) for document in documents))
    return str(path)


def pythia(step, **options):
    """Files of a checkpoint; its tokenizer has no pad token, as Pythia's has none."""
    return tiny_model("gpt_neox", step, **options) | tiny_tokenizer(pad=False)


@pytest.fixture
def commits(hub):
    """step -> commit, of a whole Pythia."""
    return {step: hub.put(PYTHIA, f"step{step}", pythia(step)) for step in STEPS}


@pytest.fixture
def swept(text, tmp_path):
    """A function that sweeps into `out`."""
    def sweep_into(names="pythia-14m", texts=text, out="out", **options):
        specs = [corpora.ProbeSpec(each, **OF_TEXT) for each in ([texts] if isinstance(texts, (str, Path)) else texts)]
        return sweep(names, specs, tmp_path / out, **SMALL | options)

    return sweep_into


@pytest.fixture(scope="module")
def made():
    return []


@pytest.fixture
def whole(hub, commits, swept, made):
    """The table of that Pythia, made without a break; the hub's log begins after it. Always the same: made once."""
    made[:] = made or [swept(out="whole")]
    hub.requests.clear()
    return made[0]


def assert_same(table, expected):
    plain = [each.drop(columns=["wall_seconds", "code"]) for each in (table, expected)]
    pd.testing.assert_frame_equal(*plain, check_exact=True)


def downloads(hub, commit=""):
    """The weights that were fetched whole: a commit for each time."""
    return [request.path.split("/")[-2] for request in hub.fetched(WEIGHTS)
            if commit in request.path and request.status in (200, 206)]


def records(folder):
    return list((folder / "records").glob("*.parquet"))


# What is measured


def eigenvalues_by_numpy(files, sequences, folder):
    from transformers import AutoModel

    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    model = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        states = [model(torch.tensor([ids])).last_hidden_state[0, -1].double().numpy() for ids in sequences]
    return np.linalg.eigvalsh(np.cov(np.array(states).T, bias=True))[::-1]


FAMILIES = {
    "pythia-14m": ("gpt_neox", [(PYTHIA, f"step{step}", "pretraining", step, step * 2_097_152)
                                for step in (0, 512, 143_000)], [(PYTHIA, "main")]),
    "olmo2-1b": ("olmo2", [
        ("allenai/OLMo-2-0425-1B", "stage1-step10000-tokens21B", "pretraining", 10_000, 10_000 * 2_097_152),
        ("allenai/OLMo-2-0425-1B", "stage1-step1907359-tokens4001B", "pretraining", 1_907_359, 1_907_359 * 2_097_152),
        # mid-training goes on from the last of those
        ("allenai/OLMo-2-0425-1B", "stage2-ingredient3-step23852-tokens51B", "mid-training", 23_852,
         (1_907_359 + 23_852) * 2_097_152)],
        [("allenai/OLMo-2-0425-1B", "main"), ("allenai/OLMo-2-0425-1B", "stage2-ingredient1-step1000-tokens3B")]),
    "tulu3.1-8b": ("llama", [
        ("meta-llama/Llama-3.1-8B", None, "base", None, None),
        ("allenai/Llama-3.1-Tulu-3-8B-SFT", None, "SFT", None, None),
        ("allenai/Llama-3.1-Tulu-3-8B-DPO", None, "DPO", None, None),
        ("allenai/Llama-3.1-Tulu-3.1-8B", "step_40", "RLVR", 40, None),
        ("allenai/Llama-3.1-Tulu-3.1-8B", "step_1920", "RLVR", 1920, None)],
        [("allenai/Llama-3.1-Tulu-3.1-8B", "main")]),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_suite_is_swept_by_its_name_and_equals_numpy_on_the_model_s_own_states(
        hub, swept, text, tmp_path, name):
    family, expected, others = FAMILIES[name]
    tokenizer = tiny_tokenizer(pad=family != "gpt_neox")
    files = [tiny_model(family, number) for number in range(len(expected))]
    commits = [hub.put(repository, branch or "main", model | tokenizer)
               for (repository, branch, *_), model in reversed(list(zip(expected, files, strict=True)))][::-1]
    for repository, branch in others:  # not of this suite
        hub.put(repository, branch, tiny_model(family, 99) | tokenizer)
    table = swept(name)
    place = table[["model", "revision", "stage", "step", "tokens"]].astype(object)
    assert [tuple(row) for row in place.where(place.notna(), None).values] == expected
    assert (table.status == "measured").all() and table.weights.tolist() == commits
    assert table.suite.unique().tolist() == [name]

    opened = load_tokenizer(expected[-1][0], expected[-1][1])
    probe = corpora.probe(corpora.open_text(text), opened, 60, 24, 4)
    assert table.probe_fingerprint.unique().tolist() == [probe.fingerprint]
    for number, (row, model) in enumerate(zip(table.itertuples(), files, strict=True)):
        oracle = eigenvalues_by_numpy(model, probe.sequences, tmp_path / str(number))
        np.testing.assert_allclose(row.eigenvalues, oracle, atol=1e-5 * oracle[0])
        share = oracle[oracle > 1e-5 * oracle[0]] / oracle.sum()
        assert row.rankme == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-3)  # the tail left out


def test_a_record_says_what_was_measured_on_what_by_what(hub, commits, swept, tmp_path, documents):
    dataset = hub.put("HuggingFaceFW/fineweb", "main", fineweb(documents), "datasets")
    swept(texts="hub:HuggingFaceFW/fineweb:sample-10BT", count=2)
    rows = [pyarrow.parquet.read_table(path).to_pylist()[0] for path in records(tmp_path / "out")]
    assert {row["revision"]: row["weights"] for row in rows} == {f"step{step}": commits[step] for step in (0, 3000)}
    for row in rows:
        assert dataset[:12] in row["probe"] and row["sequences"] == 60 and row["max_length"] == 24
        assert row["quantity"] == "covariance eigenvalue" and row["centred"] and row["dtype_forward"] == "float32"
        assert json.loads(row["identity"])["weights"] == row["weights"]
        assert "transformers" in row["packages"] and row["batch_tokens"] > 0 and row["code"] and row["machine"]


def test_weights_in_bin_files_one_or_several_give_what_safetensors_give(hub, swept):
    hub.put(PYTHIA, "step0", pythia(7))
    hub.put(PYTHIA, "step1", pythia(7, weights="bin"))
    hub.put(PYTHIA, "step2", pythia(7, weights="bin", shards=2))
    hub.put(PYTHIA, "step4", pythia(7, shards=3))
    table = swept()
    assert (table.status == "measured").all()
    for eigenvalues in table.eigenvalues[1:]:
        assert eigenvalues.tolist() == table.eigenvalues[0].tolist()  # the same weights, the same computation
    assert not table.same_weights_as.notna().any()  # other files all the same


def test_two_probes_and_all_layers_cost_one_download_a_checkpoint(hub, commits, swept, text, tmp_path, documents):
    other = tmp_path / "other.txt"
    other.write_text("\n\n".join(documents[::-1][:100]))
    table = swept(texts=[text, str(other)], layers="all", count=3)
    assert sorted(downloads(hub)) == sorted(set(table.weights)) and len(downloads(hub)) == 3
    assert len(table) == 3 * 2 * 4 and table.layer.tolist() == ["0", "1", "2", "final"] * 6
    assert table.probe_fingerprint.nunique() == 2 and (table.status == "measured").all()
    alone = swept(texts=str(other), layers="all", count=3, out="alone")
    assert table[table.probe == "other.txt"].rankme.tolist() == alone.rankme.tolist()


# Done once, resumed, tried again


def test_a_sweep_killed_in_the_middle_goes_on_where_it_was(hub, whole, commits, swept, text, tmp_path, nursery):
    hub.fault("slow", PYTHIA, "step2", WEIGHTS, times=1, value=5_000)
    killed = nursery.start("reptrace", "sweep", "pythia-14m", "--text", text, *ON_SHELL, "--out", tmp_path / "out")
    wait_until(lambda: len(records(tmp_path / "out")) == 2 and commits[2] in downloads(hub), "the third is under way")
    killed.kill()
    assert killed.code() is None
    left = list(weights_cache().glob("models--*/blobs/*"))
    assert left  # it was caught in the act
    hub.requests.clear()
    assert_same(swept(), whole)
    assert sorted(downloads(hub)) == sorted(commits[step] for step in STEPS[2:])
    assert not list(weights_cache().glob("models--*/snapshots/*"))
    hub.requests.clear()
    assert_same(swept(), whole)
    assert not downloads(hub)


def test_two_sweeps_at_once_over_one_store_measure_nothing_twice(hub, whole, commits, swept, text, tmp_path, nursery):
    hub.fault("slow", PYTHIA, "*", WEIGHTS, value=500_000)
    both = [nursery.start("reptrace", "sweep", "pythia-14m", "--text", text, *ON_SHELL, "--out", tmp_path / "out")
            for _ in range(2)]
    assert [each.code() for each in both] == [0, 0], both[0].printed + both[1].printed
    assert sorted(downloads(hub)) == sorted(commits.values())
    assert all(each.printed.count(": RankMe ") == len(STEPS) for each in both)
    assert_same(swept(), whole)


def test_an_interrupted_sweep_lets_go_of_everything(whole, swept, tmp_path, monkeypatch):
    geometry, calls = spectra.geometry, []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return geometry(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(spectra, "geometry", interrupted)
        with pytest.raises(KeyboardInterrupt):
            swept()
    assert len(records(tmp_path / "out")) == 2
    assert_same(in_background(swept).result(SOON), whole)  # it would hang for what is still held
    wait_until(lambda: not list(weights_cache().glob("models--*/snapshots/*")), "no weights are left")


def test_failed_checkpoints_are_gaps_with_their_reason_and_tried_again(hub, whole, commits, swept, tmp_path):
    hub.fault("corrupt", PYTHIA, "step0", WEIGHTS, times=1)
    hub.fault("missing", PYTHIA, "step2", times=1)  # listed among the branches, and not there
    hub.fault("error", PYTHIA, "step1000", WEIGHTS, method="GET")
    hub.fault("gated", PYTHIA, "step3000", WEIGHTS)
    table = swept()
    reasons = dict(zip(table.step, table.reason, strict=True))
    assert table.status.tolist() == ["failed", "measured", "failed", "failed", "failed"]
    assert f"{WEIGHTS} of {PYTHIA!r}" in reasons[0] and "SHA-256" in reasons[0]
    assert commits[2] in reasons[2] or "step2" in reasons[2]
    assert PYTHIA in reasons[1000] and "500" in reasons[1000]
    assert "gated" in reasons[3000] and "hf auth login" in reasons[3000] and "HF_TOKEN" in reasons[3000]
    assert table.rankme.isna().tolist() == (table.status == "failed").tolist()
    stored = pd.concat(map(pd.read_parquet, records(tmp_path / "out")))
    assert sorted(stored.reason[stored.status == "failed"]) == sorted(filter(None, reasons.values()))

    hub.faults.clear()
    hub.requests.clear()
    mended = swept()
    assert (mended.status == "measured").all()
    assert sorted(downloads(hub)) == sorted(commits[step] for step in (0, 2, 1000, 3000))
    assert_same(mended, whole)


def test_a_branch_that_is_not_there_is_a_gap_with_names_like_it(hub, commits, text, tmp_path):
    tokenizer = load_tokenizer(PYTHIA, "step0")
    probe = corpora.probe(corpora.open_text(text), tokenizer, 60, 24, 4)
    points = [point for branch in ("step3000", "step300") for point in checkpoints(PYTHIA, branch)]
    table = trace(points, probe, Store(tmp_path), ranks=(2, 8), progress=False)
    assert table.status.tolist() == ["measured", "failed"]
    assert "has no revision 'step300'" in table.reason[1] and "Did you mean step3000" in table.reason[1]


def test_a_checkpoint_that_is_named_twice_is_measured_once_and_two_rows(hub, commits, text, tmp_path):
    probe = corpora.probe(corpora.open_text(text), load_tokenizer(PYTHIA, "step0"), 60, 24, 4)
    points = [*checkpoints(PYTHIA, "step1"), *checkpoints(PYTHIA, "step2"), *checkpoints(PYTHIA, "step1")]
    table = trace(points, probe, Store(tmp_path), ranks=(2, 8), progress=False)
    assert table.revision.tolist() == ["step1", "step2", "step1"] and (table.status == "measured").all()
    assert sorted(downloads(hub)) == sorted([commits[1], commits[2]])


def test_a_hub_that_goes_away_in_the_middle_loses_nothing(hub, whole, commits, swept, tmp_path, monkeypatch):
    write = Store.write
    with ExitStack() as stack:
        def write_and_lose(self, *arguments):
            write(self, *arguments)
            if len(records(tmp_path / "out")) == 2:
                stack.enter_context(hub.down())

        with monkeypatch.context() as patch:
            patch.setattr(Store, "write", write_and_lose)
            table = swept()
    assert table.status.tolist()[:2] == ["measured", "measured"] and table.status.iloc[-1] == "failed"
    assert "the connection to the hub failed" in table.reason.iloc[-1] or "could not be" in table.reason.iloc[-1]
    kept = set(table.weights[table.status == "measured"])
    hub.requests.clear()
    assert_same(swept(), whole)
    assert set(downloads(hub)) == set(commits.values()) - kept


def test_a_connection_that_breaks_is_taken_up_where_it_broke(hub, commits, swept):
    hub.fault("cut", PYTHIA, "step1", WEIGHTS, times=1)
    table = swept()
    assert (table.status == "measured").all()
    first, second = (request for request in hub.fetched(WEIGHTS) if commits[1] in request.path)
    assert second.range and first.sent + second.sent <= len(pythia(1)[WEIGHTS]) + 2**12  # a piece of the client's


# Known and found faults


def test_a_checkpoint_with_a_known_fault_is_a_row_that_says_so_and_is_not_fetched(hub, swept):
    repository = "EleutherAI/pythia-410m-seed2"  # whose step 111000 has no weights
    for step in (110_000, 111_000, 112_000):
        files = pythia(step)
        hub.put(repository, f"step{step}", files if step != 111_000 else
                {name: content for name, content in files.items() if name != WEIGHTS})
    table = swept("pythia-410m-seed2", count=2)
    assert table.status.tolist() == ["measured", "quarantined", "measured"]
    assert "has no weights" in table.reason[1] and "EleutherAI/pythia issue 202" in table.reason[1]
    assert table.step.tolist() == [110_000, 111_000, 112_000] and np.isnan(table.rankme[1])
    asked = swept("pythia-410m-seed2", faulty=True)
    assert asked.status.tolist() == ["measured", "failed", "measured"] and "no weights" in asked.reason[1]
    assert "issue 202" in asked.fault[1]


def test_revisions_with_the_same_weights_are_reported_before_and_named_in_the_table(hub, swept, capsys):
    shards = pythia(0, shards=3) | {"model-00001-of-00003.safetensors": b"of its own"}
    for branch, files in {"step0": pythia(0, shards=3), "step1": shards, "step2": pythia(2), "step4": pythia(4),
                          "step8": pythia(2)}.items():
        hub.put(PYTHIA, branch, files)
    table = swept()
    twins = dict(zip(table.revision, table.same_weights_as, strict=True))
    assert twins["step2"] == "step8" and twins["step8"] == "step2" and pd.isna(twins["step4"])
    assert twins["step0"] == "step1 (2 of 3 files)" and twins["step1"] == "step0 (2 of 3 files)"
    assert f"{PYTHIA}@step8 serves the weights of step2" in capsys.readouterr().err
    partly = swept(count=2)  # compared with all revisions, not only with those that are measured
    assert dict(zip(partly.revision, partly.same_weights_as, strict=True))["step8"] == "step2"
    for number, name in enumerate(("meta-llama/Llama-3.1-8B", "allenai/Llama-3.1-Tulu-3-8B-SFT",
                                   "allenai/Llama-3.1-Tulu-3-8B-DPO", "allenai/Llama-3.1-Tulu-3-8B")):
        hub.put(name, "main", tiny_model("llama", number % 3) | tiny_tokenizer())
    stages = swept("tulu3-8b", count=4).set_index("stage").same_weights_as
    assert stages["base"] == "allenai/Llama-3.1-Tulu-3-8B" and stages["RLVR"] == "meta-llama/Llama-3.1-8B"
    assert stages[["SFT", "DPO"]].isna().all()


# Weights on the disk


def bytes_on_disk():
    total = 0
    for path in weights_cache().glob("models--*/blobs/*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


@pytest.mark.parametrize("budget", [2, 1])
def test_the_next_checkpoint_is_fetched_ahead_and_the_disk_stays_within_its_budget(
        hub, commits, swept, monkeypatch, budget):
    geometry, ahead, most, over = spectra.geometry, [], [0], threading.Event()
    size = sum(map(len, pythia(0).values()))

    def watch():
        while not over.is_set():
            most.append(bytes_on_disk())
            time.sleep(0.002)

    def measured(*arguments, **options):
        if budget == 2 and len(ahead) < len(STEPS) - 1:
            wait_until(lambda: len(hub.fetched(WEIGHTS)) == len(ahead) + 2, "the next one is asked for")
            wait_until(lambda: max(most) > 1.5 * size, "much of two lies on the disk")
        ahead.append(len(hub.fetched(WEIGHTS)))
        return geometry(*arguments, **options)

    monkeypatch.setattr(spectra, "geometry", measured)
    hub.fault("slow", PYTHIA, "*", WEIGHTS, value=2_000_000)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        # unequal sizes of configurations and tokenizers: at most some bytes
        table = swept(**({} if budget == 2 else {"disk": int(1.1 * size)}))
    finally:
        over.set()
        join(watcher)
    assert (table.status == "measured").all()
    assert ahead == ([2, 3, 4, 5, 5] if budget == 2 else [1, 2, 3, 4, 5])
    assert (budget - 0.5) * size < max(most) <= 1.1 * budget * size
    assert bytes_on_disk() == 0


def test_a_budget_that_does_not_hold_one_checkpoint_is_an_error_before_any_is_fetched(hub, commits, swept):
    with pytest.raises(ValueError, match=r"pythia-14m@step\d+ takes 0.0\d+ GB, the disk budget is .*raise it"):
        swept(disk=1000, count=2)
    assert not downloads(hub)


def test_what_the_user_had_is_read_and_stays(hub, commits, swept):
    from huggingface_hub import constants, snapshot_download

    for step in (1, 2):
        snapshot_download(PYTHIA, revision=f"step{step}", allow_patterns=None if step == 1 else "*.json")

    def state():
        return {path: (os.lstat(path).st_mtime_ns, os.path.realpath(path))
                for path in Path(constants.HF_HUB_CACHE).rglob("*") if path.is_file()}

    before = state()
    assert len(before) > 5
    hub.requests.clear()
    assert (swept().status == "measured").all()
    assert before.items() <= state().items()
    assert sorted(downloads(hub)) == sorted(commit for step, commit in commits.items() if step != 1)
    assert bytes_on_disk() == 0


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 400 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = run(["mount", "-t", "tmpfs", "-o", "size=400k", "none", disk])
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")
    yield disk
    run(["umount", disk], check=True)


def test_no_space_left_stops_with_a_clear_error_and_keeps_what_is_done(hub, swept, small_disk, monkeypatch, tmp_path):
    from huggingface_hub import constants
    from safetensors.torch import load, save

    for step in (0, 1, 2):
        files = pythia(step)
        ballast = {"v_head.ballast": torch.zeros(250_000 if step == 2 else 1)}  # a head that no decoder has
        hub.put(PYTHIA, f"step{step}", files | {WEIGHTS: save(load(files[WEIGHTS]) | ballast)})
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HOME", str(small_disk))
        with pytest.raises(OSError, match=f"needs 0.0 GB more in '{small_disk}.*HF_HOME") as e:
            in_background(swept).result(SOON)
    assert e.value.errno == errno.ENOSPC
    assert {pd.read_parquet(path).revision[0] for path in records(tmp_path / "out")} == {"step0", "step1"}
    hub.requests.clear()
    table = swept()
    assert (table.status == "measured").all() and downloads(hub) == [table.weights[2]]


# What a checkpoint may not do


class Trap:
    """Unpickled, it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_nothing_in_a_pickle_is_run(hub, swept, tmp_path):
    def evil(path):
        torch.save({"gpt_neox.embed_in.weight": Trap(path)}, buffer := io.BytesIO())
        return buffer.getvalue()

    torch.load(io.BytesIO(evil(tmp_path / "control")), weights_only=False)
    assert (tmp_path / "control").is_dir()  # the trap is one
    plain = pickle.dumps(Trap(tmp_path / "sprung"))
    files = {name: content for name, content in pythia(1).items() if name != WEIGHTS}
    hub.put(PYTHIA, "step0", files | {"pytorch_model.bin": evil(tmp_path / "sprung")})
    hub.put(PYTHIA, "step1", files | {"pytorch_model.bin": plain})
    hub.put(PYTHIA, "step2", pythia(2))
    table = swept()
    assert table.status.tolist() == ["failed", "failed", "measured"]
    assert "pickle that holds more than tensors" in table.reason[0] and "Nothing in it was run" in table.reason[0]
    assert not (tmp_path / "sprung").exists()


def test_a_repository_s_own_code_is_run_only_where_that_repository_is_trusted(hub, swept, tmp_path):
    suites, mark = tmp_path / "mine.yaml", tmp_path / "ran"
    suites.write_text('mine: {repository: me/mine, branch: "step{step}"}\n')
    code = (f"import os\nfrom transformers import GPTNeoXConfig, GPTNeoXModel\nos.makedirs({str(mark)!r})\n"
            "class Config(GPTNeoXConfig):\n    model_type = 'custom'\n"
            "class Model(GPTNeoXModel):\n    config_class = Config\n")
    config = json.loads(pythia(1)["config.json"]) | {
        "model_type": "custom", "auto_map": {"AutoConfig": "custom.Config", "AutoModel": "custom.Model"}}
    hub.put("me/mine", "step1", pythia(1) | {"custom.py": code.encode(), "config.json": json.dumps(config).encode()})
    hub.put("me/mine", "step2", pythia(2))
    for trust in ((), ["me/other"], "me/mine-too"):
        table = swept("mine", suite_files=[suites], trust=trust)
        assert table.status.tolist() == ["failed", "measured"] and not mark.exists()
        assert "'me/mine'" in table.reason[0] and "Python code of its own" in table.reason[0]
    assert (swept("mine", suite_files=[suites], trust="me/mine").status == "measured").all() and mark.exists()


# Limits of the model and of the memory


@pytest.mark.parametrize("names", ["pythia-14m", ["pythia-14m", "pythia-31m"]])
def test_a_sequence_longer_than_the_context_stops_before_any_weights_are_fetched(hub, commits, swept, tmp_path, names):
    short = json.loads(pythia(0)["config.json"]) | {"max_position_embeddings": 16}
    files = pythia(0) | {"config.json": json.dumps(short).encode()}
    hub.put("EleutherAI/pythia-31m" if isinstance(names, list) else PYTHIA, "step143000", files)
    with pytest.raises(ValueError, match=r"24 tokens were asked for, the context of EleutherAI/pythia-\d+m@step143000 "
                                         "is 16: lower .*--max-length"):
        swept(names)
    assert not downloads(hub) and not records(tmp_path / "out")


def test_running_out_of_memory_is_a_gap_that_says_the_largest_batch_that_fits(hub, commits, swept, monkeypatch):
    from transformers import GPTNeoXModel

    forward = GPTNeoXModel.forward

    def limited(self, input_ids, **options):
        if len(input_ids) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(self, input_ids, **options)

    with monkeypatch.context() as patch:
        patch.setattr(GPTNeoXModel, "forward", limited)
        table = swept(count=2, batch_size=16)
        assert (table.status == "failed").all()
        assert table.reason.str.contains("TooLittleMemoryError.*4 of them do: try batch_size=4").all()
        found = swept(count=2, batch_size="auto")  # which finds it
    assert (found.status == "measured").all() and (found.batch_tokens < 5 * 24).all()
    whole = swept(count=2, out="whole")
    for one, other in zip(found.eigenvalues, whole.eigenvalues, strict=True):  # other batches, float32
        np.testing.assert_allclose(one, other, atol=1e-5 * other[0])


FOLDERS = 'rl: {repository: me/rl, subfolder: "step-{step}", tokens_per_step: 10}'


@pytest.fixture
def folders(hub, tmp_path):
    """A suite whose three checkpoints are folders of one commit, with one tokenizer above them; and that commit."""
    (tmp_path / "rl.yaml").write_text(FOLDERS)
    files = {f"step-{step:04d}/{name}": content for step in (20, 40, 80)
             for name, content in tiny_model("gpt_neox", step).items()}
    commit = hub.put("me/rl", "main", files | tiny_tokenizer(pad=False) | {"step-0040/optimizer.pt": b"0" * 10**6})
    return {"names": "rl", "suite_files": [tmp_path / "rl.yaml"]}, commit


def test_checkpoints_in_folders_of_one_repository_are_swept_each_by_itself(hub, folders, swept, tmp_path):
    options, commit = folders
    table = swept(**options)
    assert list(table.revision) == [f"main:step-{step:04d}" for step in (20, 40, 80)]
    assert list(table.weights) == [f"{commit}:step-{step:04d}" for step in (20, 40, 80)]
    assert list(table.step) == [20, 40, 80] and list(table.tokens) == [200, 400, 800]
    for step in (20, 40, 80):
        hub.put("me/branches", f"step{step}", tiny_model("gpt_neox", step) | tiny_tokenizer(pad=False))
    (tmp_path / "branches.yaml").write_text('mine: {repository: me/branches, branch: "step{step}"}')
    same = swept("mine", out="branches", suite_files=[tmp_path / "branches.yaml"])
    for one, other in zip(table.eigenvalues, same.eigenvalues, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not hub.fetched("optimizer.pt")
    fetched = [unquote(request.path).split("/")[-2] for request in hub.fetched(WEIGHTS) if commit in request.path]
    assert sorted(fetched) == ["step-0020", "step-0040", "step-0080"]  # each once
    assert not list(weights_cache().rglob(WEIGHTS))  # and deleted once measured
    hub.requests.clear()
    assert_same(swept(**options), table)
    assert not hub.fetched(WEIGHTS)


def test_folders_are_compared_by_their_hashes_and_estimated_by_their_own_files(hub, folders, swept, tmp_path, capsys):
    options, _ = folders
    same = tiny_model("gpt_neox", 20)
    files = {f"step-{step:04d}/{name}": content for step in (20, 40) for name, content in same.items()}
    hub.put("me/rl", "main", files | tiny_tokenizer(pad=False))
    assert list(swept(**options).same_weights_as) == ["main:step-0040", "main:step-0020"]
    assert "me/rl@main:step-0020 serves the weights of main:step-0040" in capsys.readouterr().err
    estimated = plan.estimate([suite("rl", tmp_path / "rl.yaml")], []).iloc[0]
    assert (estimated.sizes, estimated.names, estimated.published) == ("files", "seen", 2)
    assert estimated.gb_each * 1e9 == sum(map(len, (same | tiny_tokenizer(pad=False)).values()))


def test_a_model_in_a_folder_opens_with_the_nearest_tokenizer(hub, folders):
    files = {20: tiny_model("gpt_neox", 20) | tiny_tokenizer(pad=True), 40: tiny_model("gpt_neox", 40)}
    hub.put("me/rl", "main", tiny_tokenizer(pad=False) | tiny_model("gpt_neox", 1) | {
        f"step-{step:04d}/{name}": content for step, each in files.items() for name, content in each.items()})
    assert load_tokenizer("me/rl", "main:step-0020").pad_token
    assert not load_tokenizer("me/rl", "main:step-0040").pad_token
    for step in (20, 40):
        model, state = load("me/rl", f"main:step-{step:04d}"), tiny_state("gpt_neox", step)
        assert all(torch.equal(value, state[f"gpt_neox.{name}"]) for name, value in model.state_dict().items())
    with pytest.raises(FileNotFoundError, match="cannot open model 'me/rl' at revision 'main:step-0060'"):
        load("me/rl", "main:step-0060")


def test_a_tokenizer_is_taken_from_the_stage_before_where_the_last_has_none(hub, swept):
    for name in ("meta-llama/Llama-3.1-8B", *(f"allenai/Llama-3.1-Tulu-3-8B{end}" for end in ("-SFT", "-DPO", ""))):
        hub.put(name, "main", tiny_model("llama", len(name)) | (tiny_tokenizer() if name.endswith("-SFT") else {}))
    table = swept("tulu3-8b")
    assert (table.status == "measured").all() and table.stage.tolist() == ["base", "SFT", "DPO", "RLVR"]


# Which checkpoints


@pytest.fixture
def bent(hub):
    """A suite whose RankMe is flat up to step 32, and from step 64 on, where the final norm keeps two directions."""
    from safetensors.torch import load, save

    state = load(pythia(1)[WEIGHTS])
    for name in ("weight", "bias"):
        state[f"gpt_neox.final_layer_norm.{name}"][2:] = 0
    low = pythia(1) | {WEIGHTS: save(state, metadata={"format": "pt"})}
    return {step: hub.put(PYTHIA, f"step{step}", pythia(1) if step < 64 else low)
            for step in (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 2000)}


def test_a_refined_sweep_measures_more_where_rankme_bends_and_nothing_twice(hub, bent, swept):
    coarse = swept(count=5)
    (jump,) = np.flatnonzero(np.diff(coarse.rankme))
    fetched = downloads(hub)
    fine = swept(count=5, refine=2)
    more = sorted(set(fine.step) - set(coarse.step))
    assert sorted(downloads(hub)[len(fetched):]) == sorted(bent[step] for step in more)
    assert fine.step.is_monotonic_increasing and len(fine) == 7
    # in the gap of the jump and the two beside it, which is all that is bent
    assert all(coarse.step[max(0, jump - 1)] < step < coarse.step[min(4, jump + 2)] for step in more)
    assert any(coarse.step[jump] < step < coarse.step[jump + 1] for step in more)
    fetched = downloads(hub)
    assert swept(count=5, refine=2).equals(fine) and downloads(hub) == fetched


def test_a_checkpoint_that_fails_is_tried_once_a_call_also_when_refining(hub, bent, swept):
    hub.fault("corrupt", PYTHIA, "step0", WEIGHTS)
    table = swept(count=5, refine=2)
    assert table.status.tolist() == ["failed"] + ["measured"] * 6
    assert downloads(hub).count(bent[0]) == 1


# The probe


def test_a_probe_of_fineweb_is_streamed_and_its_documents_are_pinned(hub, commits, swept, tmp_path, documents):
    dataset = hub.put("HuggingFaceFW/fineweb", "main", fineweb(documents, shards=2), "datasets")
    source = "hub:HuggingFaceFW/fineweb:sample-10BT"
    table = swept(texts=source, count=2)
    assert table.probe[0] == f"HuggingFaceFW/fineweb:sample-10BT:train@{dataset[:12]}"
    read = {unquote(request.path).partition(f"{dataset}/")[2] for request in hub.requests
            if request.path.endswith(".parquet") and request.method == "GET" and request.sent}
    assert read == {"sample/10BT/000_00000.parquet", "sample/10BT/001_00000.parquet"}

    # by hand: in the order of a hash, those with at least four tokens, the first sixty
    tokenizer = load_tokenizer(PYTHIA, "step3000")
    order = sorted(set(documents), key=lambda document: hashlib.sha256(f"probe 0\0{document}".encode()).digest())
    lengths = [min(24, len(tokenizer(document)["input_ids"])) for document in order]
    chosen = [(document, length) for document, length in zip(order, lengths, strict=True) if length >= 4][:60]
    pinned = tmp_path / "out" / "probes" / f"{table.probe_fingerprint[0]}.parquet"
    rows = pyarrow.parquet.read_table(pinned).to_pylist()
    assert [(row["document"], row["tokens"]) for row in rows] == [
        (hashlib.sha256(document.encode()).hexdigest(), length) for document, length in chosen]

    again = swept(texts=source, count=2, out="second")  # another cache
    assert again.probe_fingerprint.tolist() == table.probe_fingerprint.tolist()
    assert (tmp_path / "second" / "probes" / pinned.name).read_bytes() == pinned.read_bytes()
    hub.put("HuggingFaceFW/fineweb", "main", fineweb(documents[::-1][:140]), "datasets")
    moved = swept(texts=source, count=2, out="third")
    assert moved.probe[0] != table.probe[0] and moved.probe_fingerprint[0] != table.probe_fingerprint[0]
    assert_same(swept(texts=source, count=2), table)  # what was streamed once stays


@pytest.mark.parametrize("config", ["", ":sample-10BT"])
def test_a_folder_of_parquet_files_gives_the_probe_that_the_hub_gives(hub, commits, swept, tmp_path, documents, config):
    files = fineweb(documents, shards=2)
    for name, content in files.items():
        if config or name.startswith("sample"):
            path = tmp_path / "fineweb" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    hub.put("HuggingFaceFW/fineweb", "main", files, "datasets")
    here = swept(texts=f"hub:{tmp_path / 'fineweb'}{config}", count=2)
    there = swept(texts="hub:HuggingFaceFW/fineweb:sample-10BT", count=2, out="there")
    assert here.probe_fingerprint.tolist() == there.probe_fingerprint.tolist()
    assert here.rankme.tolist() == there.rankme.tolist()


# The command line


def shell(*words):
    return main([str(word) for word in words])


def test_one_command_gives_records_a_table_a_picture_and_lines(hub, commits, text, tmp_path, capsys):
    hub.fault("gated", PYTHIA, "step1000", WEIGHTS)
    command = "sweep", "pythia-14m", "--text", text, *ON_SHELL, "--out", tmp_path
    assert shell(*command) == 1  # there is a gap
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert len(lines) == 5 and f"{PYTHIA}@step1000: failed: " in lines[3] and "gated" in lines[3]
    assert f"{PYTHIA}@step0 layer final: RankMe " in lines[0]
    assert "5 of 5 checkpoints, 1 failed" in printed.err and re.search(r"\[\d+:\d+<\d+:\d+\]", printed.err)  # left
    hub.faults.clear()
    hub.requests.clear()
    assert shell(*command) == 0 and downloads(hub) == [commits[1000]]
    table = pd.read_csv(tmp_path / "table.csv")
    assert table.step.tolist() == list(STEPS) and (table.status == "measured").all() and "suite" in table
    assert "RankMe" in (tmp_path / "pythia-14m.svg").read_text()


def test_a_dry_run_says_what_would_be_done_and_does_nothing(hub, commits, text, tmp_path, capsys):
    before = shell("sweep", "pythia-14m", "--text", text, *ON_SHELL, "--dry-run", "--gpu", "H200"), capsys.readouterr()
    code, printed = before
    assert code == 0 and "pythia-14m" in printed.out and "H200" in printed.out
    for column in ("gb_download", "gb_disk", "petaflop", "hours"):
        assert column in printed.out
    assert not downloads(hub) and not list(tmp_path.iterdir())


def test_a_dry_run_of_a_models_branches_asks_for_their_sizes_and_fetches_no_weights(
        hub, commits, text, tmp_path, capsys):
    assert shell("trace", "--model", PYTHIA, "--revision", "step*", "--text", text, *ON_SHELL, "--dry-run") == 0
    header, row, *_ = capsys.readouterr().out.splitlines()
    said = dict(zip(header.split(), row.split(), strict=True))
    assert (said["model"], said["checkpoints"], said["sizes"]) == (PYTHIA, str(len(STEPS)), "files")
    assert not hub.fetched(WEIGHTS) and not list(tmp_path.iterdir())


def test_a_dry_run_counts_the_stages_that_were_named_and_faulty_ones_where_they_are_asked_for(
        hub, commits, text, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(listing, "_faults", lambda: {("EleutherAI/pythia-14m", STEPS[1]): "serves others' weights"})
    stage = '{{stage: {0}, repository: me/run, branch: "{0}{{step}}", steps: 0-{1}/1}}'
    (tmp_path / "mine.yaml").write_text(f"mine: {{stages: [{stage.format('a', 3)}, {stage.format('b', 7)}]}}")

    def said(*words):
        assert shell("sweep", *words, "--text", text, *ON_SHELL, "--dry-run") == 0
        header, row, *_ = capsys.readouterr().out.splitlines()
        return dict(zip(header.split(), row.split(), strict=True))

    mine = ["mine", "--suites", tmp_path / "mine.yaml"]
    assert [said(*mine, *words)["chosen"] for words in ([], ["--stages", "b"])] == ["12", "8"]
    assert [said("pythia-14m", *words)["chosen"] for words in ([], ["--faulty"])] == [f"{len(STEPS) - 1}",
                                                                                   f"{len(STEPS)}"]
    assert shell("sweep", "pythia-14m", "--stages", "RLVR", "--text", text, "--dry-run") == 1
    assert "'pythia-14m' has no stage RLVR; it has pretraining" in capsys.readouterr().err


def test_without_out_no_cluster_is_looked_for(capsys):
    assert shell("sweep", "pythia-14m", "--text", "docstrings", "--scheduler", "nowhere.json") == 1
    assert "--out FOLDER is needed" in capsys.readouterr().err


def test_the_suites_are_listed(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("mine: {repository: me/run}")
    assert shell("suites", "--suites", tmp_path / "mine.yaml") == 0
    lines = capsys.readouterr().out.splitlines()
    named = {line.split()[0]: line for line in lines}
    assert " not yet seen " in named["smollm3-3b"] and "not yet seen" not in named["mine"]
    assert " 2, more: the hub " in named["olmo3-7b-rl-zero-if"]
    assert lines[-1].startswith("not yet seen: what public text says; the hub's own listing has not been compared")
    for name in ("pythia-12b", "pythia-12b-deduped", "pythia-410m-seed9", "olmo2-1b", "olmo2-1b-early", "olmo2-7b",
                 "tulu3-8b", "tulu3.1-8b"):
        assert any(line.split()[0] == name for line in lines), name
    assert "meta-llama/Llama-3.1-8B (gated)" in next(line for line in lines if line.startswith("tulu3-8b"))


def test_the_list_says_how_many_checkpoints_each_suite_has_where_that_is_known(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text('mine: {repository: me/run, branch: "step{step}"}\n'
                                        'some: {repository: me/run, branch: "step{step}", steps: "0 1 2-8/2"}')
    assert shell("suites", "--suites", tmp_path / "mine.yaml") == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    for name in ("pythia-1b", "pythia-12b", "pythia-14m-deduped"):  # published: 0, 1, 2, ..., 512, then every 1,000th
        assert f" {1 + 10 + 143} checkpoints " in lines[name]
    assert " 6 checkpoints " in lines["some"] and " steps: see the hub " in lines["mine"]


@pytest.mark.parametrize("words, message", [
    (["pythia-14"], "there is no suite 'pythia-14'. Did you mean pythia-14m"),
    (["pythia-14m", "--checkpoints", "1"], "at least 2 checkpoints are needed"),
    (["pythia-14m", "--suites", "none.yaml"], "no file of suites 'none.yaml'"),
    (["pythia-14m", "--max-length", "129"], "the context of EleutherAI/pythia-14m@step3000 is 128"),
    (["pythia-14m", "--sequences", "151"], "'text.jsonl' has"),
    (["pythia-14m", "--text", "none.jsonl"], "no text file 'none.jsonl'"),
    (["pythia-14m", "--text", "hub:no/such"], "no/such"),
    (["pythia-14m", "--workers", "0"], "workers must be positive"),
    (["pythia-14m", "--dtype", "float64", "--batch-size", "0"], "batch_size must be positive"),
    (["pythia-14m", "--scheduler", "tcp://127.0.0.1:9"], "127.0.0.1:9"),
    (["pythia-14m", "--scheduler", "nowhere.json"], "nowhere.json"),
    (["pythia-31m"], "EleutherAI/pythia-31m")])
def test_what_a_user_can_mend_is_one_line_and_code_1(hub, commits, text, tmp_path, capsys, dask_here, words, message):
    import dask
    import distributed  # noqa: F401  its settings must be there before one is changed and put back

    with dask.config.set({"distributed.comm.timeouts.connect": "0.3s"}):
        assert shell("sweep", "--text", text, *ON_SHELL, "--out", tmp_path / "out", *words) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert len([line for line in error.splitlines() if line.startswith("reptrace: ")]) == 1
    assert not downloads(hub)


def test_without_out_nothing_is_done_and_a_hub_that_is_down_is_one_line(hub, commits, text, tmp_path, capsys):
    assert shell("sweep", "pythia-14m", "--text", text) == 1
    assert "--out FOLDER is needed" in capsys.readouterr().err
    with hub.down():
        for source in (text, "hub:HuggingFaceFW/fineweb:sample-10BT"):
            assert shell("sweep", "pythia-14m", "--text", source, *ON_SHELL, "--out", tmp_path) == 1
            error = capsys.readouterr().err
            assert "reptrace: " in error and "Traceback" not in error

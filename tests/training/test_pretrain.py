"""Trusted: huggingface_hub's own reading of a cache, transformers' own parameter count, an uninterrupted training, a
`Loop` alone, and torch's own `mse_loss`.

A resumed run must end with exactly the weights of one that was never stopped: same process layout, one thread, float32.
"""

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from huggingface_hub import scan_cache_dir
from limits import SOON, kill_when
from transformers import GPTNeoXForCausalLM
from weather import CORPUS, a_run

from reptrace.checkpoints.hub import repository_folder
from reptrace.checkpoints.listing import revisions
from reptrace.models.loading import from_pretrained, load_tokenizer
from reptrace.texts.corpora import Corpus
from reptrace.training.lean import AVERAGING, Loop
from reptrace.training.pretrain import Suite, publish
from reptrace.training.runs import Run, log_spaced

RUNS = [a_run(), a_run(steps=600), a_run(loss="squared error", frequencies="flattened", steps=4)]


@pytest.fixture(scope="module")
def processes():
    """Those that train `trained`."""
    return []


@pytest.fixture(scope="module")
def trained(tmp_path_factory, processes):
    popen, suite = subprocess.Popen, Suite(RUNS, CORPUS, tmp_path_factory.mktemp("suite"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", lambda *a, **k: processes.append(popen(*a, **k)) or processes[-1])
        suite.train(workers=1, progress=False)
    return suite


@pytest.fixture(scope="module")
def alone(trained):
    """Loops of the second run, in this process, at step 64 and at its end, by step."""
    torch.set_flush_denormal(True)
    loops = {step: Loop(RUNS[1], np.fromfile(trained.tokens(300), dtype=np.uint16), AVERAGING) for step in (64, 600)}
    for step, loop in loops.items():
        loop.advance(step)
    torch.set_flush_denormal(False)
    return loops


def weights(suite, run, revision="main"):
    return from_pretrained(GPTNeoXForCausalLM, run.repository, revision, suite.hub).state_dict()


@pytest.mark.parametrize("steps", [1, 5, 64, 100, 1953])
def test_checkpoint_steps_start_at_zero_end_at_the_last_step_and_never_more_than_double(steps):
    found = log_spaced(steps)
    assert found[0] == 0 and found[-1] == steps and found == sorted(set(found))
    assert all(later <= 2 * earlier for earlier, later in pairwise(found[1:]))


@pytest.mark.parametrize("width, layers, vocabulary", [(16, 1, 300), (24, 2, 300), (48, 3, 1000)])
def test_parameter_count_is_the_model_s_own(width, layers, vocabulary):
    run = a_run(width=width, layers=layers, vocabulary=vocabulary)
    assert run.parameters == GPTNeoXForCausalLM(run.config).num_parameters()


def test_every_checkpoint_step_is_a_revision_that_from_pretrained_opens(trained):
    run = trained.runs[0]
    checkpoints = trained.checkpoints(run)
    assert [c.step for c in checkpoints] == run.checkpoint_steps
    assert [c.tokens for c in checkpoints] == [64 * c.step for c in checkpoints]
    names = (checkpoints[0].revision, checkpoints[-1].revision, "main")
    first, last, main = (weights(trained, run, name)["gpt_neox.embed_in.weight"] for name in names)
    assert not torch.equal(first, last)
    assert torch.equal(last, main)


def test_step_zero_holds_the_initial_weights_of_the_seed(trained):
    from transformers import set_seed

    run = trained.runs[0]
    set_seed(run.seed)
    fresh = GPTNeoXForCausalLM(run.config).state_dict()
    stored = weights(trained, run, "step0")
    assert all(torch.equal(fresh[name], stored[name]) for name in fresh)


def test_huggingface_hub_reads_the_cache_and_finds_safetensors_and_no_optimizer_state(trained):
    found = scan_cache_dir(trained.hub)
    assert not found.warnings
    assert {each.repo_id for each in found.repos} == {*(run.repository for run in RUNS), RUNS[1].averaged_repository}
    names = {file.file_name for each in found.repos for revision in each.revisions for file in revision.files}
    assert "model.safetensors" in names
    assert not any("optimizer" in name or name.endswith((".pt", ".bin")) for name in names)


def test_the_tokenizer_comes_with_every_revision_and_tokens_are_the_documents(trained):
    run = trained.runs[0]
    tokenizer = load_tokenizer(run.repository, "step0", trained.hub)
    ids = np.fromfile(trained.tokens(run.vocabulary), dtype=np.uint16)
    documents = tokenizer.decode(ids).split(tokenizer.eos_token)
    assert documents[:-1] == CORPUS.documents and documents[-1] == ""


def test_the_log_holds_finite_loss_gradient_norm_and_the_schedule(trained):
    log = trained.log(trained.runs[0])
    assert log.step.iloc[-1] == 24 and np.isfinite(log[["loss", "gradient_norm", "learning_rate"]]).all(axis=None)
    assert log.loss.iloc[0] == pytest.approx(np.log(300), rel=0.02)  # an untrained model guesses uniformly
    assert log.loss.iloc[-1] < 0.9 * log.loss.iloc[0]
    assert log.learning_rate.max() <= 4e-3 and log.learning_rate.iloc[-1] == pytest.approx(0, abs=1e-4)


def test_weights_and_averages_are_those_of_a_loop_alone_though_another_was_trained_before(trained, alone, processes):
    assert len(processes) == 1 and processes[0].returncode == 0
    check_weights(trained, alone)
    run = RUNS[1]
    kept = {averaged: trained.checkpoints(run, averaged) for averaged in (False, True)}
    assert [point.step for point in kept[False]] == run.checkpoint_steps
    assert [point.step for point in kept[True]] == run.averaged_steps and kept[True][0].tokens == 64 * 64
    assert {point.model for point in kept[True]} == {run.averaged_repository}


def check_weights(suite, alone):
    """That a suite's weights are the loops', bit for bit, and so are the averaged ones."""
    run = RUNS[1]
    for revision, loop in (("step64", alone[64]), ("main", alone[600])):
        for repository, model in ((run.repository, loop.model), (run.averaged_repository, loop.averaged_model())):
            found = from_pretrained(GPTNeoXForCausalLM, repository, revision, suite.hub)
            assert all(map(torch.equal, model.parameters(), found.parameters()))


def test_the_log_s_losses_are_means_since_the_row_before(trained):
    log = trained.log(RUNS[1])
    loop = Loop(RUNS[1], np.fromfile(trained.tokens(300), dtype=np.uint16))
    means = [loop.advance(step - loop.step) for step in log.step[log.step <= 64]]
    for name in ("loss", "gradient_norm", "learning_rate"):  # summed in other pieces, in single precision
        np.testing.assert_allclose(log[name][: len(means)], [mean[name] for mean in means], rtol=1e-6)
    assert log.wall_seconds.is_monotonic_increasing and len(means) == 7


def test_a_second_call_trains_nothing(trained, monkeypatch):
    monkeypatch.setattr("reptrace.training.pretrain.subprocess.Popen",
                        lambda *a, **k: pytest.fail("a process was started"))
    trained.train(progress=False)


def test_another_seed_or_parameter_is_another_repository():
    names = {a_run(**change).repository for change in ({}, {"seed": 1}, {"learning_rate": 1e-3}, {"steps": 25})}
    assert len(names) == 4


def test_runs_of_the_default_suite_keep_the_names_they_were_trained_under():
    run = Run(width=16, layers=2, steps=1953, seed=0, vocabulary=2048, context=64, batch=64, learning_rate=0.01,
              warmup_steps=20, schedule="cosine", weight_decay=0.01, corpus="b8298810550a394e", recipe=1)
    assert run.repository == "reptrace/neox-d16-seed0-350eb9bc"  # named before `loss` and `frequencies` existed
    changes = ({"loss": "squared error"}, {"frequencies": "flattened"}, {"head_width": 8}, {"rotary": 1.0},
               {"schedule": "warmup_stable_decay", "decay_steps": 1}, {"digits": True})
    assert len({replace(run, **change).repository for change in changes} - {run.repository}) == 6


@pytest.mark.parametrize(("width", "rotary", "turned"), [(32, 0.25, 4), (32, 1.0, 16), (24, 0.25, 6), (8, 1.0, 8)])
def test_rotary_embedding_turns_the_share_of_a_head_that_is_asked_for(width, rotary, turned):
    model = GPTNeoXForCausalLM(a_run(width=width, rotary=rotary).config)
    assert model.gpt_neox.layers[0].attention.rotary_ndims == turned == 2 * len(model.gpt_neox.rotary_emb.inv_freq)


def test_a_run_with_squared_error_on_flattened_tokens_starts_at_its_loss_there(trained):
    suite, run = trained, RUNS[2]
    plain, ids = (np.fromfile(path, dtype=np.uint16) for path in (suite.tokens(300), suite.token_file(run)))
    counts, before = (np.bincount(text, minlength=300) for text in (ids, plain))
    assert len(ids) == len(plain) and counts.max() < 0.5 * before.max()
    assert (suite.remapping(run).units(ids) == suite.remapping(run).first[plain]).all()
    model = from_pretrained(GPTNeoXForCausalLM, run.repository, "step0", suite.hub)
    first = np.random.default_rng(run.seed).permutation(len(ids) // 16)[:4]
    batch = torch.from_numpy(ids[: len(ids) // 16 * 16].reshape(-1, 16)[first].astype(np.int64))
    one_hot = torch.nn.functional.one_hot(batch[:, 1:], 300).float()
    with torch.inference_mode():
        expected = 300 * torch.nn.functional.mse_loss(model(batch).logits[:, :-1], one_hot)
    assert suite.log(run).loss.iloc[0] == pytest.approx(float(expected), rel=1e-4)  # logged in single precision


def test_a_killed_run_goes_on_and_ends_with_the_weights_of_one_never_stopped(trained, alone, tmp_path):
    run = RUNS[1]
    script = tmp_path / "driver.py"
    script.write_text(
        "import sys; sys.path[:0] = sys.argv[2:]\nfrom weather import CORPUS, a_run\n"
        "from reptrace.training.pretrain import Suite\n"
        "Suite([a_run(steps=600)], CORPUS, sys.argv[1]).train(workers=1, progress=False)\n")
    folder = tmp_path / "killed"
    here = Path(__file__).parent
    driver = subprocess.Popen([sys.executable, str(script), str(folder), str(here), str(here.parent)])
    kill_when(driver, lambda: list(folder.glob("training/*/state.pt")))
    work = next(folder.glob("training/neox*"))
    with FileLock(work / "lock", timeout=SOON):  # the orphan ends by itself when it next reports its step
        assert "main" not in revisions(run.repository, str(folder / "hub")), "killed too late to show anything"
    (work / ".state.pt-1.partial").write_bytes(b"PK")  # as left by a kill while saving

    resumed = Suite([run], CORPUS, folder)
    resumed.train_here(run, lambda step: None)  # what a child does, without the seconds that one takes to start
    torch.set_flush_denormal(False)
    check_weights(resumed, alone)
    assert not list((folder / "training").glob("neox*"))
    assert resumed.log(run).loss.tolist() == trained.log(run).loss.tolist()


def test_a_snapshot_cut_short_is_not_a_revision(tmp_path, monkeypatch):
    files = tmp_path / "files"
    files.mkdir()
    (files / "config.json").write_text("{}")

    def full_disk(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("reptrace.training.pretrain.write_atomically", full_disk)
    with pytest.raises(OSError, match="No space"):
        publish(files, "a/b", "step1", tmp_path / "hub")
    assert revisions("a/b", str(tmp_path / "hub")) == []
    monkeypatch.undo()
    publish(files, "a/b", "step1", tmp_path / "hub")
    assert revisions("a/b", str(tmp_path / "hub")) == ["step1"]
    assert len(list((repository_folder(tmp_path / "hub", "a/b") / "snapshots").iterdir())) == 1


@pytest.mark.parametrize("change, message", [({"width": 20}, "multiple of 16"), ({"steps": 0}, "positive"),
                                             ({"rotary": 0.3}, "0.3 of 16 is not"), ({"rotary": 1.5}, "up to 1"),
                                             ({"head_width": 4}, "0.25 of 4 is not"), ({"head_width": 0}, "positive"),
                                             ({"decay_steps": 4}, "got 4 with cosine"),
                                             ({"schedule": "warmup_stable_decay"}, "at least one"),
                                             ({"schedule": "warmup_stable_decay", "decay_steps": 21}, "of 24 steps"),
                                             ({"vocabulary": 70_000}, "at most 65536"),
                                             ({"loss": "hinge"}, "cross-entropy, squared error, got 'hinge'"),
                                             ({"frequencies": "flat"}, "natural, flattened, swapped, got 'flat'")])
def test_impossible_runs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        a_run(**change)


def test_a_suite_refuses_another_text(tmp_path):
    with pytest.raises(ValueError, match="is to be trained on text"):
        Suite([a_run(corpus="another")], CORPUS, tmp_path)


def test_runs_with_a_token_for_each_digit_have_a_tokenizer_of_their_own_and_a_suite_of_their_own(tmp_path):
    counted = Corpus("counted", ["1024 1024 1024 2048 rain " * 20])
    plain, digits = (a_run(corpus=counted.fingerprint, digits=each) for each in (False, True))
    with pytest.raises(ValueError, match="make two suites"):
        Suite([plain, digits], counted, tmp_path)
    told = {}
    for run in (plain, digits):  # in one folder
        suite = Suite([run], counted, tmp_path)
        words = suite.tokenizer(run.vocabulary)
        told[run] = words.convert_ids_to_tokens(words("1024")["input_ids"])
        ids = np.fromfile(suite.token_file(run), dtype=np.uint16)
        assert words.decode(ids) == counted.documents[0] + words.eos_token
    assert told[digits] == ["1", "0", "2", "4"] and len(told[plain]) < 4
    assert sorted(path.suffix for path in (tmp_path / "tokens").iterdir()) == [".tokenizer"] * 2 + [".tokens"] * 2


def test_a_run_that_is_trained_in_this_process_ends_with_the_weights_of_one_that_was_not(
        trained, tmp_path, monkeypatch):
    run, told = RUNS[0], []
    here = Suite([run], CORPUS, tmp_path)
    here.train_here(run, told.append)
    torch.set_flush_denormal(False)
    assert told[-1] == run.steps and told == sorted(set(told))
    assert [point.step for point in here.checkpoints(run)] == run.checkpoint_steps
    for point in here.checkpoints(run):
        expected = weights(trained, run, point.revision)
        assert all(torch.equal(value, expected[name]) for name, value in weights(here, run, point.revision).items())
    assert here.log(run).loss.tolist() == trained.log(run).loss.tolist()
    assert not list((tmp_path / "training").glob("neox*"))
    here.train_here(run, lambda step: pytest.fail("it was trained twice"))
    # as one finds it that looked before another process was done, and waited for it
    monkeypatch.setattr(Suite, "trained", lambda suite, run: False)
    here.train_here(run, lambda step: pytest.fail("it was trained twice"))
    assert not list((tmp_path / "training").glob("neox*"))


def test_a_run_that_was_killed_goes_on_in_this_process(trained, tmp_path):
    run = RUNS[0]
    here = Suite([run], CORPUS, tmp_path)

    def stop(step):
        if step > 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        here.train_here(run, stop)
    assert not here.trained(run) and list((tmp_path / "training").glob("neox*/state.pt"))
    told = []
    here.train_here(run, told.append)
    torch.set_flush_denormal(False)
    assert told[0] > 3 and here.log(run).loss.tolist() == trained.log(run).loss.tolist()
    assert torch.equal(*(weights(suite, run)["lm_head.weight"] for suite in (here, trained)))


def test_a_failing_run_says_why_and_where(tmp_path):
    short = Corpus("short", ["sun rain"])
    suite = Suite([a_run(corpus=short.fingerprint, context=64)], short, tmp_path)
    with pytest.raises(RuntimeError, match="less than one context of 64"):
        suite.train(progress=False)

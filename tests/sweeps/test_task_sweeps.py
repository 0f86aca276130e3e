"""Tasks by the runner that sweeps use: on a cluster, shared between calls, beside geometry, from the command line.

Trusted: the table that one process makes (tested against answers by hand in tests/tasks), the hub's log of what was
fetched, Dask's own account of who computed what, and SIGKILL. Tables are compared bit for bit, wall seconds apart.
"""

import json

import lm_eval
import numpy as np
import pandas as pd
import pytest
from clusters import scheduler, wait_until
from limits import SOON, in_background
from standin_hub import tiny_model, tiny_tokenizer
from test_dispatch import PYTHIA, STEPS, WEIGHTS, Account, downloads, held_up

from reptrace.__main__ import main
from reptrace.checkpoints import listing
from reptrace.checkpoints.suites import suite
from reptrace.memorization.questions import Questions
from reptrace.models.eigendirections import Projection
from reptrace.records.store import Store
from reptrace.sweeps import jobs
from reptrace.sweeps.dispatch import Means
from reptrace.sweeps.evaluation import Asked, evaluate_checkpoints
from reptrace.sweeps.located import Opening
from reptrace.sweeps.measurement import Settings
from reptrace.sweeps.sweep import SuiteSpec, measure_suites, trace
from reptrace.tasks import harness
from reptrace.texts.corpora import Probe, ProbeSpec

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "in", "deep", "snow"]


def text(rng, length):
    return " ".join(rng.choice(WORDS, length))


@pytest.fixture
def points(hub):
    for step in STEPS:
        hub.put(PYTHIA, f"step{step}", tiny_model("gpt_neox", step) | tiny_tokenizer(pad=False))
    return suite("pythia-14m").checkpoints()


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(1)
    rows = [{"passage": text(rng, 5), "near": text(rng, 2), "answer": int(rng.integers(4)),
             "choices": [text(rng, 1) for _ in range(4)]} for _ in range(12)]
    (tmp_path / "items.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return {"cloze": tmp_path / "items.jsonl"}


@pytest.fixture
def asked(data):
    """A task, the loss, and memorization, with and without a direction; what `evaluate_checkpoints` takes."""
    rng = np.random.default_rng(2)
    questions = Questions("recall", [text(rng, 4) for _ in range(9)], [f" {word}" for word in WORDS[:9]],
                          rng.normal(-5, 1, 9), "made")
    probe = Probe("random", [rng.integers(2, 300, n).tolist() for n in rng.integers(4, 24, 40)], 24, 4)
    return {"asked": ["cloze", "loss", questions], "batch_size": 8, "data": data, "probe": probe,
            "projections": [None, Projection(2)]}


def measure(points, asked, folder, **means):
    return evaluate_checkpoints(points, store=Store(folder), progress=False, **asked, **means)


def assert_same(table, expected):
    plain = [each.drop(columns=["wall_seconds", "code"]) for each in (table, expected)]
    pd.testing.assert_frame_equal(*plain, check_exact=True)


@pytest.fixture
def alone(hub, points, asked, tmp_path):
    """The table of one process; the hub's log begins after it."""
    table = measure(points, asked, tmp_path / "alone")
    assert table.status.tolist() == ["measured"] * 6 * len(STEPS)
    hub.requests.clear()
    return table


def test_a_cluster_gives_the_table_of_one_process_although_a_worker_is_killed_in_the_middle(
        alone, points, asked, hub, tmp_path, nursery, dask_here):
    hub.fault("slow", PYTHIA, "step0", WEIGHTS, times=1, value=2_000)  # a minute for whoever asks first
    with scheduler() as client:
        table, account = in_background(measure, points, asked, tmp_path / "cluster", client=client), Account(client)
        victim = nursery.worker(client, "--name", "victim")
        wait_until(lambda: any(request.sent for request in downloads(hub, points[0])), "step0 is under way")
        nursery.worker(client, "--name", "second")
        wait_until(lambda: account.workers, "the second has measured")
        assert victim.is_running()
        victim.kill()
        assert_same(table.result(SOON), alone)
        assert set(account.workers) == {"second"} and len(account.workers) == len(points)
    assert len(downloads(hub, points[0])) == 2  # begun by the victim, done by another


def test_two_calls_on_one_store_share_the_work(alone, points, asked, hub, tmp_path, nursery, loopback):
    nursery.worker(loopback)
    with held_up(hub, 0):
        first = in_background(measure, points, asked, tmp_path / "one", client=loopback)
        wait_until(lambda: downloads(hub, points[0]), "step0 is under way")
        second = in_background(measure, points, asked, tmp_path / "one")
        wait_until(lambda: downloads(hub, points[3]), "the second call has begun another one")
    assert_same(first.result(SOON), alone)
    assert_same(second.result(SOON), alone)
    assert sorted(len(downloads(hub, point)) for point in points) == [1] * len(points)


def test_what_is_asked_twice_is_measured_once_and_two_rows(points, asked, tmp_path):
    twice = asked | {"asked": ["loss", "loss"], "projections": None}
    table = in_background(measure, points[:1], twice, tmp_path / "out").result(SOON)
    assert table.task.tolist() == ["loss"] * 2 and table["value"].nunique() == 1
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 1


def test_a_worker_that_finds_other_items_under_the_name_of_a_data_file_refuses_them(
        points, asked, data, hub, tmp_path, nursery, loopback):
    nursery.worker(loopback)
    with held_up(hub, 0):
        table = in_background(measure, points[:1], asked | {"asked": ["cloze"], "projections": None},
                              tmp_path / "out", client=loopback)
        wait_until(lambda: downloads(hub, points[0]), "step0 is under way")
        data["cloze"].write_text("".join(data["cloze"].read_text().splitlines(keepends=True)[:5]))
    found = table.result(SOON)
    assert found.status.tolist() == ["failed"]
    assert "the files of the task 'cloze', its data or lm-eval's version" in found.reason[0]


# Beside geometry


def test_geometry_and_tasks_of_a_checkpoint_take_one_download_and_one_opening(
        points, hub, tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("\n\n".join(f"{text(np.random.default_rng(k), 12)} {k}" for k in range(70)))
    spec, opened, open_at = ProbeSpec(tmp_path / "text.txt", 60, 24, 4), [], jobs.open_at
    monkeypatch.setattr(jobs, "open_at", lambda point, *rest: opened.append(point.label) or open_at(point, *rest))

    def swept(folder, texts, asked):
        hub.requests.clear()
        return measure_suites(SuiteSpec("pythia-14m"), texts, tmp_path / folder, asked, Settings(ranks=(2, 8)),
                              Opening(), Means(progress=False))

    both = swept("both", spec, Asked(["loss"]))
    assert [len(downloads(hub, point)) for point in points] == [1] * len(points) == [1] * len(opened)
    probe = spec.probe(spec.corpus(), harness_tokenizer(points[-1]))
    geometry = trace(points, probe, Store(tmp_path / "alone"), ranks=(2, 8), batch_size=16, progress=False)
    loss = evaluate_checkpoints(points, "loss", Store(tmp_path / "alone"), 16, probe=probe, progress=False)
    assert both.geometry.eigenvalues.map(list).tolist() == geometry.eigenvalues.map(list).tolist()
    assert both.geometry.identity.tolist() == geometry.identity.tolist()
    assert both.tasks["value"].tolist() == loss["value"].tolist()
    assert both.tasks.identity.tolist() == loss.identity.tolist() and set(both.tasks.suite) == {"pythia-14m"}
    opened.clear()
    swept("both", spec, Asked(["loss"]))
    assert opened == []  # done


def harness_tokenizer(point):
    from reptrace.models.loading import load_tokenizer

    return load_tokenizer(point.model, point.revision)


def test_tasks_of_the_refined_checkpoints_are_asked_too(points, tmp_path, monkeypatch):
    monkeypatch.setattr("reptrace.sweeps.sweep.next_ones", lambda table, untried, count: untried[:count])
    (tmp_path / "text.txt").write_text("\n\n".join(f"{text(np.random.default_rng(k), 12)} {k}" for k in range(70)))
    found = measure_suites(SuiteSpec("pythia-14m", 3, 1), ProbeSpec(tmp_path / "text.txt", 60, 24, 4),
                           tmp_path / "out", Asked(["loss"]), Settings(ranks=(2, 8)), Opening(), Means(progress=False))
    assert found.geometry.step.tolist() == found.tasks.step.tolist() == list(STEPS)


# The command line


@pytest.fixture
def sciq(hub, monkeypatch):
    """lm-eval's own SciQ, with a few items of our own."""
    items = [{"question": f"{k}?", "support": "the lazy dog", "correct_answer": "fox", "distractor1": "cat",
              "distractor2": "cow", "distractor3": f"{k}"} for k in range(8)]
    rows = "".join(f"{json.dumps(row)}\n" for row in items).encode()
    hub.put("allenai/sciq", "main", {f"{name}.jsonl": rows for name in ("train", "validation", "test")},
            kind="datasets")
    stock = f"{lm_eval.__path__[0]}/tasks/sciq"
    monkeypatch.setattr(harness, "_with_stock_tasks", lambda folders: lm_eval.tasks.TaskManager(
        include_path=[stock, *folders], include_defaults=False))


def test_suites_are_asked_by_name_on_the_shell_and_quarantined_ones_are_rows(
        points, sciq, hub, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(listing, "_faults", lambda: {(PYTHIA, 1): "serves others' weights"})
    command = ["tasks", "pythia-14m", "--tasks", "sciq", "--checkpoints", "2", "--out", str(tmp_path / "out")]
    assert main([*command, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "pythia-14m" in said and "it depends on their items" in said and not downloads(hub, points[0])
    assert main(command) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split(" sciq")[0] for line in said if " acc: " in line] == [f"{PYTHIA}@step0", f"{PYTHIA}@step4"]
    table = pd.read_csv(tmp_path / "out" / "tasks.csv")
    assert table[table.status == "quarantined"].step.tolist() == [1] and set(table.suite) == {"pythia-14m"}
    hub.requests.clear()
    assert main(command) == 0 and not hub.fetched(WEIGHTS)


def test_tasks_want_suites_or_a_model_and_not_both(tmp_path, capsys):
    for given in (["pythia-14m", "--model", "me/run"], []):
        assert main(["tasks", *given, "--tasks", "sciq", "--out", str(tmp_path)]) == 1
        assert "name one or the other" in capsys.readouterr().err


@pytest.mark.parametrize("given, told", [
    (["--model", "me/run", "--dry-run"], "--dry-run is for suites by name"),
    (["--model", "me/run", "--checkpoints", "2"], "--checkpoints is for suites by name"),
    (["--model", "me/run", "--stages", "RLVR"], "--stages is for suites by name"),
    (["pythia-14m", "--revision", "step1"], "--revision is for a --model"),
    (["pythia-14m", "--tokens-per-step", "9", "--dry-run"], "--tokens-per-step is for a --model")])
def test_an_option_that_would_be_passed_over_is_refused(tmp_path, capsys, given, told):
    assert main(["tasks", *given, "--tasks", "sciq", "--out", str(tmp_path)]) == 1
    assert told in capsys.readouterr().err


def test_tasks_of_a_model_are_done_by_the_means_that_were_named(points, sciq, tmp_path, capsys):
    command = ["tasks", "--model", PYTHIA, "--revision", "step1", "--tasks", "sciq", "--out", str(tmp_path / "out")]
    assert main([*command, "--scheduler", "nowhere.json"]) == 1
    assert "no scheduler file 'nowhere.json'" in capsys.readouterr().err
    assert main([*command, "--workers", "0"]) == 1
    assert "workers must be positive" in capsys.readouterr().err


def test_a_sweeps_batch_size_is_that_of_its_tasks_too_where_it_is_a_number(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("reptrace.__main__._swept", lambda probes, tasks, *rest: asked.append(tasks) or 1 / 0)
    command = ["sweep", "pythia-14m", "--text", "docstrings", "--tasks", "sciq", "--out", str(tmp_path)]
    for more in ([], ["--batch-size", "4"]):
        with pytest.raises(ZeroDivisionError):
            main([*command, *more])
    assert [each.batch_size for each in asked] == [16, 4]


def test_refining_without_rankme_is_refused(tmp_path, capsys):
    assert main(["sweep", "pythia-14m", "--text", "docstrings", "--refine", "2", "--measures", "alpha", "--out",
                 str(tmp_path)]) == 1
    assert "refining goes where RankMe bends" in capsys.readouterr().err


def test_nothing_is_said_of_phases_where_rankme_is_not_measured(tmp_path, capsys):
    for step in (1, 2, 3):
        (folder := tmp_path / f"run/checkpoint-{step}").mkdir(parents=True)
        for name, content in (tiny_model("gpt_neox", step) | tiny_tokenizer(pad=False)).items():
            (folder / name).write_bytes(content)
    (tmp_path / "text.txt").write_text("\n\n".join(f"{text(np.random.default_rng(k), 12)} {k}" for k in range(70)))
    for measures, said in (["alpha"], False), (["alpha", "rankme"], True):
        assert main(["trace", "--model", str(tmp_path / "run"), "--text", str(tmp_path / "text.txt"), "--sequences",
                     "50", "--max-length", "20", "--min-length", "2", "--ranks", "2", "8", "--out",
                     str(tmp_path / "out"), "--measures", *measures]) == 0
        assert ("phases (RankMe)" in capsys.readouterr().out) == said


def test_a_limit_without_tasks_is_refused(tmp_path, capsys):
    assert main(["sweep", "pythia-14m", "--text", "docstrings", "--limit", "3", "--out", str(tmp_path)]) == 1
    assert "--limit says how many items of tasks" in capsys.readouterr().err


def test_a_sweep_asks_tasks_too_where_they_are_named(points, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("\n\n".join(f"{text(np.random.default_rng(k), 12)} {k}" for k in range(70)))
    assert main(["sweep", "pythia-14m", "--text", str(tmp_path / "text.txt"), "--sequences", "50", "--max-length", "20",
                 "--min-length", "2", "--ranks", "2", "8", "--checkpoints", "2", "--tasks", "loss", "--out",
                 str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert said.count(" layer final: RankMe ") == said.count(" loss nats_per_token: ") == 2
    assert len(pd.read_csv(tmp_path / "out" / "tasks.csv")) == len(pd.read_csv(tmp_path / "out" / "table.csv")) == 2

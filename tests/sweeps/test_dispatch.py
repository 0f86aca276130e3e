"""Sweeps on Dask: workers that come, die and come back empty-handed change when a table is ready, never what it says.

Trusted: the table that one process makes, the hub's log of what was fetched, Dask's own account of who computed what,
and the operating system (SIGKILL, process ids). Tables are compared bit for bit, wall seconds apart: device, batch
and number of threads are the same everywhere here, so there is no tolerance. Workers are processes from the `nursery`
unless a test says otherwise; they cannot import this file, so what they run is reptrace's or defined inside a test.
"""

import errno
import sys
from contextlib import contextmanager

import dask
import numpy as np
import pandas as pd
import psutil
import pytest
from clusters import scheduler, wait_until
from limits import SOON, in_background, run
from standin_hub import tiny_model, tiny_tokenizer

from reptrace.__main__ import main
from reptrace.checkpoints.downloads import weights_cache
from reptrace.checkpoints.suites import suite
from reptrace.records.store import Store
from reptrace.sweeps import cluster, dispatch
from reptrace.sweeps.jobs import jobs_of
from reptrace.sweeps.located import Opening, located
from reptrace.sweeps.measurement import GeometryPart, Settings
from reptrace.sweeps.sweep import trace
from reptrace.texts.corpora import Probe

PYTHIA, WEIGHTS = "EleutherAI/pythia-14m", "model.safetensors"
STEPS = (0, 1, 2, 4)


@pytest.fixture
def points(hub):
    for step in STEPS:
        hub.put(PYTHIA, f"step{step}", tiny_model("gpt_neox", step) | tiny_tokenizer(pad=False))
    return suite("pythia-14m").checkpoints()


@pytest.fixture(scope="module")
def probe():
    rng = np.random.default_rng(0)
    return Probe("random", [rng.integers(2, 300, n).tolist() for n in rng.integers(4, 24, 60)], 24, 4)


@pytest.fixture(scope="module")
def made():
    """Tables by the number of checkpoints in them: as they are always the same, they are made once."""
    return {}


@pytest.fixture
def alone(hub, points, probe, tmp_path, made):
    """The table of one process; the hub's log begins after it."""
    if len(points) not in made:
        made[len(points)] = measure(points, probe, tmp_path / "alone")
    hub.requests.clear()
    return made[len(points)]


def measure(points, probe, folder, **options):
    return trace(points, probe, Store(folder), ranks=(2, 8), progress=False, **options)


def assert_same(table, expected):
    plain = [each.drop(columns=["wall_seconds", "code"]) for each in (table, expected)]
    pd.testing.assert_frame_equal(*plain, check_exact=True)


@contextmanager
def going_on(*arguments, **options):
    """`measure` in a thread: a future of its table. Whatever happens, the test does not wait for ever."""
    yield in_background(measure, *arguments, **options)


@contextmanager
def held_up(hub, step):
    """The weights of a checkpoint hardly come, until the block ends."""
    hub.fault("slow", PYTHIA, f"step{step}", WEIGHTS, value=2_000)  # a minute
    fault = hub.faults[-1]
    try:
        yield
    finally:
        fault.value = 1e9


def done(folder):
    return len(list(folder.glob("*.parquet")))


def downloads(hub, point):
    """Requests for the weights of a checkpoint."""
    return [request for request in hub.fetched(WEIGHTS) if point.commit in request.path]


class Account:
    """Dask's account of the checkpoints that were computed: the worker's name for each."""

    def __init__(self, client):
        from distributed import SchedulerPlugin

        class Plugin(SchedulerPlugin):
            def transition(plugin, key, start, finish, *arguments, worker=None, **options):
                if start == "processing" and finish == "memory" and "_on_worker" in key:
                    self.workers.append(client.cluster.scheduler.workers[worker].name)

        self.workers = []
        client.cluster.scheduler.add_plugin(Plugin())


# Workers that come and go


def test_threads_in_this_process_give_the_table_of_one_process(alone, points, probe, tmp_path, dask_here):
    from distributed import Client

    with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address="127.0.0.1:0") as client:
        assert_same(measure(points, probe, tmp_path / "cluster", client=client), alone)


THREADS = """
import sys
from distributed import Client
from reptrace.checkpoints.listing import checkpoints
from reptrace.records.store import Store
from reptrace.sweeps.sweep import trace
from reptrace.texts.probes import Probe
with Client(processes=False, n_workers=1, threads_per_worker=4, dashboard_address="127.0.0.1:0") as client:
    probe = Probe("made", [[k, k + 1, k + 2] for k in range(2, 40)], 3, 3)
    table = trace(checkpoints(sys.argv[1]), probe, Store(sys.argv[2]), ranks=(2, 8), client=client, progress=False)
print(table.status.tolist(), table.reason.tolist())
"""


def test_threads_of_a_fresh_process_may_all_begin_at_once(tmp_path):
    for step in (1, 2, 3, 4):
        (folder := tmp_path / f"run/checkpoint-{step}").mkdir(parents=True)
        for name, content in tiny_model("gpt_neox", step).items():
            (folder / name).write_bytes(content)
    command = [sys.executable, "-c", THREADS, tmp_path / "run", tmp_path / "records"]
    done = run(command, 3 * SOON, cwd=tmp_path)  # torch and transformers are imported anew
    assert done.stdout.strip() == str(["measured"] * 4) + " " + str([""] * 4), done.stderr


@pytest.mark.parametrize("allowed_failures", [0, 3])  # with 3, Dask's own, the task of a dead worker waits for ever
def test_one_worker_killed_in_the_middle_and_one_that_joins_late_leave_no_trace_in_the_table(
        alone, points, probe, hub, tmp_path, nursery, dask_here, allowed_failures):
    hub.fault("slow", PYTHIA, "step0", WEIGHTS, times=1, value=2_000)  # a minute for whoever asks first
    with (scheduler(**{"distributed.scheduler.allowed-failures": allowed_failures}) as client,
          going_on(points, probe, tmp_path / "cluster", client=client) as table):
        account = Account(client)
        victim = nursery.worker(client, "--name", "victim")
        wait_until(lambda: any(request.sent for request in downloads(hub, points[0])), "step0 is under way")
        with held_up(hub, 4):  # the second measures step2 and is then busy until the late one has measured too
            nursery.worker(client, "--name", "second")
            wait_until(lambda: downloads(hub, points[3]), "step4 is under way")
            assert victim.is_running() and account.workers == []
            victim.kill()
            nursery.worker(client, "--name", "late")
            wait_until(lambda: "late" in account.workers, "the late one has measured")
        assert_same(table.result(SOON), alone)
        assert set(account.workers) == {"second", "late"} and len(account.workers) == len(points)
    assert len(downloads(hub, points[0])) == 2  # begun by the victim, done by another


def test_a_table_that_is_lost_with_its_worker_before_it_was_fetched_is_made_again(
        alone, points, probe, tmp_path, nursery, loopback, monkeypatch):
    workers, take_in = [nursery.worker(loopback)], cluster.Cluster._take_in
    loopback.wait_for_workers(1, timeout=SOON)

    def killed_first(self, slot):
        if len(workers) == 1:
            workers[0].kill()
            workers[0].wait(SOON)
            workers.append(nursery.worker(loopback))
        return take_in(self, slot)

    monkeypatch.setattr(cluster.Cluster, "_take_in", killed_first)
    monkeypatch.setattr(cluster, "FETCH", 1)
    with going_on(points, probe, tmp_path / "cluster", client=loopback) as table:
        assert_same(table.result(SOON), alone)


def test_a_worker_that_goes_between_a_look_at_it_and_its_next_checkpoint_is_no_error(
        alone, points, probe, tmp_path, nursery, dask_here, monkeypatch):
    submit = cluster.Cluster._submit
    with scheduler(**{"distributed.comm.timeouts.connect": "1s"}) as client:
        workers = [nursery.worker(client)]
        client.wait_for_workers(1, timeout=SOON)

        def killed_first(self, slot):
            if len(workers) == 1:
                workers[0].kill()
                workers[0].wait(SOON)
                workers.append(nursery.worker(client))
            return submit(self, slot)

        monkeypatch.setattr(cluster.Cluster, "_submit", killed_first)
        with going_on(points, probe, tmp_path / "cluster", client=client) as table:
            assert_same(table.result(SOON), alone)


@pytest.mark.parametrize("allowed_failures", [0, 3])
def test_a_checkpoint_that_takes_every_worker_with_it_is_a_gap_and_the_others_are_measured(
        hub, probe, tmp_path, nursery, dask_here, allowed_failures):
    deadly = {"custom.py": b"import os\nos._exit(3)\n"}  # code of its own, which the user has allowed
    for step in STEPS[:3]:
        hub.put(PYTHIA, f"step{step}", tiny_model("gpt_neox", step))
    files = tiny_model("gpt_neox", 1)
    own = files["config.json"].replace(b"{", b'{"auto_map": {"AutoConfig": "custom.Config"}, ', 1)
    hub.put(PYTHIA, "step1", files | deadly | {"config.json": own.replace(b'"gpt_neox"', b'"custom"')})
    with (scheduler(**{"distributed.scheduler.allowed-failures": allowed_failures}) as client,
          going_on(suite("pythia-14m").checkpoints(), probe, tmp_path / "cluster", client=client,
                   trust=[PYTHIA]) as table):
        workers = [nursery.worker(client) for _ in range(4)]
        found = table.result(SOON)
        assert sum(worker.is_running() for worker in workers) == 1
    assert found.status.tolist() == ["measured", "failed", "measured"]
    assert "the worker died" in found.reason[1] and "3 times" in found.reason[1]


def test_a_worker_that_has_forgotten_the_probes_is_given_them_again(
        alone, points, probe, tmp_path, nursery, loopback, hub):
    def forget():
        from reptrace.sweeps.cluster import _parts

        _parts.clear()

    nursery.worker(loopback)
    with going_on(points, probe, tmp_path / "cluster", client=loopback) as table:
        with held_up(hub, 0):
            wait_until(lambda: downloads(hub, points[0]), "step0 is under way")
            loopback.run(forget)
        assert_same(table.result(SOON), alone)


def test_a_worker_that_dask_has_paused_for_its_memory_measures_all_the_same(
        alone, points, probe, tmp_path, nursery, loopback):
    nursery.worker(loopback, "--memory-limit", "100MB")  # what torch takes before it has done anything
    wait_until(lambda: [each["status"] for each in loopback.scheduler_info()["workers"].values()] == ["paused"],
               "the worker is paused")
    with going_on(points, probe, tmp_path / "cluster", client=loopback) as table:
        assert_same(table.result(SOON), alone)


def test_a_scheduler_that_dies_is_a_clear_error_and_what_was_measured_is_kept(
        alone, points, probe, hub, tmp_path, nursery, dask_here):
    from distributed import Client

    dead = nursery.start("scheduler", "--host", "127.0.0.1", "--port", 0, "--no-dashboard", "--dashboard-address",
                         "127.0.0.1:0", "--scheduler-file", tmp_path / "scheduler.json")
    wait_until((tmp_path / "scheduler.json").exists, "the scheduler is up")
    with (held_up(hub, 1),
          dask.config.set({"distributed.comm.timeouts.connect": "1s"}),  # else closing looks for it for 30
          Client(scheduler_file=str(tmp_path / "scheduler.json")) as client):
        nursery.worker(client)
        with going_on(points, probe, tmp_path / "cluster", client=client) as table:
            wait_until(lambda: done(tmp_path / "cluster") == 1, "one is measured")
            dead.kill()
            with pytest.raises(ConnectionError, match=r"connection to the Dask scheduler was lost.*kept"):
                table.result(SOON)
    again = downloads(hub, points[0])
    assert_same(measure(points, probe, tmp_path / "cluster"), alone)
    assert downloads(hub, points[0]) == again


# Where work goes


def test_workers_with_a_gpu_measure_and_the_others_are_left_alone(
        alone, points, probe, tmp_path, nursery, loopback):
    def without_torch():
        from reptrace.models import loading

        del loading.placement  # which says on what device and in which dtype to measure

    account = Account(loopback)
    nursery.worker(loopback, "--name", "plain")
    loopback.wait_for_workers(1, timeout=SOON)
    loopback.run(without_torch)
    nursery.worker(loopback, "--name", "gpu", "--resources", "GPU=1")
    loopback.wait_for_workers(2, timeout=SOON)
    assert_same(measure(points, probe, tmp_path / "cluster", client=loopback), alone)
    assert account.workers == ["gpu"] * len(points)


def test_a_gpu_that_joins_workers_without_one_takes_its_share(alone, points, probe, hub, tmp_path, nursery, loopback):
    account = Account(loopback)
    nursery.worker(loopback, "--name", "plain")
    with going_on(points, probe, tmp_path / "cluster", client=loopback) as table:
        with held_up(hub, 1):
            wait_until(lambda: downloads(hub, points[1]), "step1 is under way")
            nursery.worker(loopback, "--name", "gpu", "--resources", "GPU=1")
            wait_until(lambda: "gpu" in account.workers, "the GPU has measured")
        assert_same(table.result(SOON), alone)
    assert set(account.workers) == {"plain", "gpu"}


def test_weights_never_pass_through_the_scheduler(hub, probe, tmp_path, nursery, loopback, monkeypatch):
    import torch
    from safetensors.torch import load, save
    from tornado.iostream import IOStream

    ballast = {"v_head.ballast": torch.zeros(500_000)}  # a head that no decoder asks for
    for step in STEPS:
        files = tiny_model("gpt_neox", step)
        hub.put(PYTHIA, f"step{step}", files | {WEIGHTS: save(load(files[WEIGHTS]) | ballast)})
    passed = []  # client and scheduler live in this process: all that goes in or out of their sockets

    def counted(method):
        def counting(self, data):
            passed.append(count := method(self, data))
            return count
        return counting

    for method in ("read_from_fd", "write_to_fd"):
        monkeypatch.setattr(IOStream, method, counted(getattr(IOStream, method)))
    for _ in range(2):
        nursery.worker(loopback)
    found = measure(suite("pythia-14m").checkpoints(), probe, tmp_path / "cluster", client=loopback)
    assert (found.status == "measured").all()
    fetched = sum(request.sent for request in hub.fetched(WEIGHTS))
    assert fetched > len(STEPS) * 2_000_000
    # some kB a checkpoint, and what the workers' first minute costs without any
    assert 0 < sum(filter(None, passed)) < 0.1 * fetched


def test_the_command_line_uses_a_cluster_that_runs(points, hub, tmp_path, nursery, loopback, capsys):
    (tmp_path / "text.txt").write_text("\n\n".join(" ".join("abcdefghij"[k % 7:]) + f" {k}" for k in range(60)))
    account = Account(loopback)
    nursery.worker(loopback)
    assert main(["sweep", "pythia-14m", "--text", str(tmp_path / "text.txt"), "--sequences", "50", "--max-length", "20",
                 "--min-length", "2", "--ranks", "2", "8", "--out", str(tmp_path), "--scheduler",
                 loopback.scheduler.address]) == 0
    assert len(account.workers) == len(points) and capsys.readouterr().out.count(" layer final: RankMe ") == len(points)


def test_no_space_on_a_worker_stops_the_sweep_and_keeps_what_is_done(
        alone, points, probe, hub, tmp_path, nursery, loopback):
    def fill():
        import shutil

        shutil.disk_usage = lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 10, 10)

    nursery.worker(loopback)
    with going_on(points, probe, tmp_path / "cluster", client=loopback) as table:
        with held_up(hub, 1):
            wait_until(lambda: downloads(hub, points[1]), "step1 is under way")
            loopback.run(fill)
        with pytest.raises(OSError, match=r"0\.0 GB are free: free some space") as caught:
            table.result(SOON)
    assert caught.value.errno == errno.ENOSPC
    assert set(pd.concat(map(pd.read_parquet, (tmp_path / "cluster").glob("*.parquet"))).status) == {"measured"}
    nursery.end()
    assert_same(measure(points, probe, tmp_path / "cluster"), alone)


def test_an_interrupted_sweep_leaves_nothing_held_or_fetched_on_its_workers(
        alone, points, probe, hub, tmp_path, nursery, loopback, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    nursery.worker(loopback)
    loopback.wait_for_workers(1, timeout=SOON)
    with monkeypatch.context() as patch:
        patch.setattr(dispatch.Queue, "finish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            measure(points, probe, tmp_path / "cluster", client=loopback)
    wait_until(lambda: not list(weights_cache().glob("models--*/snapshots/*")), "the worker has deleted what it had")
    with going_on(points, probe, tmp_path / "cluster") as table:  # while that worker lives
        assert_same(table.result(SOON), alone)


# On this machine


def test_processes_of_this_machine_give_the_table_of_one_and_end(alone, points, probe, tmp_path, dask_here):
    before = set(psutil.Process().children(recursive=True))
    assert_same(measure(points, probe, tmp_path / "two", workers=2), alone)
    left = set(psutil.Process().children(recursive=True)) - before
    assert not [process for process in left if "resource_tracker" not in " ".join(process.cmdline())]  # Python's own


def test_worker_processes_that_cannot_start_are_an_error_that_says_what_to_try(monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("Nanny failed to start.")

    monkeypatch.setattr("distributed.SpecCluster", fail)
    with pytest.raises(RuntimeError, match=r"no worker processes .*Nanny failed.* under `if __name__ == "):
        cluster.local_cluster(2).__enter__()


def test_each_gpu_of_this_machine_gets_one_worker_and_those_of_others_none(dask_here, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")  # the rest of the machine is somebody else's

    def visible():
        import os

        return os.environ["CUDA_VISIBLE_DEVICES"]

    with pytest.raises(ValueError, match=r"3 workers .* 2 GPUs: one checkpoint a GPU"), cluster.local_cluster(3):
        pass
    with cluster.local_cluster(2) as client:
        client.wait_for_workers(2, timeout=SOON)
        assert sorted(client.run(visible).values()) == ["5", "7"]
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        assert [worker["resources"] for worker in workers] == [{"GPU": 1}] * 2


def test_two_jobs_of_one_checkpoint_are_each_claimed_until_they_are_done(points, probe, tmp_path):
    """As of two groups that hold the same checkpoint for other probes."""
    other = Probe("other", probe.sequences[:30], 24, 4)
    point, opening = points[0], Opening().placed()
    places = located([point], opening, False)
    parts = [GeometryPart(each, Settings(ranks=(2, 8))) for each in (probe, other)]
    jobs = [job for part in parts for job in jobs_of(places, [part], opening)]
    with dispatch.Queue(jobs, Store(tmp_path)) as mine, dispatch.Queue(jobs, Store(tmp_path)) as others:
        first, second = mine.take(), mine.take()
        assert others.take() is None
        mine.give_back(first)
        assert others.take().parts == first.parts and others.take() is None
        assert second.parts == (parts[1],)
    assert all(Store(tmp_path).claim(job.identity(*job.parts)) for job in jobs)  # all let go


def test_a_part_that_is_done_is_not_held_from_others(points, probe, tmp_path):
    other, third = (Probe(str(k), probe.sequences[:k], 24, 4) for k in (30, 40))
    done, opening = measure(points[:1], probe, tmp_path), Opening().placed()
    places = located(points[:1], opening, False)
    queues = [dispatch.Queue(jobs_of(places, [GeometryPart(each, Settings(ranks=(2, 8), batch_size="auto"))
                                              for each in (probe, extra)], opening), Store(tmp_path))
              for extra in (other, third)]
    with queues[0] as one, queues[1] as two:
        taken = one.take(), two.take()
    assert [[part.probe for part in job.parts] for job in taken] == [[other], [third]] and len(done) == 1

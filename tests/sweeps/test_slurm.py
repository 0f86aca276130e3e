"""Trusted: SLURM's own squeue, the environment that SLURM gives to the processes of a job, and one process's table."""

import os
import sys
import time
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
from limits import SOON
from standin_hub import tiny_model, tiny_tokenizer

from reptrace.checkpoints.suites import suite
from reptrace.records.store import Store
from reptrace.sweeps.evaluation import evaluate_checkpoints
from reptrace.sweeps.sweep import trace
from reptrace.texts.corpora import Probe

pytest_plugins = ["slurm"]
pytestmark = pytest.mark.usefixtures("dask_here")


@contextmanager
def cluster(folder, jobs):
    """A client of a cluster whose workers are jobs of SLURM."""
    from dask_jobqueue import SLURMCluster
    from distributed import Client

    with SLURMCluster(interface="lo", cores=1, processes=1, memory="1GB", walltime="00:02:00", death_timeout=15,
                      nanny=False, local_directory=str(folder), log_directory=str(folder),
                      # without an address it takes port 8787, and warns where another has it
                      scheduler_options={"dashboard": False, "dashboard_address": "127.0.0.1:0"}) as workers:
        workers.scale(jobs=jobs)
        with Client(workers, timeout=SOON) as client:
            yield client


def ended(slurm):
    stop = time.monotonic() + SOON
    while slurm.jobs() and time.monotonic() < stop:
        time.sleep(0.1)
    return not slurm.jobs()


def test_a_function_runs_inside_a_slurm_job(slurm, tmp_path):
    def where():  # defined here, so sent by value: a worker cannot import this file
        return os.environ.get("SLURM_JOB_ID"), sys.executable

    with cluster(tmp_path, jobs=1) as client:
        job, python = client.submit(where).result(timeout=SOON)
        assert [int(job)] == slurm.jobs()
        assert python == sys.executable
    assert ended(slurm)


def test_a_sweep_and_tasks_in_two_slurm_jobs_give_the_tables_of_one_process(slurm, hub, tmp_path):
    for step in (0, 1, 2, 4):
        hub.put("EleutherAI/pythia-14m", f"step{step}", tiny_model("gpt_neox", step) | tiny_tokenizer())
    # half a second each: no job can do them all while the other starts
    hub.fault("slow", "EleutherAI/pythia-14m", "step*", "model.safetensors", value=200_000)
    rng = np.random.default_rng(0)
    probe = Probe("random", [rng.integers(2, 300, n).tolist() for n in rng.integers(4, 24, 60)], 24, 4)
    points = suite("pythia-14m").checkpoints()

    def jobs():
        return {"SLURM_JOB_ID": os.environ["SLURM_JOB_ID"], "measured": "reptrace.sweeps.measurement" in sys.modules}

    with cluster(tmp_path, jobs=2) as client:
        client.wait_for_workers(2, timeout=SOON)
        table = trace(points, probe, Store(tmp_path / "slurm"), ranks=(2, 8), progress=False, client=client)
        workers = client.run(jobs).values()
        assert sorted(int(each["SLURM_JOB_ID"]) for each in workers) == sorted(slurm.jobs())
        assert [each["measured"] for each in workers] == [True, True]
        losses = evaluate_checkpoints(points, "loss", Store(tmp_path / "slurm"), 16, probe=probe, progress=False,
                                      client=client)
    assert ended(slurm)
    alone = trace(points, probe, Store(tmp_path / "alone"), ranks=(2, 8), progress=False)
    losses_alone = evaluate_checkpoints(points, "loss", Store(tmp_path / "alone"), 16, probe=probe, progress=False)
    # bit for bit: the same device, batches and number of threads
    for found, expected in ((table, alone), (losses, losses_alone)):
        plain = [each.drop(columns=["wall_seconds", "code"]) for each in (found, expected)]
        pd.testing.assert_frame_equal(*plain, check_exact=True)
        assert (found.status == "measured").all()

"""Trusted: SLURM's own squeue, and the environment that SLURM gives to the processes of a job."""

import os
import sys
import time

import dask
import pytest

pytest_plugins = ["slurm"]


@pytest.fixture(autouse=True)
def kept_in_the_test_folder(tmp_path, monkeypatch):
    """Importing dask_jobqueue writes a file in the home's .config/dask, and a scheduler a folder in /tmp: not here."""
    monkeypatch.setattr(dask.config, "PATH", str(tmp_path))
    with dask.config.set({"temporary-directory": str(tmp_path)}):
        yield


def test_a_function_runs_inside_a_slurm_job(slurm, tmp_path):
    from dask_jobqueue import SLURMCluster
    from distributed import Client

    def where():  # defined here, so sent by value: a worker cannot import this file
        return os.environ.get("SLURM_JOB_ID"), sys.executable

    with SLURMCluster(interface="lo", cores=1, processes=1, memory="500MB", walltime="00:02:00", death_timeout=15,
                      nanny=False, local_directory=str(tmp_path), log_directory=str(tmp_path),
                      # without an address it takes port 8787, and warns where another has it
                      scheduler_options={"dashboard": False, "dashboard_address": "127.0.0.1:0"}) as cluster:
        cluster.scale(jobs=1)
        with Client(cluster, timeout=10) as client:
            job, python = client.submit(where).result(timeout=15)
            assert [int(job)] == slurm.jobs()
            assert python == sys.executable
    stop = time.monotonic() + 10
    while slurm.jobs() and time.monotonic() < stop:
        time.sleep(0.1)
    assert slurm.jobs() == []

"""What the test files share: no network, one thread, fixed seeds, a hub cache laid out by hand, and a stand-in hub."""

import atexit
import gc
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from standin_hub import StandinHub

HUB = StandinHub()  # serves in tests that take the fixture `hub`; otherwise it refuses connections
HF_HOME = Path(tempfile.mkdtemp(prefix="reptrace-hf-"))  # in place of the user's caches and token
atexit.register(shutil.rmtree, HF_HOME, ignore_errors=True)
for name in [name for name in os.environ if name.startswith(("HF_", "HUGGINGFACE_", "HUGGING_FACE_"))]:
    del os.environ[name]
os.environ.update(
    HF_ENDPOINT=HUB.endpoint, HF_HOME=str(HF_HOME), HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_XET="1",
    HF_DATASETS_OFFLINE="0",  # a copy that datasets makes at import; requests are stopped by HF_HUB_OFFLINE alone
    HF_UPDATE_DOWNLOAD_COUNTS="0",  # datasets counts its users on another host
    DISABLE_SAFETENSORS_CONVERSION="1",  # transformers asks another host to convert .bin weights
    TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")
bypass = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(filter(None, (bypass, "127.0.0.1")))

import numpy as np
import pytest
import torch
from clusters import dask_here, loopback, nursery, side_by_side, started_once  # noqa: F401  fixtures
from limits import pytest_handlecrashitem, pytest_runtest_teardown  # noqa: F401  hooks

torch.set_num_threads(1)

# The files that take a quarter of a minute of processor time or more, the longest first.
LONGEST = ("report/test_making.py", "training/test_pretrain.py", "training/test_callback.py", "report/test_book.py",
           "report/test_lab.py", "measures/test_phases.py", "sweeps/test_dispatch.py", "training/test_tuning.py",
           "sweeps/test_sweep_hub.py", "report/test_paper_profile.py", "sweeps/test_measurement.py",
           "training/test_callback_trl.py", "training/test_posttrain.py", "test_main.py", "test_posttraining_paper.py",
           "checkpoints/test_weights.py")


def pytest_collection_modifyitems(items):
    """The longest files first: `make test` gives files to two processes, and neither is to be left with a long one."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(autouse=True)
def seeded():
    """The same random numbers whichever tests run, in whatever order."""
    torch.manual_seed(0)


@pytest.fixture
def waits(monkeypatch):
    """Seconds that tenacity would have waited before other attempts; it does not, here."""
    waits, sleep = [], time.sleep

    def listed(seconds):
        if sys._getframe(1).f_globals["__name__"].startswith("tenacity."):
            waits.append(seconds)
        else:
            sleep(seconds)

    monkeypatch.setattr(time, "sleep", listed)
    return waits


@pytest.fixture(scope="module")
def frozen():
    """What was imported is no garbage: every training collects once, which takes most of a short one's time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def hub_cache(tmp_path):
    """A function that lays out a repository as huggingface_hub keeps it: revision -> files by name (bytes)."""

    def lay_out(repository: str, revisions: dict[str, dict[str, bytes]]) -> Path:
        cache = tmp_path / "hub"
        root = cache / f"models--{repository.replace('/', '--')}"
        for number, (revision, files) in enumerate(revisions.items()):
            commit = f"{number:040x}"
            for name, content in {f"refs/{revision}": commit.encode(),
                                  **{f"snapshots/{commit}/{name}": content for name, content in files.items()}}.items():
                path = root / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        return cache

    return lay_out


@pytest.fixture
def hub(monkeypatch, tmp_path_factory):
    """The stand-in hub, up and empty, for this test and the processes it starts: online, with a new, empty cache.

    Waits before another try, of the client libraries and of tenacity, are cut to a few milliseconds and listed in
    `hub.waits`. Downloads go in pieces of 4 KiB, not 10 MiB, so that a small file cut off is resumed as a large one is.
    """
    from huggingface_hub import HfFileSystem, close_session, constants
    from huggingface_hub.utils import _detect_agent

    assert HUB.endpoint == constants.ENDPOINT, "huggingface_hub was imported before conftest.py set HF_ENDPOINT"

    def forget():
        close_session()
        HfFileSystem.clear_instance_cache()
        shutil.rmtree(HF_HOME)  # where datasets keeps what it read
        HF_HOME.mkdir()

    def sleep(seconds, sleep=time.sleep):
        if sys._getframe(1).f_globals["__name__"].startswith(("huggingface_hub.", "datasets.", "tenacity.")):
            HUB.waits.append(seconds)
            seconds = min(seconds, 0.005)
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", sleep)
    cache = str(tmp_path_factory.mktemp("hub"))  # a new path: listings are also remembered by path, in the process
    monkeypatch.setattr(constants, "HF_HUB_CACHE", cache)
    monkeypatch.setenv("HF_HUB_CACHE", cache)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 2**12)
    monkeypatch.setattr(_detect_agent, "_registry", _detect_agent._EMPTY_REGISTRY)  # else fetched from the hub
    HUB.clear()
    forget()
    with HUB.up():
        yield HUB
    forget()

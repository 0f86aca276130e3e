"""Downloads: one checkpoint ahead, within the budget, whole or an error, and nobody else's files touched.

Trusted: the stand-in hub with its log of requests, the file system (sizes, bytes and links as they lie there), the
operating system (SIGKILL ends a process and its locks), and transformers, which opens what was fetched. Sizes and bytes
are exact. Times are not measured: where two things should overlap, a download is slowed down until one can see it.
"""

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
from huggingface_hub import constants, hf_hub_download, scan_cache_dir, snapshot_download
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from limits import SOON, join, kill, line
from standin_hub import tiny_model, tiny_state
from transformers import AutoModelForCausalLM

from reptrace.checkpoints import downloads as downloads_module
from reptrace.checkpoints.downloads import ChecksumError, Downloads, delete, delete_left_behind, fetch, weights_cache
from reptrace.checkpoints.hub import HubError, files

PYTHIA, WEIGHTS = "EleutherAI/pythia-14m", "model.safetensors"
SIZE = 2**16  # of a checkpoint's weights: sixteen of the pieces that a download goes in here
# Both take a folder, a repository and two commits. Pieces are small here too (conftest.py), so that one sees them come.
CHILD = """
import sys
from pathlib import Path
from huggingface_hub import constants
from reptrace.checkpoints.downloads import Downloads
from reptrace.checkpoints.hub import files
constants.DOWNLOAD_CHUNK_SIZE = 2**12
cache, repository, *commits = sys.argv[1:]
first, second = (files(repository, commit) for commit in commits)
with Downloads(cache=Path(cache)).holding(first, second) as found:
    weights = found / f"models--{repository.replace('/', '--')}" / "snapshots" / first.commit / "model.safetensors"
    before = weights.read_bytes()
    print("held", flush=True)
    sys.stdin.readline()
    print(weights.read_bytes() == before, flush=True)
"""
INTERRUPTED = """
import sys, time
from pathlib import Path
from huggingface_hub import constants
from reptrace.checkpoints.downloads import Downloads
from reptrace.checkpoints.hub import files
constants.DOWNLOAD_CHUNK_SIZE = 2**12
cache, repository, *commits = sys.argv[1:]
first, second = (files(repository, commit) for commit in commits)
downloads = Downloads(cache=Path(cache))
try:
    with downloads.holding(first, second):
        while not list(Path(cache).rglob("*.incomplete")):
            time.sleep(0.01)
        raise KeyboardInterrupt
finally:
    downloads.close()
"""


@pytest.fixture
def cache(tmp_path):
    """A cache of reptrace's own, for this test."""
    return tmp_path / "own"


@pytest.fixture
def own(cache):
    """A function that makes Downloads into that cache; in the end nothing of theirs is left running."""
    made, before = [], set(threading.enumerate())

    def make(*arguments, **options):
        made.append(Downloads(*arguments, cache=cache, **options))
        return made[-1]

    yield make
    for downloads in made:
        downloads.close()
    for thread in set(threading.enumerate()) - before:
        if "_run" in thread.name:
            join(thread)


@pytest.fixture
def points(hub):
    """Four checkpoints of one repository with different weights."""
    return [put(hub, step) for step in range(4)]


def content(step, size=SIZE):
    return {"config.json": b'{"step": %d}' % step, WEIGHTS: random.Random(step).randbytes(size)}


def put(hub, step, repository=PYTHIA, **others):
    """A checkpoint on the hub, as `files` lists it."""
    return files(repository, hub.put(repository, f"step{step}", content(step) | others))


def folder(cache, files):
    return cache / f"models--{files.repository.replace('/', '--')}" / "snapshots" / files.commit


def index(shards):
    return json.dumps({"weight_map": {f"layers.{k}.weight": name for k, name in enumerate(shards)}}).encode()


def read(cache, files, name=WEIGHTS):
    return (folder(cache, files) / name).read_bytes()


def fetched(hub, files, name=WEIGHTS):
    """The log's requests for a file of this very commit."""
    return [request for request in hub.fetched(name) if f"/{files.commit}/" in unquote(request.path)]


def used(cache):
    """Bytes in the blobs of a cache, partial ones included."""
    total = 0
    for folder, _, names in os.walk(cache):  # which passes over what is deleted while one looks
        for name in names if folder.endswith("/blobs") else []:
            with suppress(FileNotFoundError):
                total += os.stat(f"{folder}/{name}").st_size
    return total


def snapshot(root):
    """Everything below a folder: bytes, link targets and times of change."""
    return {str(path.relative_to(root)): (os.readlink(path) if path.is_symlink() else path.read_bytes()
                                          if path.is_file() else None, path.lstat().st_mtime_ns)
            for path in sorted(root.rglob("*"))}


def until(condition):
    """Wait for what another thread or process does."""
    for _ in range(SOON * 200):
        if condition():
            return
        time.sleep(0.005)
    raise TimeoutError("it did not happen")


@contextmanager
def watched(cache):
    """A list that holds the most bytes which lay in the blobs of a cache at once."""
    most, over = [0], threading.Event()

    def watch():
        while not over.is_set():
            most[0] = max(most[0], used(cache))
            time.sleep(0.001)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        join(thread)


@contextmanager
def child(cache, first, second, code=CHILD):
    """A process that holds the first and fetches the second; killed at the end."""
    process = subprocess.Popen([sys.executable, "-c", code, str(cache), first.repository, first.commit, second.commit],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    with process:
        try:
            yield process
        finally:
            process.kill()


# One ahead


def test_the_next_one_is_fetched_while_the_first_is_held(hub, points, own, cache):
    hub.fault("slow", PYTHIA, file=WEIGHTS, value=8 * SIZE)
    first, second, third, _ = points
    downloads = own()
    with downloads.holding(first, second) as found:
        assert found == cache and read(cache, first) == content(0)[WEIGHTS]
        assert not (folder(cache, second) / WEIGHTS).exists()  # it takes an eighth of a second: not there yet
        until(lambda: fetched(hub, second))
        until((folder(cache, second) / WEIGHTS).exists)
        assert not fetched(hub, third)
    with downloads.holding(second, third):
        assert read(cache, second) == content(1)[WEIGHTS] and len(fetched(hub, second)) == 1
    downloads.close()


def test_each_is_deleted_once_it_was_measured_and_the_one_ahead_is_not(hub, points, own, cache):
    downloads = own()
    first, second, *_ = points
    with downloads.holding(first, second):
        until((folder(cache, second) / WEIGHTS).exists)
        assert {each.commit_hash for repo in scan_cache_dir(cache).repos for each in repo.revisions} == {
            first.commit, second.commit}
    assert not folder(cache, first).exists() and read(cache, second) == content(1)[WEIGHTS]
    with downloads.holding(second):
        pass
    assert used(cache) == 0 and not scan_cache_dir(cache).repos


def test_what_was_fetched_ahead_and_never_measured_is_deleted_in_the_end(hub, points, own, cache):
    downloads = own()
    with downloads.holding(*points[:2]):
        until((folder(cache, points[1]) / WEIGHTS).exists)
    downloads.close()
    until(lambda: used(cache) == 0)


def test_it_is_deleted_when_the_measurement_fails_too(hub, points, own, cache):
    with pytest.raises(ZeroDivisionError), own().holding(points[0]):
        1 / 0  # noqa: B018
    assert used(cache) == 0


def test_kept_weights_stay_and_are_not_fetched_again(hub, points, own, cache):
    for _ in range(2):
        downloads = own(keep=True)
        for k, each in enumerate(points):
            with downloads.holding(each, *points[k + 1 : k + 2]):
                assert read(cache, each) == content(k)[WEIGHTS]
        downloads.close()
        assert used(cache) == sum(each.bytes for each in points)
    assert len(hub.fetched(WEIGHTS)) == len(points)


def test_the_folder_of_its_own_lies_beside_the_users_cache(monkeypatch):
    monkeypatch.setattr(constants, "HF_HOME", "/scratch/me/hf")
    assert weights_cache() == Path("/scratch/me/hf/reptrace") and Downloads().cache == weights_cache()


# The user's own cache


def test_what_is_complete_in_the_users_cache_is_read_there_and_left_alone(hub, points, own, cache):
    users = Path(constants.HF_HUB_CACHE)
    snapshot_download(PYTHIA, revision="step0")
    before, asked = snapshot(users), len(hub.requests)
    downloads = own()
    with downloads.holding(points[0]) as found:
        assert found == users and read(users, points[0]) == content(0)[WEIGHTS]
    downloads.close()
    assert snapshot(users) == before and len(hub.requests) == asked and used(cache) == 0


def test_what_is_partial_in_the_users_cache_is_fetched_elsewhere_and_left_alone(hub, points, own, cache):
    users = Path(constants.HF_HUB_CACHE)
    hf_hub_download(PYTHIA, "config.json", revision="step0")
    snapshot_download(PYTHIA, revision="step1")
    before = snapshot(users)
    downloads = own()
    with downloads.holding(points[0], points[1]) as found:
        assert found == cache and read(cache, points[0]) == content(0)[WEIGHTS]
    with downloads.holding(points[1], points[2]) as found:
        assert found == users
    downloads.close()
    assert snapshot(users) == before


# The budget


def walk(downloads, points, ahead=True):
    """All the points, each held until the next one is there, or a moment where it must not come yet."""
    for k, each in enumerate(points):
        with downloads.holding(each, *points[k + 1 : k + 2]) as cache:
            for following in points[k + 1 : k + 2] if ahead else []:
                until((folder(cache, following) / WEIGHTS).exists)
            time.sleep(0.02)
            assert used(cache) == (2 if ahead and each is not points[-1] else 1) * each.bytes


@pytest.mark.parametrize(("disk", "most"), [(None, 2), (2, 2), (1.9, 1), (1, 1)])
def test_no_more_than_the_budget_lies_on_the_disk_at_any_time(hub, points, own, cache, disk, most):
    hub.fault("slow", PYTHIA, file=WEIGHTS, value=16 * SIZE)
    each = points[0].bytes  # all are of one size
    with watched(cache) as seen:
        walk(own(disk and int(disk * each)), points, ahead=most == 2)
    assert seen[0] == most * each  # the thread looks many times in the moment that they are held
    assert used(cache) == 0 and len(hub.fetched(WEIGHTS)) == len(points)


@pytest.mark.parametrize(("places", "disk"), [(4, None), (2, 2), (2, 1)])
def test_several_measurements_in_one_process_share_its_budget(hub, own, cache, places, disk):
    """As on a Dask worker with several threads: by default each has two checkpoints."""
    lines = [[put(hub, 3 * place + k, f"me/run{place}") for k in range(3)] for place in range(places)]
    hub.fault("slow", file=WEIGHTS, value=32 * SIZE)
    each = max(point.bytes for line in lines for point in line)
    downloads, failures = own(disk and disk * each), []

    def work(place, line):
        try:
            for k, point in enumerate(line):
                with downloads.holding(point, *line[k + 1 : k + 2]):
                    assert read(cache, point) == content(3 * place + k)[WEIGHTS]
                    time.sleep(0.01)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=each, daemon=True) for each in enumerate(lines)]
    with watched(cache) as seen:
        for thread in threads:
            thread.start()
        join(*threads)
        assert not failures
    assert seen[0] <= (disk or 2 * places) * each and used(cache) == 0
    if disk is None:
        assert len(hub.fetched(WEIGHTS)) == 3 * places  # none was dropped before its turn


def test_what_an_earlier_sweep_fetched_ahead_makes_room_for_the_next(hub, points, own, cache):
    """A worker of a cluster outlives the sweeps: the one that was on its way when a sweep was stopped is not wanted."""
    downloads = own()
    with downloads.holding(points[0], points[1]):
        until((folder(cache, points[1]) / WEIGHTS).exists)
    with watched(cache) as seen, downloads.holding(points[2], points[3]):
        until((folder(cache, points[3]) / WEIGHTS).exists)
    assert seen[0] <= 2 * points[0].bytes


def test_a_checkpoint_larger_than_the_budget_is_an_error_that_says_both_sizes(hub, own, cache):
    point = put(hub, 0)
    with pytest.raises(ValueError, match=r"checkpoint of 'EleutherAI/pythia-14m' takes 0.0 GB, the disk budget is 0.0"
                                         r" GB: raise it \(disk=, --disk\)"), \
            own(point.bytes - 1).holding(point):
        pass
    assert not hub.fetched(WEIGHTS) and used(cache) == 0


def test_what_lies_in_the_users_cache_does_not_count(hub, points, own, cache):
    snapshot_download(PYTHIA, revision="step0")
    downloads = own(points[1].bytes)
    with downloads.holding(points[0], points[1]):
        until((folder(cache, points[1]) / WEIGHTS).exists)  # fits beside it: the other is the user's
    downloads.close()


# No space left


def test_no_space_left_says_how_much_is_needed_and_where(hub, points, own, cache, monkeypatch):
    full = shutil.disk_usage("/")._replace(free=points[0].bytes - 1)
    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"'EleutherAI/pythia-14m' needs 0.0 GB more in "
                                                                      r".*own', 0.0 GB are free: .*HF_HOME") as error:
        patch.setattr(shutil, "disk_usage", lambda path: full)
        with own().holding(points[0]):
            pass
    assert error.value.errno == errno.ENOSPC and not isinstance(error.value, HubError)
    assert not hub.fetched(WEIGHTS)
    with own().holding(points[0]):
        assert read(cache, points[0]) == content(0)[WEIGHTS]


def test_only_what_is_missing_needs_space(hub, points, own, cache, monkeypatch):
    hf_hub_download(PYTHIA, WEIGHTS, revision=points[0].commit, cache_dir=cache)
    left = shutil.disk_usage("/")._replace(free=points[0].bytes - SIZE)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: left)
    with own().holding(points[0]):
        assert read(cache, points[0], "config.json") == content(0)["config.json"]


def test_a_folder_that_cannot_be_made_is_named(hub, points, tmp_path):
    (tmp_path / "taken").write_text("a file")
    downloads = Downloads(cache=tmp_path / "taken" / "own")
    with pytest.raises(OSError, match="taken/own") as error, downloads.holding(points[0]):
        pass
    assert not isinstance(error.value, HubError)  # it is no matter of the connection


# Cut, refused, slow


def test_a_download_cut_off_goes_on_where_it_stopped(hub, points, own, cache):
    hub.fault("cut", PYTHIA, "step0", WEIGHTS, method="GET", times=2)
    with own().holding(points[0]):
        assert read(cache, points[0]) == content(0)[WEIGHTS]
    whole, second, third = fetched(hub, points[0])
    assert whole.range is None and whole.sent == SIZE // 2
    assert second.range == f"bytes={SIZE // 2}-" and third.range == f"bytes={SIZE // 2 + SIZE // 4}-"
    assert [each.status for each in (second, third)] == [206, 206]


def test_too_many_requests_for_a_file_are_waited_out_as_long_as_the_hub_says(hub, points, own, cache):
    hub.fault("busy", PYTHIA, "step0", WEIGHTS, method="GET", times=2, value=41)
    with own().holding(points[0]):
        assert read(cache, points[0]) == content(0)[WEIGHTS]
    assert hub.waits == [42, 42]  # huggingface_hub waits a second more


def test_too_many_requests_for_a_files_head_are_waited_out_too(hub, points, own, cache):
    hub.fault("busy", PYTHIA, "step0", "config.json", times=2, value=23)
    with own().holding(points[0]):
        assert read(cache, points[0]) == content(0)[WEIGHTS]
    assert hub.waits and all(23 <= wait <= 24 for wait in hub.waits)


@pytest.mark.parametrize(("kind", "file", "method"), [
    ("error", WEIGHTS, "GET"), ("error", WEIGHTS, "HEAD"), ("drop", WEIGHTS, "GET"), ("drop", WEIGHTS, "HEAD")])
def test_short_failures_are_tried_again_and_whole_files_are_not(hub, points, own, cache, kind, file, method):
    hub.fault(kind, PYTHIA, "step0", file, method, times=2)
    with own().holding(points[0]):
        assert read(cache, points[0]) == content(0)[WEIGHTS]
    assert len(fetched(hub, points[0], "config.json")) == 1 and hub.waits
    assert not any(fault.times for fault in hub.faults)


@pytest.mark.parametrize(("kind", "file", "message"), [
    ("error", WEIGHTS, "code 500"), ("busy", "config.json", "code 429"), ("missing", "*", "has no revision"),
    ("drop", "*", "the connection to the hub failed"), ("cut", WEIGHTS, "the connection to the hub failed"),
    ("gated", "*", "is gated: accept its terms"),
])
def test_a_failure_that_does_not_end_names_the_repository_and_leaves_nothing_partial(hub, points, own, cache, kind,
                                                                                    file, message):
    hub.fault(kind, PYTHIA, "step0", file, value=0 if kind == "cut" else None)
    downloads = own()
    with pytest.raises(HubError, match=f"'{PYTHIA}'.*{message}"), downloads.holding(points[0], points[1]):
        pass
    assert not list(cache.rglob("*.incomplete"))
    with downloads.holding(points[1]):  # the others go on
        assert read(cache, points[1]) == content(1)[WEIGHTS]
    hub.faults.clear()
    with downloads.holding(points[0]):  # and the next call tries it again
        assert read(cache, points[0]) == content(0)[WEIGHTS]
    assert used(cache) == 0


def test_a_connection_lost_while_one_is_measured_spoils_the_next_alone(hub, points, own, cache):
    downloads = own()
    with downloads.holding(points[0]):
        pass
    with downloads.holding(points[1]), hub.down():
        with pytest.raises(HubError, match=rf"'{PYTHIA}' at revision '{points[2].commit}': the connection"), \
                downloads.holding(points[2]):
            pass
        assert read(cache, points[1]) == content(1)[WEIGHTS]
    with downloads.holding(points[2]):
        assert read(cache, points[2]) == content(2)[WEIGHTS]
    assert used(cache) == 0


def test_whole_files_of_a_failed_download_are_there_for_the_next_call(hub, own, cache):
    shards = {f"model-{number:05d}-of-00002.safetensors": random.Random(number).randbytes(SIZE) for number in (1, 2)}
    first, second = shards
    content = {"config.json": b"{}", "model.safetensors.index.json": index(shards), **shards}
    commit = hub.put("me/model", "main", content)
    hub.fault("error", file=second, method="GET")
    with pytest.raises(HubError), own().holding(files("me/model", commit)):
        pass
    hub.faults.clear()
    with own().holding(files("me/model", commit)):
        assert [read(cache, files("me/model", commit), name) for name in shards] == list(shards.values())
    assert len(hub.fetched(first)) == 1


# Checksums


def test_a_wrong_checksum_names_the_file_and_the_next_call_mends_it(hub, points, own, cache):
    hub.fault("corrupt", PYTHIA, "step0", times=1)
    downloads = own()
    announced = points[0].needed[WEIGHTS][1]
    with pytest.raises(ChecksumError, match=rf"{WEIGHTS} of '{PYTHIA}' at {points[0].commit[:12]} has SHA-256 .*, the "
                                            rf"hub announced {announced[:12]}"), downloads.holding(points[0]):
        pass
    with downloads.holding(points[0]):
        assert read(cache, points[0]) == content(0)[WEIGHTS]
    assert len(fetched(hub, points[0])) == 2 and used(cache) == 0


def test_of_several_wrong_files_none_is_ever_measured(hub, own, cache):
    shards = {f"pytorch_model-{number:05d}-of-00003.bin": random.Random(number).randbytes(999) for number in (1, 2, 3)}
    wanted = files("me/model", hub.put("me/model", "main", {
        "config.json": b"{}", "pytorch_model.bin.index.json": index(shards), **shards}))
    for name in list(shards)[1:]:
        hub.fault("corrupt", file=name, times=1)
    wrong = 0
    for _ in range(3):
        try:
            with own().holding(wanted):
                assert {name: read(cache, wanted, name) for name in shards} == shards
        except ChecksumError:
            wrong += 1
    assert 1 <= wrong <= 2 and not any(fault.times for fault in hub.faults)


def test_what_a_killed_process_had_fetched_and_not_checked_is_checked(hub, points, own, cache):
    hub.fault("corrupt", PYTHIA, "step0", times=1)
    snapshot_download(PYTHIA, revision=points[0].commit, cache_dir=cache)  # as far as such a process came
    with pytest.raises(ChecksumError, match=WEIGHTS), own().holding(points[0]):
        pass
    with own().holding(points[0]):
        assert read(cache, points[0]) == content(0)[WEIGHTS]


def test_wrong_weights_that_two_revisions_share_are_mended_for_both(hub, own, cache):
    twins = [files(PYTHIA, hub.put(PYTHIA, f"step{step}", content(7) | {"config.json": b"%d" % step}))
             for step in (0, 1)]
    for each in twins:
        fetch(each, cache)
    blob = (folder(cache, twins[0]) / WEIGHTS).resolve()
    blob.write_bytes(b"0" * SIZE)
    with pytest.raises(ChecksumError), own().holding(twins[0]):
        pass
    for each in twins:
        with own().holding(each):
            assert read(cache, each) == content(7)[WEIGHTS]
        assert not folder(cache, each).exists()
    assert used(cache) == 0


# Identical weights


def test_weights_that_two_revisions_share_are_fetched_once_and_stay_for_the_second(hub, own, cache):
    """step0 and step1 of every Pythia are equal."""
    twins = [files(PYTHIA, hub.put(PYTHIA, f"step{step}", content(7) | {"config.json": b"%d" % step}))
             for step in (0, 1)]
    downloads = own()
    with watched(cache) as seen:
        with downloads.holding(*twins):
            until((folder(cache, twins[1]) / WEIGHTS).exists)
        with downloads.holding(twins[1]):
            assert read(cache, twins[1]) == content(7)[WEIGHTS]
    assert used(cache) == 0 and len(hub.fetched(WEIGHTS)) == 1 and seen[0] < 2 * SIZE


def test_one_commit_under_two_names_is_not_deleted_while_the_second_holds_it(hub, points, own, cache):
    downloads = own()
    with downloads.holding(points[0]):
        with downloads.holding(points[0], points[0]):
            pass
        assert read(cache, points[0]) == content(0)[WEIGHTS]
    assert used(cache) == 0 and len(fetched(hub, points[0])) == 1


@pytest.fixture
def in_folders(hub):
    """Three checkpoints in folders of one commit."""
    commit = hub.put(PYTHIA, "main", {f"runs/step-{step}/{name}": found for step in range(3)
                                      for name, found in content(step).items()})
    return [files(PYTHIA, f"{commit}:runs/step-{step}") for step in range(3)]


def test_of_folders_of_one_commit_each_is_fetched_and_deleted_by_itself(hub, in_folders, own, cache):
    downloads = own()
    for step, (wanted, following) in enumerate(zip(in_folders, [*in_folders[1:], None], strict=True)):
        with downloads.holding(wanted, following) as found:
            assert cache in found.parents
            opened = folder(found, wanted) / "runs" / f"step-{step}" / WEIGHTS
            assert opened.read_bytes() == content(step)[WEIGHTS]
            assert len(list(cache.rglob(f"step-{step}/*"))) == 2
        assert not opened.exists()
    downloads.close()
    assert not list(cache.rglob(WEIGHTS))
    fetched = [unquote(request.path).split("/")[-2] for request in hub.fetched(WEIGHTS)]
    assert fetched == ["step-0", "step-1", "step-2"]


def test_what_a_killed_process_left_of_one_folder_goes_with_the_next(hub, in_folders, own, cache):
    fetch(in_folders[0], downloads_module.cache_for(in_folders[0], cache))
    assert list(cache.rglob("step-0/*"))
    with own().holding(in_folders[1]):
        assert not list(cache.rglob("step-0/*")) and list(cache.rglob("step-1/*"))


def test_deleting_one_while_the_next_of_its_repository_begins_does_no_harm(hub, points, own, cache):
    """The repository's folder goes with its last revision: not when another is about to come in."""
    hub.fault("slow", PYTHIA, file="config.json", value=100)  # 0.1 s in which nothing of the second is there yet
    downloads = own()
    with downloads.holding(*points[:2]):
        pass
    with downloads.holding(points[1]):
        assert {name: read(cache, points[1], name) for name in content(1)} == content(1)
    assert used(cache) == 0


# Other processes


@pytest.mark.parametrize("following", [0, 2])
def test_a_killed_process_leaves_no_lock_and_its_leftovers_go_with_the_next_call(hub, points, own, cache, following):
    hub.fault("slow", PYTHIA, "step1", WEIGHTS, value=SIZE)  # a second: it is killed in the middle
    with child(cache, *points[:2]) as process:
        assert line(process) == "held\n"
        until(lambda: list(cache.rglob("*.incomplete")))
        until(lambda: used(cache) > SIZE + SIZE // 8)
        kill(process)
    assert used(cache) > points[0].bytes and list(cache.rglob("*.incomplete"))
    hub.faults.clear()
    before = len(hub.fetched(WEIGHTS))
    with own().holding(points[following]):
        assert read(cache, points[following]) == content(following)[WEIGHTS]
        assert used(cache) == points[following].bytes
        assert len(hub.fetched(WEIGHTS)) == before + (following == 2)  # what was whole is taken up again
    assert used(cache) == 0


def test_a_process_killed_while_it_deletes_leaves_nothing_that_stays_for_ever(hub, points, own, cache):
    """Its links may lack their blobs, and its blobs their links."""
    for each in points[:3]:
        fetch(each, cache)
    (folder(cache, points[0]) / WEIGHTS).resolve().unlink()
    shutil.rmtree(folder(cache, points[1]))
    downloads = own()
    with downloads.holding(points[2], points[3]):
        assert not folder(cache, points[0]).exists()
        until((folder(cache, points[3]) / WEIGHTS).exists)
        assert used(cache) == 2 * points[2].bytes
    downloads.close()
    until(lambda: used(cache) == 0)


def test_weights_in_a_store_that_repositories_share_go_when_nothing_leads_to_them(cache):
    """As huggingface_hub lays out what it fetches by Xet, which the stand-in does not speak: laid out by hand."""
    root, store = cache / "models--me--run", cache / "blobs" / "ab"
    for path in (root / "blobs", root / "snapshots" / ("f" * 40), store):
        path.mkdir(parents=True)
    for letter in "ac":
        (store / (letter * 64)).write_bytes(b"weights")
        (store / f"{letter * 64}.refs").write_text("models--me--run")
    (root / "blobs" / "etag").symlink_to(f"../../blobs/ab/{'a' * 64}")
    (root / "snapshots" / ("f" * 40) / WEIGHTS).symlink_to("../../blobs/etag")
    delete_left_behind(cache, {"f" * 40})
    assert (root / "snapshots" / ("f" * 40) / WEIGHTS).read_bytes() == b"weights"
    assert {path.name for path in store.iterdir()} == {"a" * 64, f"{'a' * 64}.refs", f"{'c' * 64}.refs"}


def test_two_processes_that_hold_one_revision_do_not_delete_it_under_each_other(hub, points, own, cache):
    with child(cache, *points[:2]) as process:
        assert line(process) == "held\n"
        entered, leave = threading.Event(), threading.Event()

        def hold():
            with own().holding(points[0]):
                assert read(cache, points[0]) == content(0)[WEIGHTS]
                entered.set()
                leave.wait(SOON)

        thread = threading.Thread(target=hold, daemon=True)
        thread.start()
        assert not entered.wait(0.3) and folder(cache, points[0]).exists()
        process.stdin.write("\n")
        process.stdin.flush()
        assert line(process) == "True\n"
        assert entered.wait(SOON)
        assert process.wait(SOON) == 0
        assert read(cache, points[0]) == content(0)[WEIGHTS]
        leave.set()
        join(thread)
    assert not folder(cache, points[0]).exists()


def test_a_living_processs_weights_are_no_leftovers(hub, points, own, cache):
    with child(cache, *points[:2]) as process:
        assert line(process) == "held\n"
        until((folder(cache, points[1]) / WEIGHTS).exists)
        for each in points[2:]:
            with own().holding(each):
                assert used(cache) == 3 * each.bytes
        assert [read(cache, points[k]) for k in (0, 1)] == [content(k)[WEIGHTS] for k in (0, 1)]
        process.stdin.write("\n")
        process.stdin.flush()
        assert line(process) == "True\n"
        process.wait(SOON)


def test_an_interrupted_process_ends_without_waiting_for_its_download(hub, points, cache):
    hub.fault("slow", PYTHIA, "step1", WEIGHTS, value=SIZE / 30)  # half a minute, two seconds a piece
    start = time.monotonic()
    with child(cache, *points[:2], INTERRUPTED) as process:
        assert process.wait(2 * SOON) != 0
    assert time.monotonic() - start < 30  # what the download alone takes


def test_an_interrupted_download_can_be_asked_for_again_in_the_same_process(hub, points, own, cache):
    hub.fault("slow", PYTHIA, "step1", WEIGHTS, value=2 * SIZE)
    for _ in range(2):
        downloads = own()
        with pytest.raises(KeyboardInterrupt), downloads.holding(*points[:2]):
            until(lambda: fetched(hub, points[1]))
            raise KeyboardInterrupt
        downloads.close()
    with own().holding(points[1]):
        assert read(cache, points[1]) == content(1)[WEIGHTS]
    until(lambda: used(cache) == 0)


# What is fetched can be opened


@pytest.mark.parametrize(("family", "weights", "shards"), [
    ("gpt_neox", "safetensors", 1), ("olmo2", "safetensors", 2), ("gpt_neox", "bin", 1), ("llama", "bin", 3)])
def test_the_model_opens_from_the_cache_alone(hub, own, cache, family, weights, shards):
    wanted = files("me/model", hub.put("me/model", "step5", tiny_model(family, 5, weights, shards)))
    with own().holding(wanted) as found, hub.down():
        model = AutoModelForCausalLM.from_pretrained("me/model", revision=wanted.commit, cache_dir=found,
                                                     local_files_only=True)
    state = tiny_state(family, 5)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_progress_bars_are_left_as_the_user_had_them(hub, points, cache):
    disable_progress_bars()
    try:
        fetch(points[0], cache)
        assert are_progress_bars_disabled()
    finally:
        enable_progress_bars()
    fetch(points[1], cache)
    assert not are_progress_bars_disabled()


def test_nothing_is_printed(hub, points, own, cache, capfd):
    with own().holding(points[0], points[1]):
        until((folder(cache, points[1]) / WEIGHTS).exists)
    delete(cache, "f" * 40)
    assert capfd.readouterr() == ("", "")

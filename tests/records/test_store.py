"""Records: whole or absent, done once, carrying what made them.

Trusted: the operating system (SIGKILL, a mounted file system that is really full, a path below a regular file), pyarrow
reading the files without our code, and importlib.metadata, platform and git for the provenance. Floats must come back
bit for bit, so there is no tolerance here.
"""

import contextlib
import errno
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from limits import run

from reptrace.records.store import RECORDED_PACKAGES, RecordError, Store, attempt, code_version, write_atomically

# Forks writers that rewrite two records of their own without pause, and kills each some time in the few milliseconds
# after it has begun a file (at a random time alone, a busy machine catches one in hundreds), until ten of them were
# caught in the middle of a write: they leave their unfinished file behind. Prints how many were killed.
KILLER = """
import os, random, signal, sys, time
import numpy as np
from reptrace.records.store import Store
store, random, caught = Store(sys.argv[1]), random.Random(0), 0
unfinished = lambda: len(list(store.folder.glob("*.partial")))
store.write({"k": "warm"}, [{"value": 0.0, "spectrum": np.zeros(100_000)}])
for killed in range(1, 201):
    begun, begin = os.pipe()
    child = os.fork()
    if not child:
        k = 0
        while True:
            k += 1
            store.write({"k": [killed, k % 2]}, [{"value": float(k), "spectrum": np.arange(100_000) + float(k)}])
            if k == 1:
                os.write(begin, b".")
    os.read(begun, 1)  # on a busy machine that takes a while
    while unfinished() == caught:
        pass
    time.sleep(random.uniform(0, 0.004))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(begun)
    os.close(begin)
    caught = unfinished()
    if caught >= 10:
        break
print(killed)
"""


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "records")


def one_row(value=1.0):
    return [{"value": value}]


# Atomicity


def test_writers_killed_at_any_moment_leave_whole_records_only(tmp_path):
    done = run([sys.executable, "-c", KILLER, tmp_path], 120)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*.partial"))) >= 10  # some were caught in the act: the test could have failed
    records = list(tmp_path.glob("*.parquet"))
    assert len(records) > 1
    for record in records:
        row = pyarrow.parquet.read_table(record).to_pylist()[0]
        expected = np.arange(100_000) + row["value"] if row["value"] else np.zeros(100_000)
        assert np.array_equal(row["spectrum"], expected)
    # Our own reading goes by the same files, blind to the unfinished ones
    assert len(Store(tmp_path).table()) == len(records)


def test_a_file_is_replaced_whole_and_no_temporary_stays(tmp_path):
    path = tmp_path / "deep" / "er" / "file"
    for content in (b"first", b"the second, longer"):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert os.listdir(path.parent) == ["file"]


def test_a_written_file_has_the_permissions_of_any_other_new_file(tmp_path):
    write_atomically(tmp_path / "ours", b"")
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def measured(store, identity, measurement, facts):
    """What a sweep does with a measurement: unless it is done, it is made and written. Whether a good one is there."""
    if store.done(identity):
        return True
    rows = attempt(measurement)
    store.write(identity, [{**facts, **row} for row in rows])
    return rows[0].get("status") != "failed"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk])
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")
    yield disk
    run(["umount", disk], check=True)


def test_a_full_disk_is_an_error_that_says_so_and_what_was_there_stays(small_disk, rng):
    store = Store(small_disk)
    assert measured(store, {"k": 1}, one_row, {})
    before = {path.name: path.read_bytes() for path in small_disk.iterdir()}
    too_much = [{"spectrum": rng.standard_normal(20_000)}]  # 160 kB that do not compress
    for identity in ({"k": 1}, {"k": 2}):
        with pytest.raises(OSError, match=r"could not write .*No space left on device.*Free some space") as caught:
            store.write(identity, too_much)
        assert caught.value.errno == errno.ENOSPC
    assert {path.name: path.read_bytes() for path in small_disk.iterdir()} == before
    with pytest.raises(OSError, match="No space left"):  # it stops the work; it is no failed measurement
        measured(store, {"k": 2}, lambda: too_much, {})
    assert store.done({"k": 1}) and not store.done({"k": 2})


def test_a_measurement_that_itself_meets_a_full_disk_stops_the_work_too(store):
    def fill():
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        measured(store, {"k": 1}, fill, {})
    assert not store.done({"k": 1})


@pytest.mark.parametrize("below", ["", "sub", "sub/sub"])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, below):
    file = tmp_path / "file"
    file.write_bytes(b"in the way")  # not even root writes below a regular file
    with pytest.raises(OSError, match=f"cannot write to folder '{file / below}'.*choose another"):
        Store(file / below).write({"k": 1}, one_row())
    assert file.read_bytes() == b"in the way"


# Done once, failed, tried again


def test_what_is_done_is_not_done_again_even_by_another_process_later(store):
    calls = []

    def measurement():
        calls.append(1)
        return one_row(len(calls))

    assert not store.done({"k": 1})
    assert measured(store, {"k": 1}, measurement, {}) and store.done({"k": 1})
    assert measured(Store(store.folder), {"k": 1}, measurement, {})
    assert len(calls) == 1 and store.table()["value"].tolist() == [1]
    assert measured(store, {"k": 2}, measurement, {})  # another identity, another measurement
    assert len(calls) == 2


def test_a_failure_is_a_row_with_its_reason_and_facts_and_is_tried_again(store):
    outcomes = iter([RuntimeError("weights of layer 3 hold NaN"), None])

    def measurement():
        if error := next(outcomes):
            raise error
        return one_row(7.0)

    facts = {"model": "me/run", "step": 3}
    assert not measured(store, {"k": 1}, measurement, facts)
    assert not store.done({"k": 1})
    failed = store.table().to_dict("records")
    assert len(failed) == 1
    assert failed[0]["status"] == "failed" and failed[0]["reason"] == "RuntimeError: weights of layer 3 hold NaN"
    assert (failed[0]["model"], failed[0]["step"]) == ("me/run", 3)

    assert measured(store, {"k": 1}, measurement, facts) and store.done({"k": 1})
    good = store.table().to_dict("records")
    assert len(good) == 1
    assert (good[0]["status"], good[0]["reason"], good[0]["value"]) == ("measured", "", 7.0)
    assert good[0]["wall_seconds"] >= 0


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interruption_is_not_a_failed_measurement(store, interruption):
    def measurement():
        raise interruption

    with pytest.raises(interruption):
        measured(store, {"k": 1}, measurement, {})
    assert not store.folder.exists()


def test_a_measurement_without_rows_does_not_count_as_done(store):
    with contextlib.suppress(ValueError):  # a clear refusal would do, and a recorded failure too
        assert not measured(store, {"k": 1}, list, {})
    assert not store.done({"k": 1})


# Damage


@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: content[: len(content) // 2],
                                    lambda content: b"not parquet at all" * 9, lambda content: content[:-1] + b"?"],
                         ids=["empty", "half", "something else", "last byte"])
def test_a_damaged_record_is_an_error_that_names_the_file(store, damage):
    store.write({"k": 1}, one_row())
    store.write({"k": 2}, one_row())
    path = store.path({"k": 1})
    path.write_bytes(damage(path.read_bytes()))
    for reading in (store.table, lambda: store.done({"k": 1}), lambda: measured(store, {"k": 1}, one_row, {})):
        with pytest.raises(RecordError, match=f"{path}.*damaged.*Delete that file"):
            reading()
    assert store.done({"k": 2})
    path.unlink()
    assert measured(store, {"k": 1}, one_row, {})  # as the message promises


# What a record holds


def test_a_record_carries_its_identity_and_what_made_it(store):
    identity = {"model": "me/run", "ranks": [12, 100]}
    store.write(identity, one_row())
    row = pyarrow.parquet.read_table(store.path(identity)).to_pylist()[0]
    assert json.loads(row["identity"]) == identity
    assert json.loads(row["packages"]) == {name: metadata.version(name) for name in RECORDED_PACKAGES}
    assert row["python"] == platform.python_version()
    assert platform.machine() in row["machine"] and row["code"] == code_version()


def test_the_code_version_names_the_package_version_and_the_commit():
    commit = run(["git", "-C", Path(__file__).parent, "rev-parse", "HEAD"])
    assert code_version().startswith(metadata.version("reptrace"))
    if commit.returncode:
        assert code_version() == metadata.version("reptrace")
    else:
        assert f"({commit.stdout[:12]}" in code_version()


def test_a_git_that_does_not_answer_is_done_without(monkeypatch):
    def hung(command, timeout=None, **options):
        raise subprocess.TimeoutExpired(command, timeout)  # what subprocess says; without a limit it would say nothing

    monkeypatch.setattr("reptrace.records.store.subprocess.run", hung)
    assert code_version.__wrapped__() == metadata.version("reptrace")


def test_numbers_and_spectra_come_back_to_the_last_bit(store, rng):
    spectrum = rng.standard_normal(100) * 10.0 ** rng.integers(-300, 300, 100)
    store.write({"k": 1}, [{"value": 0.1 + 0.2, "spectrum": spectrum, "step": 2**53 + 1, "layer": "final"}])
    row = store.table().iloc[0]
    assert row["value"] == 0.1 + 0.2 and row["step"] == 2**53 + 1 and row["layer"] == "final"
    assert np.array_equal(row["spectrum"], spectrum)


def test_the_order_of_an_identitys_keys_does_not_matter_and_its_values_do(store):
    assert store.path({"a": 1, "b": [2, 3]}) == store.path({"b": [2, 3], "a": 1})
    others = [{"a": 1, "b": [3, 2]}, {"a": 1}, {"a": 1, "b": None}, {"a": "1", "b": [2, 3]}]
    assert len({store.path(identity) for identity in [{"a": 1, "b": [2, 3]}, *others]}) == 5


def test_a_table_lists_the_identities_in_the_order_given_each_with_all_its_rows(store):
    identities = [{"k": k} for k in (3, 1, 2)]
    for identity in sorted(identities, key=lambda identity: identity["k"]):
        store.write(identity, [{"k": identity["k"], "layer": layer} for layer in range(2)])
    table = store.table([*identities, {"k": "not there"}])
    assert table[["k", "layer"]].values.tolist() == [[3, 0], [3, 1], [1, 0], [1, 1], [2, 0], [2, 1]]
    assert table.index.tolist() == list(range(6))
    assert sorted(store.table()["k"]) == [1, 1, 2, 2, 3, 3]


def test_a_table_of_nothing_is_empty_and_still_has_a_status(store):
    for table in (store.table(), store.table([{"k": 1}])):
        assert len(table) == 0 and {"status", "reason"} <= set(table.columns)


def test_a_second_write_replaces_the_first(store):
    for value in (1.0, 2.0):
        store.write({"k": 1}, one_row(value))
    assert store.table()["value"].tolist() == [2.0]

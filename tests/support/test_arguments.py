"""One name where a list is meant, whole numbers, trusted repositories. Trusted: what was passed."""

from pathlib import Path

import numpy as np
import pytest

from reptrace.support.arguments import is_trusted, names, whole


@pytest.mark.parametrize(("given", "expected"), [
    ("a/b", ("a/b",)), (Path("a/b"), (Path("a/b"),)), (["a", "b"], ("a", "b")), (("a",), ("a",)), ((), ()), (None, ()),
    (iter("ab"), ("a", "b")), ([Path("a"), "b"], (Path("a"), "b")), ("", ("",))])
def test_a_single_name_counts_as_a_list_of_one(given, expected):
    assert names(given, "things") == expected


@pytest.mark.parametrize("given", [True, 3, {"a": True}, b"a", ["a", 3], [["a"]], [None]], ids=str)
def test_what_is_no_name_is_refused(given):
    with pytest.raises(TypeError, match="expected things, by name, one or a list of them; got "):
        names(given, "things")


@pytest.mark.parametrize(("model", "trust", "expected"), [
    ("me/model", ["me/model"], True), ("me/model", ["me"], False), ("me/model", ["me/model-two"], False),
    ("me/model", [], False), ("ROOT/run", ["ROOT/run/"], True), ("ROOT/run/", ["ROOT/run"], True),
    ("ROOT/run/checkpoint-1", ["ROOT/run"], True), ("ROOT/link", ["ROOT/run"], True),
    ("ROOT/run", ["ROOT/run/checkpoint-1"], False), ("ROOT/runner", ["ROOT/run"], False),
    ("ROOT/away", ["ROOT/run"], False), ("ROOT/run/checkpoint-1", ["~/run"], True), ("~/run", ["~/run/"], True)])
def test_a_trusted_folder_covers_what_lies_in_it_however_it_is_written(model, trust, expected, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in ("run/checkpoint-1", "runner", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "run")
    (tmp_path / "away").symlink_to(tmp_path / "elsewhere")
    assert is_trusted(model.replace("ROOT", str(tmp_path)),
                      [name.replace("ROOT", str(tmp_path)) for name in trust]) == expected


def test_a_repository_of_the_name_of_a_folder_that_is_trusted_is_not(tmp_path, monkeypatch):
    (tmp_path / "me").mkdir()
    monkeypatch.chdir(tmp_path)
    assert not is_trusted("me/model", ["me"])  # a repository: there is no such folder in it


@pytest.mark.parametrize("given", [3, np.int64(3), np.uint8(3)])
def test_a_whole_number_is_pythons_or_numpys(given):
    assert whole(given, "count") == 3 and type(whole(given, "count")) is int


@pytest.mark.parametrize(("given", "told"), [
    (8.5, "must be a whole number, got float 8.5"), (8.0, "must be a whole number"), ("8", "got str '8'"),
    (True, "got bool True"), (None, "got NoneType"), (1, "must be 2 or more, got 1"), (-3, "got -3")])
def test_what_is_no_whole_number_or_too_small_is_refused_by_name(given, told):
    with pytest.raises((TypeError, ValueError), match=f"^count {told}|^count must.*{told}"):
        whole(given, "count", 2)

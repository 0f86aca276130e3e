"""Which files decide what a task asks: a change in any of them must show.

Trusted: files that are changed one at a time, and lm-eval itself, which reads the task anew.
"""

import json

import pytest

from reptrace.tasks import evaluation, task_files
from reptrace.tasks.harness import manager

TASK = """include: {base}
task: mine
doc_to_text: !function helpers.ask
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
"""
BASE = "output_type: multiple_choice\ntest_split: test\ndoc_to_target: answer\ndoc_to_choice: [a, b]\n"
HELPERS = "from pathlib import Path\n\n\ndef ask(row):\n    return row['passage']\n"


@pytest.fixture
def folder(tmp_path):
    """A task that includes a base outside of its folder, and has a function and data."""
    home, outside = tmp_path / "mine", tmp_path / "outside"
    (home / "more").mkdir(parents=True)
    outside.mkdir()
    (outside / "base.yaml").write_text(f"include: deeper.yaml\nprocess_docs: !function other.process\n{BASE}")
    (outside / "deeper.yaml").write_text("num_fewshot: 0\n")
    (outside / "other.py").write_text("def process(rows):\n    return rows\n")
    (outside / "data.jsonl").write_text(json.dumps({"passage": "a", "answer": 0}))
    (outside / "unrelated.py").write_text("x = 1")
    (home / "mine.yaml").write_text(TASK.format(base="../outside/base.yaml", data=outside / "data.jsonl"))
    (home / "helpers.py").write_text(HELPERS)
    (home / "more" / "group.yaml").write_text("group: several\ntask: [mine, cloze]\n")
    (home / "more" / "tagged.yaml").write_text(
        "task: 'quoted'\ntag: some\noutput_type: generate_until\ndataset_path: json")
    return home


def fingerprints(folder):
    return task_files.fingerprints([evaluation.LOCAL, folder])


def test_every_name_that_lm_eval_finds_in_the_folders_has_a_fingerprint(folder):
    names = {path.stem for path in evaluation.LOCAL.glob("*.yaml")} | {"mine", "several", "quoted", "some"}
    found = fingerprints(folder)
    assert set(found) == names == set(manager(["mine"], [evaluation.LOCAL, folder]).task_index)
    assert len(set(found.values())) == 2 and found == fingerprints(folder)


@pytest.mark.parametrize("changed", [
    "mine/mine.yaml", "mine/helpers.py", "mine/more/group.yaml", "outside/base.yaml", "outside/deeper.yaml",
    "outside/other.py", "outside/data.jsonl"])
def test_a_change_in_any_file_that_a_task_is_made_from_changes_it(folder, changed):
    before, path = fingerprints(folder), folder.parent / changed
    path.write_text(f"{path.read_text()}\n\n")
    after = fingerprints(folder)
    assert {name for name in before if before[name] != after[name]} == {"mine", "several", "quoted", "some"}


@pytest.mark.parametrize("changed", ["outside/unrelated.py", "mine/.hidden", "mine/__pycache__/helpers.pyc"])
def test_nothing_else_changes_it(folder, changed):
    before, path = fingerprints(folder), folder.parent / changed
    path.parent.mkdir(exist_ok=True)
    path.write_text("other")
    assert fingerprints(folder) == before


def test_where_a_folder_lies_does_not_count(folder, tmp_path):
    before = task_files.fingerprint([folder])
    (folder.parent / "mine").rename(tmp_path / "elsewhere")
    assert task_files.fingerprint([tmp_path / "elsewhere"]) == before


def test_a_yaml_that_cannot_be_read_or_includes_itself_is_no_obstacle(folder):
    (folder / "broken.yaml").write_text("task: [")
    (folder / "loop.yaml").write_text("include: loop.yaml\ntask: loop\n")
    assert "mine" in fingerprints(folder)


@pytest.fixture
def reading(folder, monkeypatch):
    """A function that writes a task which reads data in some way, and gives a function of its identity."""
    data = folder.parent / "data"
    (data / "deep" / "er").mkdir(parents=True)
    for name in ("a.jsonl", "b.jsonl", "deep/c.jsonl", "deep/er/d.jsonl", "deep/.hidden.jsonl"):
        (data / name).write_text('{"passage": "a", "answer": 0}\n')
    monkeypatch.chdir(folder.parent)

    def read(yaml):
        (folder / "mine.yaml").write_text(f"task: mine\n{BASE}{yaml.format(data=data)}\n")
        return data

    return read


DATA = {
    "a pattern": ("dataset_path: json\ndataset_kwargs: {{data_files: {{test: '{data}/*.jsonl'}}}}", ["a", "b"]),
    "a pattern of one letter": ("dataset_path: json\ndataset_kwargs: {{data_files: '{data}/[a]?jsonl'}}", ["a"]),
    "all below": ("dataset_path: json\ndataset_kwargs: {{data_files: ['{data}/deep/**']}}", ["deep/c", "deep/er/d"]),
    "hidden, where named": ("dataset_path: json\ndataset_kwargs: {{data_files: '{data}/deep/.*'}}", ["deep/.hidden"]),
    "below where we are": ("dataset_path: json\ndataset_kwargs: {{data_files: 'data/*/*.jsonl'}}", ["deep/c"]),
    "by an address": ("dataset_path: json\ndataset_kwargs: {{data_files: 'file://{data}/b*'}}", ["b"]),
    "in an archive": ("dataset_path: json\ndataset_kwargs: {{data_files: 'zip://*::{data}/a.jsonl'}}", ["a"]),
    "a folder": ("dataset_path: json\ndataset_kwargs: {{data_dir: '{data}/deep'}}", ["deep/c", "deep/er/d"]),
    "a folder as data set": ("dataset_path: {data}/deep", ["deep/c", "deep/er/d"]),
    "files below a folder": ("dataset_path: json\ndataset_kwargs: {{data_dir: '{data}/deep', data_files: er/d.jsonl}}",
                             ["deep/c", "deep/er/d"]),
    "a pattern below a data set": ("dataset_path: data\ndataset_kwargs: {{data_files: deep/.h*}}", ["deep/.hidden"]),
    "a pattern below a folder of a data set": (
        "dataset_path: data\ndataset_kwargs: {{data_dir: deep, data_files: .h*}}", ["deep/.hidden"]),
}


@pytest.mark.parametrize("way", DATA)
def test_a_change_in_any_file_of_data_changes_a_task_however_it_is_named(folder, reading, way):
    yaml, names = DATA[way]
    data = reading(yaml)
    for name in names:
        before = fingerprints(folder)["mine"]
        (data / f"{name}.jsonl").write_text('{"passage": "a", "answer": 1}\n')
        assert fingerprints(folder)["mine"] != before, name


def test_a_file_that_comes_to_match_changes_a_task_and_one_that_does_not_changes_none(folder, reading):
    data = reading(DATA["a pattern"][0])
    before = fingerprints(folder)["mine"]
    (data / "deep" / "c.jsonl").write_text("other")
    (data / "a.txt").write_text("other")
    assert fingerprints(folder)["mine"] == before
    (data / "c.jsonl").write_text("{}")
    assert fingerprints(folder)["mine"] != before


@pytest.mark.parametrize("name", ["https://host/*.jsonl", "hf://datasets/a/b/*.jsonl", "nothing/*.jsonl", "a**b", "",
    "[",
                                  "x" * 5000], ids=lambda name: name[:20])
def test_what_names_no_local_file_is_no_obstacle(folder, reading, name):
    reading(f"dataset_path: json\ndataset_kwargs: {{{{data_files: '{name}'}}}}")
    before = fingerprints(folder)["mine"]
    (folder.parent / "unrelated.jsonl").write_text("other")
    assert fingerprints(folder)["mine"] == before

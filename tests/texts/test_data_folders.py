"""Local folders of data: which files are read, and which folders are refused.

Trusted: each file by itself, read by `text_files`, and `datasets` for what it saved itself. Everything is exact.
"""

import gzip
import json
import os
import re
import zlib

import datasets
import pytest

from reptrace.texts import text_files
from reptrace.texts.data_folders import read
from reptrace.texts.text_files import Documents

MANY = 1000


def rows(*texts):
    return "".join(f"{json.dumps({'text': text})}\n" for text in texts)


@pytest.fixture
def folder(tmp_path):
    """A function that makes a folder of files by their names and contents."""
    def make(files, name="data"):
        for path, content in files.items():
            path = tmp_path / name / path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path / name

    return make


TABLE = "index,id,text\n5,1,NA\n6,2,007\n7,3,\n8,4,null\n"
FORMS = {
    "jsonl": {"b.jsonl": rows("b", None), "a.ndjson": rows("a"), "sub/c.JSONL.gz": gzip.compress(rows("c").encode(),
    mtime=0), "dataset_infos.json": "{}"},
    "csv": {"a.csv": TABLE, "b.csv": "text\n1\n2\n"}, "tsv": {"a.tsv": TABLE.replace(",", "\t")},
    "text": {"a.txt": "one\nline\n\ntwo\n", "b.md": "three", "README.md": "# About", "LICENSE": "MIT",
    "Readme.txt": "b", "sub/licence.rst": "MIT"},
    "texts of licenses": {"license_1.txt": "a", "licenses.txt": "b", "README.first.txt": "c", "readme-2.md": "d",
    "License.md": "MIT"},
    "json": {"a.json": '["a", null, "b"]', "b.json": '[{"text": "c"}]'},
    "metadata": {"a.jsonl": rows("a"), "metadata.jsonl": rows("m"), "readme_first.jsonl": rows("r")},
    "names": {"train-1.jsonl": rows("a"), "a_train.jsonl": rows("b"), "training/x.jsonl": rows("c")},
    "hidden": {"a.jsonl": rows("a"), ".b.jsonl": rows("b"), ".c/d.jsonl": rows("d"), "__pycache__/e.jsonl": rows("e")},
}

NOT_READ = {"README.md", "LICENSE", "Readme.txt", "sub/licence.rst", "License.md", "dataset_infos.json", ".b.jsonl",
            ".c/d.jsonl", "__pycache__/e.jsonl"}


@pytest.mark.parametrize("form", FORMS)
def test_all_files_of_a_folder_are_read_in_their_order_each_as_by_itself(folder, form):
    made = folder(FORMS[form])
    names = sorted(set(FORMS[form]) - NOT_READ)
    each = [text_files.read(made / name) for name in names]
    whole = Documents([text for part in each for text in part.documents], sum(part.passed_over for part in each))
    assert read(made, "text", MANY) == (whole, names)


def test_a_folder_is_read_up_to_as_many_documents_as_wanted(folder):
    made = folder({"a.jsonl": rows("a", None, "b"), "b.jsonl": rows("c", "d"), "c.jsonl": "no json"})
    assert read(made, "text", 2) == ((["a", "b"], 1), ["a.jsonl"])
    assert read(made, "text", 3) == ((["a", "b", "c"], 1), ["a.jsonl", "b.jsonl"])
    with pytest.raises(ValueError, match=r"c\.jsonl, line 1: expected a JSON object"):
        read(made, "text", 5)


def test_another_field_is_read_by_its_name(folder):
    made = folder({"a.csv": "body,id\na,1\n", "b.csv": "id,body\n2,b\n"})
    assert read(made, "body", MANY).found.documents == ["a", "b"]
    with pytest.raises(ValueError, match=r"a\.csv: expected .* \"text\" .*the fields body, id"):
        read(made, "text", MANY)


def test_a_folder_behind_a_link_and_files_behind_links_are_read(folder, tmp_path):
    made = folder({"x.jsonl": rows("a")})
    (tmp_path / "link").symlink_to(made)
    other = folder({}, "other")
    other.mkdir()
    (other / "a.jsonl").symlink_to(made / "x.jsonl")
    assert read(tmp_path / "link", "text", MANY).files == ["x.jsonl"]
    assert read(other, "text", MANY) == ((["a"], 0), ["a.jsonl"])


CARD = "---\nlicense: mit\n{}---\n# About\n"
CONFIGS = "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {}\n"


TWO = ("configs:\n- config_name: one\n  data_files: a.jsonl\n- config_name: two\n  data_files:\n"
       "  - split: train\n    path: .data/*.jsonl\n  - split: test\n    path: b.jsonl\n")


@pytest.mark.parametrize(("files", "told"), [
    ({}, "holds no data files"), ({".a.jsonl": rows("a"), "README.md": "a"}, "holds no data files: hidden ones"),
    ({"__pycache__/a.jsonl": rows("a")}, "holds no data files"),
    ({"a.jsonl": rows("a"), "b.csv": "text\nb\n"}, r"different kinds \(1 \.csv, 1 \.jsonl\).* name one file"),
    ({"a.jsonl": rows("a"), "config.json": "{}"}, r"different kinds \(1 \.json, 1 \.jsonl\)"),
    ({"a.txt": "a", "b.jsonl": rows("b"), "c.jsonl.gz": b""}, r"different kinds \(2 \.jsonl, 1 \.txt\)"),
    ({"a.jsonl": rows("a"), "b.xml": "<b/>"},
     r"not hold data alone: b\.xml cannot be read: .*\.xml.*move it elsewhere"),
    ({"a.zip": b"PK\3\4junk"}, r"a\.zip cannot be read: .*unpack an archive"),
    ({"a.png": b"\x89PNG", "a.jsonl": rows("a")}, r"a\.png cannot be read"),
    ({"a.jsonl": rows("a"), "data.py": ""}, r"data\.py cannot be read"), ({"a": "b"},
     "a cannot be read: it has no suf"),
    ({"train.jsonl": rows("a"), "test.jsonl": rows("b")},
     r"speak of test, train, and all would be read: name one, as hub:.*data::SPLIT, or all files, as hub:.*data::all"),
    ({"train/a.jsonl": rows("a"), "dev/a.jsonl": rows("b")}, "speak of train, validation, and all"),
    ({"my_train_1.jsonl": rows("a"), "my_eval_1.jsonl": rows("b")}, "speak of test, train, and all"),
    ({"train.jsonl": rows("a"), "heldout.jsonl": rows("b")},
     r"speak of train, and 1 of 2 of no split \(as heldout\.jsonl\), and all would be read: .* hub:.*data::all"),
    ({"c-00.jsonl": rows("a"), "c-01.jsonl": rows("b"), "test.jsonl": rows("c")},
     r"speak of test, and 2 of 3 of no split \(as c-00\.jsonl\)"),
    ({"train_and_test.jsonl": rows("a")}, "speak of test, train, and all would be read"),
    ({"README.md": CARD.format(CONFIGS.format("b.jsonl")), "a.jsonl": rows("a")}, r"they cannot be told .*b\.jsonl"),
    ({"README.md": CARD.format("configs: 3\n"), "a.jsonl": rows("a")}, "they cannot be told"),
    ({"README.md": CARD.format(TWO), "a.jsonl": rows("a"), "b.jsonl": rows("b")},
     r"they cannot be told .*as hub:.*data:CONFIG.*available configs: \['one', 'two'\]"),
    ({"README.md": CARD.format("configs: [\n"), "a.jsonl": rows("a")}, r"README\.md, which may name .* cannot be read"),
    ({"README.md": "---\n- a\n---\n", "a.jsonl": rows("a")}, r"README\.md, which may name .* cannot be read"),
    ({"a.jsonl.gz": gzip.compress(rows("a" * 999).encode(), mtime=0)[:-9]},
     r"a\.jsonl\.gz cannot be unpacked: cut off"),
    ({"a.jsonl.gz": b"no gzip"}, r"a\.jsonl\.gz cannot be unpacked"),
    ({"a.jsonl.gz": b"\x1f\x8b\x08" + b"\0" * 7 + zlib.compress(b"a")}, r"a\.jsonl\.gz cannot be unpacked"),
    ({os.fsdecode(b"na\xefve.jsonl"): rows("a")}, r"na\\+udcefve\.jsonl' is not UTF-8"),
    ({"a.parquet": b"PAR1xx"}, r"a\.parquet cannot be read as Parquet")], ids=range(27))
def test_a_folder_of_which_the_documents_cannot_be_told_is_refused(folder, tmp_path, files, told):
    (tmp_path / "data").mkdir()
    with pytest.raises(ValueError, match=told) as error:
        read(folder(files), "text", MANY)
    str(error.value).encode()


@pytest.mark.parametrize("split", ["train", "test", "validation"])
@pytest.mark.parametrize("names", [["my_train_0.jsonl", "train-1.jsonl", "dev.jsonl", "x-testing.jsonl"],
                                   ["train/b.jsonl", "train/a.jsonl", "eval/sub/a.jsonl", "valid/c.jsonl"]])
def test_files_of_a_split_are_those_that_the_datasets_library_takes(folder, names, split):
    made = folder({name: rows(name) for name in names})
    expected = datasets.load_dataset(str(made), split=split)["text"]
    assert sorted(read(made, "text", MANY, split=split).found.documents) == sorted(expected)
    other_word = {"train": "training", "test": "evaluation", "validation": "dev"}[split]
    assert read(made, "text", MANY, split=other_word) == read(made, "text", MANY, split=split)


@pytest.mark.parametrize("names", [["train.jsonl", "test.jsonl"], ["train.jsonl", "heldout.jsonl"], ["a.jsonl"],
                                   ["the_test.jsonl", "a_train_journey.jsonl", "a tale.jsonl"]])
def test_all_means_all_files_whatever_their_names_speak_of(folder, names):
    made = folder({name: rows(name) for name in names} | {"README.md": "# About"})
    assert read(made, "text", MANY, split="all") == ((sorted(names), 0), sorted(names))


def test_a_folder_that_speaks_of_no_split_is_of_train_alone(folder):
    made = folder({"a.jsonl": rows("a")})
    assert read(made, "text", MANY, split="train") == read(made, "text", MANY)
    with pytest.raises(ValueError, match=r"speaks of the split 'test'; they speak of none\. .* hub:.*data::all"):
        read(made, "text", MANY, split="test")


@pytest.mark.parametrize(("config", "split"), [("one", None), ("one", "train"), ("two", None), ("two", "test"),
                                               ("one", "all"), ("two", "all")])
def test_files_that_a_card_names_are_those_that_the_datasets_library_reads(folder, config, split):
    made = folder({"README.md": CARD.format(TWO), "a.jsonl": rows("a"), "b.jsonl": rows("b"), "c.csv": "text\nc\n",
                   ".data/x.jsonl": rows("x"), ".data/y.jsonl": rows("y")})
    expected = datasets.load_dataset(str(made), config, split=split or "train")["text"]
    assert read(made, "text", MANY, config, split).found.documents == list(expected)
    with pytest.raises(ValueError, match=rf"names files of the splits .*, not of 'dev': name one, as hub:.*:{config}:"):
        read(made, "text", MANY, config, "dev")


def test_files_that_a_card_names_elsewhere_are_read_as_they_are_now(folder):
    elsewhere = folder({"x.jsonl": rows("a")}, "elsewhere") / "x.jsonl"
    made = folder({"README.md": CARD.format(CONFIGS.format(elsewhere))})
    assert read(made, "text", MANY) == ((["a"], 0), ["../elsewhere/x.jsonl"])
    elsewhere.write_text(rows("b"))
    assert read(made, "text", MANY).found.documents == ["b"]


def test_a_config_whose_card_names_no_split_of_train_is_of_the_one_there_is(folder):
    card = CARD.format(CONFIGS.format("a.jsonl").replace("train", "held_out"))
    assert read(folder({"README.md": card, "a.jsonl": rows("a")}), "text", MANY).found.documents == ["a"]


def test_a_card_that_names_no_data_files_is_no_obstacle(folder):
    for card in (CARD.format(""), "# About\n", "", CARD.format("configs: []\n")):
        assert read(folder({"README.md": card, "a.jsonl": rows("a")}), "text", MANY).found.documents == ["a"]


def test_a_file_of_its_own_may_stand_for_the_head_of_a_card_as_in_the_datasets_library(folder):
    made = folder({"README.md": CARD.format(CONFIGS.format("a.jsonl")), "a.jsonl": rows("a"), "b.jsonl": rows("b")})
    for yaml, expected in ((CONFIGS.format("b.jsonl"), "b"), ("license: mit\n", "a"), ("", "a")):
        (made / ".huggingface.yaml").write_text(yaml)
        assert read(made, "text", MANY).found.documents == [expected]
        assert datasets.load_dataset(str(made), split="train")["text"][0] == expected
    (made / "README.md").unlink()
    assert read(made, "text", MANY).found.documents == ["a", "b"]  # the file names none
    for wrong in ("configs: [\n", "- a\n"):
        (made / ".huggingface.yaml").write_text(wrong)
        with pytest.raises(ValueError, match=r"data/\.huggingface\.yaml, which may name data files, cannot be read"):
            read(made, "text", MANY)


@pytest.mark.parametrize("options", ["sep: ';'", "names: [text, label]\n  skiprows: 1", "header: null", "field: data",
                                     "sample_by: line"])
def test_a_config_with_options_of_reading_is_refused(folder, options):
    card = CARD.format(CONFIGS.format("a.csv") + f"  {options}\n- config_name: other\n  data_files: b.csv\n")
    made = folder({"README.md": card, "a.csv": "text,label\na,b\nc,d\n", "b.csv": "text\nb\n"})
    named = ", ".join(sorted(re.findall(r"(\w+): ", options)))
    for config in (None, "default"):
        with pytest.raises(ValueError, match=rf"config 'default' .* is to be read with the options {named}, .* "
                           r"datasets\.load_dataset\(.* pass its texts as documents, .*\.jsonl"):
            read(made, "text", MANY, config)
    assert read(made, "text", MANY, "other").found.documents == ["b"]


def test_a_config_may_say_of_itself_what_does_not_change_its_texts(folder):
    more = "  default: true\n  description: of a\n  drop_labels: true\n  version: 1.0.0\n  data_dir: .\n"
    more += "  features:\n  - name: text\n    dtype: string\n"
    made = folder({"README.md": CARD.format(CONFIGS.format("a.jsonl") + more), "a.jsonl": rows("a")})
    assert read(made, "text", MANY).found.documents == ["a"]


def test_a_link_to_a_folder_within_is_refused(folder):
    elsewhere, made = folder({"x.jsonl": rows("x")}, "elsewhere"), folder({"a.jsonl": rows("a")})
    (made / "more").symlink_to(elsewhere)
    with pytest.raises(ValueError, match=r"data/more is a link to a folder, which is not followed"):
        read(made, "text", MANY)


def test_links_within_what_is_hidden_are_no_obstacle_as_it_is_not_read(folder):
    elsewhere, made = folder({"x.jsonl": rows("x")}, "elsewhere"), folder({"a.jsonl": rows("a"), ".hidden/b": "b",
                                                                          "__pycache__/c": "c"})
    for name in (".hidden/link", ".link", "__pycache__/link"):
        (made / name).symlink_to(elsewhere)
    assert read(made, "text", MANY) == ((["a"], 0), ["a.jsonl"])


def test_a_saved_dataset_is_read_as_datasets_reads_it(tmp_path):
    saved = datasets.Dataset.from_dict({"text": ["a", None, "b", "", "c", "d"], "id": range(6)})
    saved.save_to_disk(tmp_path / "whole", num_shards=2)
    saved.select([4, 0, 1]).save_to_disk(tmp_path / "chosen")
    found = read(tmp_path / "whole", "text", MANY)
    assert found.found == (["a", "b", "c", "d"], 2) and len(found.files) == 2
    assert read(tmp_path / "whole", "text", 3).found == (["a", "b"], 1)
    assert read(tmp_path / "chosen", "text", MANY).found == (["c", "a"], 1)
    with pytest.raises(ValueError, match=r"chosen, row 1: .* that holds a text, got int 4"):
        read(tmp_path / "chosen", "id", MANY)
    with pytest.raises(ValueError, match=r'chosen: expected a column "body", got the fields text, id: name the one'):
        read(tmp_path / "chosen", "body", MANY)


@pytest.mark.parametrize(("own", "right", "wrong"), [
    (None, [None, "train", "all"], ["validation", "test"]),
    ("test", [None, "test", "all"], ["train", "validation"])])
def test_a_saved_dataset_is_of_its_own_split_and_has_no_configs(tmp_path, own, right, wrong):
    datasets.Dataset.from_dict({"text": ["a"]}, split=own).save_to_disk(tmp_path / "saved")
    for split in right:
        assert read(tmp_path / "saved", "text", MANY, split=split).found.documents == ["a"]
    for split in wrong:
        with pytest.raises(ValueError, match=rf"saved, made by save_to_disk, is of the split {own or 'train'}, not of "
                           rf"'{split}': name that or none, as hub:"):
            read(tmp_path / "saved", "text", MANY, split=split)
    for split in (None, *right):
        with pytest.raises(ValueError, match=r"'en' of .*saved: a dataset saved by save_to_disk has no configs"):
            read(tmp_path / "saved", "text", MANY, "en", split)


def test_a_saved_dataset_of_several_splits_has_no_configs(tmp_path):
    one = datasets.Dataset.from_dict({"text": ["a"]})
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(tmp_path / "both")
    for split in (None, "test"):
        with pytest.raises(ValueError, match=r"'en' of .*both: a dataset saved by save_to_disk has no configs"):
            read(tmp_path / "both", "text", MANY, "en", split)


def test_a_saved_dataset_of_several_splits_or_with_damage_is_refused(tmp_path):
    one = datasets.Dataset.from_dict({"text": ["a"]})
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(tmp_path / "both")
    with pytest.raises(ValueError, match=r"holds the splits test, train, saved .* as hub:.*both::SPLIT"):
        read(tmp_path / "both", "text", MANY)
    assert read(tmp_path / "both" / "train", "text", MANY).found.documents == ["a"]
    for split in ("train", "test"):
        assert read(tmp_path / "both", "text", MANY, split=split).found.documents == ["a"]
    with pytest.raises(ValueError, match="holds the splits test, train"):
        read(tmp_path / "both", "text", MANY, split="validation")
    table = next((tmp_path / "both" / "train").glob("*.arrow"))
    for content in (table.read_bytes()[:40], b"", None):
        table.unlink() if content is None else table.write_bytes(content)
        with pytest.raises(ValueError, match=r"train looks saved by save_to_disk, and cannot be read"):
            read(tmp_path / "both" / "train", "text", MANY)
    (tmp_path / "both" / "test" / "state.json").write_text("{")
    with pytest.raises(ValueError, match=r"test looks saved by save_to_disk, and cannot be read"):
        read(tmp_path / "both" / "test", "text", MANY)


def test_progress_is_shown_in_bytes(folder, capsys):
    read(folder({"a.jsonl": rows("a"), "b.jsonl": rows("b")}), "text", MANY)
    assert "reading data: " in capsys.readouterr().err

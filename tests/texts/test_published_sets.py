"""Published data sets, from files in each set's own schema, here and on a stand-in hub.

Trusted: the rows that the files were written from, and pandas, pyarrow and gzip that wrote them.
"""

import gzip
import io
import json

import pandas as pd
import pytest

from reptrace.texts import published_sets as sets

TURNS = "\n\nHuman: {}\n\nAssistant: {}"
DIALOGUE = TURNS.format("one?", "two.") + TURNS.format("three?", "four, é.")
HH = [{"chosen": DIALOGUE, "rejected": "other"}, {"chosen": TURNS.format("a", "b"), "rejected": ""},
      {"chosen": TURNS.format("a", "b") + "\n\nHuman: and?", "rejected": "other"},
      {"chosen": TURNS.format("a", " "), "rejected": "other"}, {"chosen": "no turns", "rejected": "other"}]
FARM = [{"instruction": "Add.", "input": "1 2", "output": "3"},
        {"instruction": "Say hi.", "input": "", "output": "Hi."},
        {"instruction": "Be silent.", "input": "", "output": ""}]
EVAL = [{"instruction": "Why?", "output": "Since.", "generator": "text_davinci_003", "dataset": "helpful_base"}]
AMC = [{"id": 0, "answer": 27.0, "url": "u", "question": r"What is $\frac{54}{2}$?"},
       {"id": 1, "answer": 9.0, "url": "u", "question": "3 times 3?"}]


def lines(rows):
    return gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())


def parquet(rows):
    pd.DataFrame(rows).to_parquet(buffer := io.BytesIO())
    return buffer.getvalue()


REPOSITORIES = {
    "Anthropic/hh-rlhf": {f"{part}/{split}.jsonl.gz": lines(HH[:1] if split == "test" else HH)
                          for part in sets.HH_PARTS for split in ("train", "test")}
    | {"red-team-attempts/red_team_attempts.jsonl.gz": lines([{"transcript": "no"}]), "README.md": b"# about"},
    "tatsu-lab/alpaca_farm": {f"alpaca_instructions/{split}.json": json.dumps(FARM, indent=4).encode()
                              for split in ("sft", "val")} | {"alpaca_farm.py": b"raise SystemExit('not to be run')"},
    "tatsu-lab/alpaca_eval": {"alpaca_eval.json": json.dumps(EVAL, indent=4).encode(), "alpaca_eval.py": b"raise 1"},
    "math-ai/amc23": {"test-00000-of-00001.parquet": parquet(AMC), "README.md": b"# about"}}
ASKED = "\n\nHuman: {}\n\nAssistant:"
EXPECTED = {
    "Anthropic/hh-rlhf": (sets.anthropic_hh, [
        {"prompt": TURNS.format("one?", "two.") + ASKED.format("three?"), "completion": " four, é."},
        {"prompt": ASKED.format("a"), "completion": " b"}] * 4,
        {"does not end with the assistant": 8, "the last answer is empty": 4}),
    "tatsu-lab/alpaca_farm": (sets.alpaca_farm, [
        {"prompt": ASKED.format("Add.\n\n1 2"), "completion": " 3"},
        {"prompt": ASKED.format("Say hi."), "completion": " Hi."}], {"no output": 1}),
    "tatsu-lab/alpaca_eval": (sets.alpaca_eval, [{"prompt": ASKED.format("Why?"), **EVAL[0]}], {}),
    "math-ai/amc23": (sets.amc23, [{"question": AMC[0]["question"], "answer": "27.0"},
                                   {"question": "3 times 3?", "answer": "9.0"}], {})}


@pytest.fixture
def copy(tmp_path):
    """A function that lays out a repository's files in a folder."""
    def laid_out(files):
        for name, content in files.items():
            path = tmp_path / "copy" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return tmp_path / "copy"

    return laid_out


@pytest.mark.parametrize("repository", EXPECTED)
def test_a_set_is_read_alike_from_the_hub_and_from_a_copy_and_its_name_says_which_it_was(hub, copy, repository):
    read, rows, left_out = EXPECTED[repository]
    commit = hub.put(repository, "main", REPOSITORIES[repository], "datasets")
    found = read()
    assert found.rows == rows and found.left_out == left_out
    assert found.name.startswith(f"{repository}@{commit[:12]} (")
    folder = copy(REPOSITORIES[repository])
    copied = read(place=folder)
    assert copied.rows == rows and copied.left_out == left_out and copied.name.startswith("copy@")
    assert read(place=folder).name == copied.name
    name = next(name for name in sorted(REPOSITORIES[repository])
                if name.endswith(("/train.jsonl.gz", ".json", ".parquet")))
    one = read(place=folder / name)  # the file alone, whatever it is called
    assert one.rows and one.name.startswith(f"{(folder / name).name}@")
    (folder / name).write_bytes(REPOSITORIES[repository][name] + b"\n" if name.endswith(".json") else lines(HH[:2])
                                if name.endswith(".gz") else parquet(AMC[:1]))
    assert read(place=folder).name != copied.name


def test_the_other_splits_are_others(copy):
    folder = copy(REPOSITORIES["Anthropic/hh-rlhf"])
    assert len(sets.anthropic_hh("test", folder).rows) == 4
    with pytest.raises(ValueError, match=r"has no split 'sft'; it has train, test"):
        sets.anthropic_hh("sft", folder)


def test_the_first_rows_are_the_same_whatever_the_order_of_the_file():
    rows = [{"prompt": str(k), "completion": " x"} for k in range(50)]
    found = [sets.Rows("x", order, {}).first(10) for order in (rows, rows[::-1])]
    assert found[0] == found[1] != rows[:10] and len(found[0]) == 10


@pytest.mark.parametrize(("content", "said"), [
    (b'[{"instruction": "a", "input": ""}]', r"row 1: there is no column output, as tatsu-lab/alpaca_farm has it"),
    (b'[{"instruction": "a", "input": "", "output": [1]}]', r"row 1: the column output should hold a text, got"),
    (b'[{"instruction": "a", "input": "", "output": " "}]', r"has no row that can be used: {'no output': 1}"),
    (b'[{"instruction": "a", "in', r"the datasets library cannot read sft.json"),
    (b"[]", r"has no row that can be used")])
def test_a_spoilt_file_is_an_error_that_says_what_is_wrong(copy, content, said):
    with pytest.raises(ValueError, match=said):
        sets.alpaca_farm(place=copy({"sft.json": content}) / "sft.json")


def test_what_is_not_there_is_an_error_that_says_what_is(copy, tmp_path):
    folder = copy({"other.json": b"[]", "notes.txt": b"x"})
    with pytest.raises(FileNotFoundError, match=r"has no file alpaca_instructions/sft.json.* it has notes.txt, other"):
        sets.alpaca_farm(place=folder)
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        sets.amc23(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"notes.txt cannot be read, known are .parquet, .json"):
        sets.amc23(folder / "notes.txt")


def test_a_set_that_the_hub_lacks_is_an_error_that_names_it(hub):
    with pytest.raises(Exception, match="math-ai/amc23"):
        sets.amc23()

"""Corpora, probes and the tokenizer.

Trusted: a reading of the same sources by the plainest means: `ast.walk` with `ast.get_docstring` over a distribution's
files, documents written here by `json` and by hand, `packaging` over requirements.lock, and the tokenizer called on one
whole document at a time; for the headings of a page, markdown-it and docutils. Everything is exact, so there is no
tolerance, except that a split's share is binomial.
"""

import ast
import gzip
import json
import lzma
import os
import random
import subprocess
import sys
import types
import zipfile
import zlib
from importlib import metadata
from pathlib import Path

import datasets
import docutils.core
import docutils.nodes
import packaging.requirements
import pyarrow
import pytest
import scipy.stats
from markdown_it import MarkdownIt

from reptrace.texts import corpora, docstring_files, readme_sections
from reptrace.texts.corpora import (
    END_OF_TEXT,
    PADDING,
    Corpus,
    default_packages,
    docstrings,
    docstrings_name,
    hub,
    open_text,
    readmes,
    text_file,
    train_tokenizer,
)

LOCK = Path(__file__).parents[2] / "requirements.lock"
WORDS = ["array", "shape", "returns", "value", "the", "of", "a", "model", "layer", "if", "given", "default", "is",
         "naïve", "café", "日本語", "🎉", "it's", "don't", "foo_bar(x,", "y=3)", ">>>", "print()"]


def texts(count, seed=0):
    """Different documents of 1 to 120 words, with the line breaks and rulers of docstrings."""
    draw = random.Random(seed)
    return [f"Document {k}.\n\n    {'-' * draw.randint(0, 60)}\n{' '.join(draw.choices(WORDS, k=draw.randint(1, 120)))}"
            for k in range(count)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(texts(300), 512)


@pytest.fixture
def corpus():
    return Corpus("here", texts(400, seed=1))


# Fingerprints


def test_equal_documents_have_equal_fingerprints(corpus):
    assert Corpus("other name", texts(400, seed=1)).fingerprint == corpus.fingerprint


@pytest.mark.parametrize("documents", [["b", "a", "cd"], ["a", "bc", "d"], ["a", "b", "c", "d"], ["abcd"], ["a", "b"],
                                       ["a", "b", "cd", ""], ["a", "b", "cD"], ["a", "b", "cd", "cd"]])
def test_order_boundaries_and_every_letter_change_the_fingerprint(documents):
    assert Corpus("x", documents).fingerprint != Corpus("x", ["a", "b", "cd"]).fingerprint


def test_a_text_without_documents_is_refused():
    with pytest.raises(ValueError, match="'empty' holds no documents"):
        Corpus("empty", [])


# Training part and probe part


def test_the_two_parts_share_no_document_and_lose_none(corpus):
    repeated = Corpus("here", corpus.documents + corpus.documents[:100])
    train, held_out = repeated.split()
    assert not set(train.documents) & set(held_out.documents)
    assert sorted(train.documents + held_out.documents) == sorted(corpus.documents)  # each once
    order = {document: k for k, document in enumerate(corpus.documents)}
    for part in (train, held_out):
        assert part.documents == sorted(part.documents, key=order.get)


@pytest.mark.parametrize("share", [0.05, 0.15, 0.5])
def test_the_probe_part_has_the_share_asked_for(share):
    held_out = Corpus("x", texts(4000)).split(share)[1]
    # The side is decided by one byte of a hash, hence in 256ths, and is a coin toss a document: one in a million
    low, high = scipy.stats.binom.ppf([5e-7, 1 - 5e-7], 4000, [share, share + 1 / 256])
    assert low <= len(held_out.documents) <= high


def test_a_documents_side_depends_on_nothing_but_the_document(corpus):
    whole = set(corpus.split()[1].documents)
    shuffled = random.Random(3).sample(corpus.documents, 400)
    assert set(Corpus("other", shuffled).split()[1].documents) == whole
    assert set(Corpus("part", corpus.documents[:200]).split()[1].documents) == whole & set(corpus.documents[:200])


@pytest.mark.parametrize("share", [0, 1, -0.1, 15])
def test_a_share_that_is_none_is_refused(corpus, share):
    with pytest.raises(ValueError, match="between 0 and 1"):
        corpus.split(share)


# Texts that are none


def test_a_corpus_is_made_of_texts_from_any_sequence_of_them():
    assert Corpus("x", ("a", "b")) == Corpus("x", iter(["a", "b"])) == Corpus("x", ["a", "b"])
    for documents in ("one text", {"a": "b"}, ["a", 3], None):
        with pytest.raises(TypeError, match="documents must be a list of strings"):
            Corpus("x", documents)
    with pytest.raises(ValueError, match=r"documents\[1\] holds half of a surrogate pair \(U\+D800\) at character 2"):
        Corpus("x", ["fine", "a\ud800"])


def test_rows_that_were_passed_over_do_not_change_the_fingerprint_and_are_said_once(capsys):
    assert Corpus("x", ["a"], 3).fingerprint == Corpus("x", ["a"]).fingerprint
    corpora.report_passed_over(Corpus("x.csv", ["a", "b"], 3))
    corpora.report_passed_over(Corpus("y.csv", ["a", "b"]))
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "x.csv: 3 rows without text were passed over, 2 were read\n")
    with pytest.raises(ValueError, match=r"'x' holds no documents \(3 rows have no text\)"):
        Corpus("x", [], 3)


# Files and datasets


@pytest.fixture
def file(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def rows(*values, field="text"):
    return "".join(f"{json.dumps({field: value, 'id': k})}\n" for k, value in enumerate(values))


def test_a_file_is_opened_by_its_name(file):
    path = file("a.txt", "one\n\ntwo")
    assert open_text(str(path)) == open_text(path) == text_file(path) == Corpus("a.txt", ["one", "two"])
    table = file("a.csv", "body,id\none,1\n,2\ntwo,3\n")
    assert open_text(str(table), field="body") == text_file(table, "body") == Corpus("a.csv", ["one", "two"], 1)


@pytest.mark.parametrize(("name", "content"), [("a.txt", ""), ("a.txt", "\n \n\t\n"), ("a.jsonl", ""), ("a.csv", ""),
                                               ("a.jsonl", "\n\n"), ("a.jsonl", '{"text": " "}\n')])
def test_an_empty_text_is_an_error_that_says_so(file, name, content):
    with pytest.raises(ValueError, match=f"'{name}' holds no documents"):
        text_file(file(name, content))


@pytest.mark.parametrize(("source", "error", "told"), [
    (["a", "b"], TypeError, r"Corpus\(name, texts\)"), (None, TypeError, "named by"), (3, TypeError, "named by"),
    ("hub:", ValueError, "expected hub:REPOSITORY"), ("hub:a:b:c:d:e", ValueError, "expected hub:REPOSITORY"),
    ("hub:./nowhere", FileNotFoundError, "there is no folder './nowhere'"),
    ("hub:/no/such/place", FileNotFoundError, "there is no folder '/no/such/place'"),
    ("nowhere.txt", FileNotFoundError, "no text file 'nowhere.txt'")])
def test_a_source_that_is_none_is_refused(source, error, told):
    with pytest.raises(error, match=told):
        open_text(source)


@pytest.fixture
def repository(monkeypatch):
    """A list of rows that every repository of the hub holds; and a list of what was asked for."""
    rows, asked = [], []

    def load(name, config, split, streaming, revision):
        asked.append((name, config, split, streaming, revision))
        return datasets.Dataset.from_list(rows).to_iterable_dataset()

    monkeypatch.setattr("datasets.load_dataset", load)
    monkeypatch.setattr(corpora, "asked", lambda name, ask: types.SimpleNamespace(sha="0123456789abcdef" * 3))
    return rows, asked


def test_a_dataset_of_the_hub_gives_its_first_documents(repository):
    held, asked = repository
    held += [{"text": text, "body": text.upper()} for text in "a bc"]
    found = hub("owner/name", documents=3)
    assert found == Corpus("owner/name:train@0123456789ab", ["a", "b"], 1)  # one is blank
    assert open_text("hub:owner/name:sample:test:body", documents=1) == Corpus(
        "owner/name:sample:test@0123456789ab", ["A"])
    assert open_text("hub:owner/name", field="body").documents == ["A", "B", "C"]
    assert open_text("hub:owner/name:::text", field="body").documents == ["a", "b", "c"]  # its own field comes first
    commit = "0123456789abcdef" * 3
    assert asked[:2] == [("owner/name", None, "train", True, commit), ("owner/name", "sample", "test", True, commit)]


def test_a_hub_text_is_streamed_once_for_each_way_to_read_it_where_there_is_a_cache(repository, tmp_path):
    held, asked = repository
    held += [{"text": text, "body": text and text.upper()} for text in ("a", "b", None, "c")]
    ways = [{}, {"documents": 1}, {"field": "body"}, {"split": "test"}, {"config": "sample"}, {"repository": "o/n"}]
    ways = [{"repository": "owner/name", **way} for way in ways]
    first = [hub(**way, cache=tmp_path) for way in ways]
    assert first == [hub(**way) for way in ways] and [each.passed_over for each in first] == [1, 0, 1, 1, 1, 1]
    count = len(asked)
    assert [hub(**way, cache=tmp_path) for way in ways] == first and len(asked) == count


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"name": "x"}', '{"name": "x", "documents": [], "passed_over": 0}',
                                    '{"name": "x", "documents": "one"}', "\udcff"], ids=range(7))
def test_a_damaged_file_of_the_cache_is_named_with_what_to_do(repository, distribution, tmp_path, damage):
    repository[0].append({"text": "a"})
    distribution("aaa", "1.0", {"aaa.py": '"""From aaa."""'})
    for read in (lambda: hub("owner/name", cache=tmp_path / "kept"),
                 lambda: docstrings(1, packages=["aaa"], cache=tmp_path / "kept", workers=1)):
        found = read()
        path = next((tmp_path / "kept").iterdir())
        path.write_text(damage, errors="surrogateescape")
        with pytest.raises(ValueError, match=f"kept of a text in '{path}' is damaged .*delete that file"):
            read()
        path.unlink()
        assert read() == found
        path.unlink()


@pytest.mark.parametrize(("held", "told"), [
    ([{"body": "a", "id": 1}], 'row 1: expected a row with a field "text", got the fields body, id: name the one'),
    ([{"text": 1}], 'row 1: expected a row with a field "text" that holds a text, got int 1'),
    ([{"text": None}, {"text": ["a"]}], "row 2: .* that holds a text, got list")])
def test_a_row_of_a_dataset_that_is_no_text_is_named(repository, held, told):
    repository[0].extend(held)
    with pytest.raises(ValueError, match=f"owner/name:train, {told}"):
        hub("owner/name")


@pytest.mark.parametrize("error", [
    EOFError("ended before the end-of-stream marker"), zlib.error("invalid block type"),
    gzip.BadGzipFile("not gzipped"),
    zipfile.BadZipFile("not a zip file"), lzma.LZMAError("corrupt"), pyarrow.ArrowInvalid("not Parquet"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), datasets.exceptions.DatasetGenerationError("no")],
    ids=lambda error: type(error).__name__)
def test_files_of_a_dataset_that_are_damaged_are_an_error_that_names_it(repository, monkeypatch, error):
    def load(*args, **options):
        raise error

    monkeypatch.setattr("datasets.load_dataset", load)
    with pytest.raises(ValueError, match=rf"cannot read owner/name:train: {type(error).__name__}\("):
        hub("owner/name")


def test_a_folder_is_named_by_its_path_its_files_and_a_hash_of_what_was_read(file, tmp_path):
    file("data/a.jsonl", rows("a", "b"))
    source = f"hub:{tmp_path / 'data'}"
    first = open_text(source, cache=tmp_path / "cache")
    assert first == Corpus(f"{tmp_path / 'data'}@{first.fingerprint[:12]} (a.jsonl)", ["a", "b"])
    for name in "bcd":
        file(f"data/{name}.jsonl", rows(name))
    assert open_text(source).name.endswith(" (4 files, a.jsonl to d.jsonl)")
    assert open_text(source, documents=3).name.endswith(" (a.jsonl, b.jsonl)")
    assert open_text(source, documents=3).documents == ["a", "b", "b"]


def test_a_folder_is_read_as_it_is_now_whatever_was_read_before(file, tmp_path):
    def read(field="text", documents=9):
        return open_text(f"hub:{tmp_path / 'data'}", documents, tmp_path / "cache", field)

    path = file("data/a.jsonl", rows("a", "b"))
    first, times = read(), path.stat()
    file("data/a.jsonl", rows("c", "d"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a copy that keeps the times of files
    assert first.documents == ["a", "b"] and read().documents == ["c", "d"] and read().name != first.name
    path.rename(path.with_name("b.jsonl"))
    file("data/a.jsonl", rows("e"))
    assert read().documents == ["e", "c", "d"] and read(documents=1).documents == ["e"]
    file("data/.hidden", "not data")
    assert read().documents == ["e", "c", "d"]
    file("data/a.jsonl", '{"text": "x", "body": "X"}')
    path.with_name("b.jsonl").unlink()
    assert (read().documents, read("body").documents) == (["x"], ["X"])


@pytest.mark.parametrize("source", ["hub:{}:config", "hub:{}:config:train:body"])
def test_a_folder_without_a_card_has_no_configs(file, tmp_path, source):
    file("data/a.jsonl", rows("a"))
    with pytest.raises(ValueError, match=r"its README names no configs.*hub:.*::SPLIT; a field: hub:.*:::FIELD"):
        open_text(source.format(tmp_path / "data"))


def test_a_split_of_a_folder_is_named_as_one_of_a_repository_is(file, tmp_path):
    for name in ("train", "test"):
        file(f"data/{name}.jsonl", rows(name))
    for name in ("train", "test"):
        found = open_text(f"hub:{tmp_path / 'data'}::{name}")
        assert found.documents == [name] and f"({name}.jsonl)" in found.name


def test_a_folder_may_lie_below_the_home_folder_and_near_names_are_told(file, tmp_path, monkeypatch):
    file("data/a.jsonl", rows("a"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_text("hub:~/data").documents == ["a"]
    with pytest.raises(FileNotFoundError, match=f"no folder '~/dada'.* Did you mean {tmp_path}/data"):
        open_text("hub:~/dada")


def test_a_file_behind_hub_is_told_to_be_passed_as_it_is(file):
    with pytest.raises(ValueError, match="is a file: pass its path as it is, without hub:"):
        open_text(f"hub:{file('a.jsonl', rows('a'))}")


# Docstrings


@pytest.fixture
def no_standard_library(monkeypatch):
    monkeypatch.setattr(corpora, "_standard_library", list)  # thousands of files


@pytest.fixture
def distribution(tmp_path, monkeypatch, no_standard_library):
    """A function that installs a distribution of the given files, by name, version and content."""
    site = tmp_path / "site"
    monkeypatch.syspath_prepend(site)

    def install(name, version, files):
        for old in site.glob(f"{name}-*.dist-info"):
            old.rename(old.with_suffix(".gone"))
        info = site / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "RECORD").write_text("".join(f"{path},,\n" for path in files))
        for path, source in files.items():
            (site / path).parent.mkdir(parents=True, exist_ok=True)
            (site / path).write_text(source)
        return site

    return install


def walked(paths, min_characters):
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(node) for path in paths for node in ast.walk(ast.parse(path.read_text()))
             if isinstance(node, kinds)]
    return {text.strip() for text in found if text and len(text.strip()) >= min_characters}


@pytest.mark.parametrize("min_characters", [1, 200])
def test_docstrings_of_a_package_are_those_that_ast_walk_finds_each_once(no_standard_library, min_characters):
    found = docstrings(min_characters, packages=["tqdm"], workers=1).documents
    files = [file.locate() for file in metadata.files("tqdm") if file.suffix == ".py"]
    expected = walked(files, min_characters)
    assert len(expected) > 10
    assert set(found) == expected and len(found) == len(expected)


NESTED = '''
"""Module."""
def plain():
    """Function."""
    def inner():
        """Inner function."""
class A:
    """Class."""
    async def method(self):
        """Method."""
if True:
    def under_if(): "If."
elif True:
    def under_elif(): "Elif."
else:
    class UnderElse: "Else."
try:
    def under_try(): "Try."
except ValueError:
    def under_except(): "Except."
else:
    def under_try_else(): "Try else."
finally:
    def under_finally(): "Finally."
for x in ():
    def under_for(): "For."
else:
    def under_for_else(): "For else."
while False:
    def under_while(): "While."
with open(""):
    def under_with(): "With."
match 1:
    case 1:
        def under_match(): "Match."
def stub():
    x = "not a docstring"
text = """Not a docstring."""
'''


def test_docstrings_are_found_wherever_a_definition_may_stand(distribution):
    site = distribution("nested", "1.0", {"nested.py": NESTED})
    assert set(docstrings(1, packages=["nested"], workers=1).documents) == walked([site / "nested.py"], 1)


def test_docstrings_come_by_distribution_then_file_then_place_each_once_and_long_enough(distribution):
    distribution("bbb", "1.0", {"bbb/z.py": '"""From z."""',
                                "bbb/a.py": '"""From a."""\ndef f(): "In f."\nclass C: "C."'})
    distribution("aaa", "1.0", {"aaa.py": '"""From aaa."""\ndef f(): "In f."', "aaa.txt": '"""Not Python."""',
                                "gone.py": '"""x"""', "broken.py": 'def f(: "Broken, and passed over."'})
    found = docstrings(4, packages=["bbb", "aaa", "bbb"], workers=2)
    assert found.documents == ["From aaa.", "In f.", "From a.", "From z."]  # "C." is too short


def test_the_kept_result_equals_the_fresh_one_and_is_read_instead(distribution, tmp_path):
    site = distribution("aaa", "1.0", {"aaa.py": '"""From naïve aaa 🎉."""'})
    fresh = docstrings(1, packages=["aaa"], cache=tmp_path / "kept", workers=1)
    (site / "aaa.py").unlink()
    kept = docstrings(1, packages=["aaa"], cache=tmp_path / "kept", workers=1)
    assert kept == fresh and kept.fingerprint == fresh.fingerprint and kept.documents == ["From naïve aaa 🎉."]


def test_another_version_or_another_minimum_is_read_anew(distribution, tmp_path):
    distribution("aaa", "1.0", {"aaa.py": '"""Old one."""\ndef f(): "F."'})
    read = {"packages": ["aaa"], "cache": tmp_path / "kept", "workers": 1}
    assert docstrings(1, **read).documents == ["Old one.", "F."]
    assert docstrings(4, **read).documents == ["Old one."]
    distribution("aaa", "1.1", {"aaa.py": '"""New one."""'})
    assert docstrings(1, **read).documents == ["New one."]


def test_the_same_version_with_other_files_is_read_anew(distribution, tmp_path):
    read = {"packages": ["aaa"], "cache": tmp_path / "kept", "workers": 1}
    record = distribution("aaa", "1.0", {"aaa.py": '"""Old one."""'}) / "aaa-1.0.dist-info" / "RECORD"
    record.write_text("aaa.py,sha256=old,14\n")
    assert docstrings(1, **read).documents == ["Old one."]
    (record.parents[1] / "aaa.py").write_text('"""New one."""')
    record.write_text("aaa.py,sha256=new,14\n")  # as pip does when it installs a package anew
    assert docstrings(1, **read).documents == ["New one."]


def test_one_package_counts_as_a_list_of_one(distribution):
    distribution("aaa", "1.0", {"aaa.py": '"""From aaa."""'})
    assert docstrings(1, packages="aaa", workers=1).documents == ["From aaa."]


def test_a_docstring_that_is_no_text_is_passed_over_and_counted(distribution, tmp_path):
    distribution("aaa", "1.0", {"aaa.py": '"""From aaa."""\ndef f(): "Two halves, not one: \\ud83d\\ude00"'})
    for _ in range(2):  # read, and read again from what is kept
        assert docstrings(1, packages=["aaa"], cache=tmp_path, workers=1) == Corpus(docstrings_name(), ["From aaa."], 1)


def test_a_package_that_is_not_installed_is_named(no_standard_library):
    with pytest.raises(metadata.PackageNotFoundError, match="nothing-of-that-name"):
        docstrings(packages=["tqdm", "nothing-of-that-name"])


def test_packages_without_docstrings_are_an_error(distribution):
    distribution("aaa", "1.0", {"aaa.py": "x = 1"})
    with pytest.raises(ValueError, match=r"the text 'docstrings.*' holds no documents"):
        docstrings(1, packages=["aaa"], workers=1)


def test_the_docstrings_of_another_python_are_another_text_and_its_records_say_of_which(distribution, monkeypatch,
                                                                                        tmp_path):
    functions = [f'def f{k}(): "Function {k} does this and that."' for k in range(50)]
    distribution("aaa", "1.0", {"aaa.py": "\n".join(functions)})
    found = {}
    for version in ((3, 11), (3, 13)):
        library = tmp_path / ".".join(map(str, version)) / "json.py"
        library.parent.mkdir()
        library.write_text(f'"""JSON, in {library.parent.name}."""')
        monkeypatch.setattr(corpora, "_standard_library", lambda path=library: [path])
        monkeypatch.setattr(corpora, "PYTHON", version)
        found[version] = docstrings(1, packages=["aaa"])
    usual, new = found.values()
    # Not renamed: the records that there are, of 3.11, hold these.
    assert usual.name == "docstrings" and usual.split()[1].name == "docstrings/probe"
    assert new.fingerprint != usual.fingerprint and new.documents[-1] == "JSON, in 3.13."
    held_out = corpora.probe(new.split(0.5)[1], train_tokenizer(new.documents, 258), 2, 8, 1)
    assert held_out.name == "docstrings (Python 3.13)/probe"  # a column of its records


def test_the_python_that_reads_is_the_one_that_runs():
    assert sys.version_info[:2] == corpora.PYTHON


def test_a_reader_that_fails_is_an_error_and_leaves_no_text(distribution, monkeypatch, tmp_path):
    distribution("aaa", "1.0", {"aaa.py": '"""From aaa."""'})
    monkeypatch.setattr(docstring_files, "__file__", str(tmp_path / "gone.py"))
    with pytest.raises(subprocess.CalledProcessError, match="returned non-zero exit status"):
        docstrings(1, packages=["aaa"], cache=tmp_path / "kept", workers=1)
    assert not list(tmp_path.glob("kept/*"))


def test_files_are_read_in_their_order_by_several_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(docstring_files, "CHUNK", 3)
    files = [tmp_path / f"{k}.py" for k in range(10)]
    for k, file in enumerate(files):
        file.write_text(f'"""Module {k}."""\ndef f(): "{k}"')
    assert list(docstring_files.read(files, 2)) == [[f"Module {k}.", str(k)] for k in range(10)]
    assert list(docstring_files.read([], 2)) == []


def test_the_standard_library_is_read_without_its_tests_and_without_installed_packages():
    files = corpora._standard_library()
    by_path = {"/".join(path.parts[-2:]) for path in files}
    assert {"json/decoder.py", "asyncio/tasks.py"} <= by_path and ast.__file__ in map(str, files)
    assert not any(part in ("site-packages", "test") for path in files for part in path.parts)
    assert files == sorted(files)


def test_the_default_text_is_read_from_packages_that_the_lock_pins():
    lines = [line for line in LOCK.read_text().splitlines() if line.strip() and not line.startswith(("#", "-"))]
    pinned = {packaging.requirements.Requirement(line).name.lower() for line in lines}
    names = default_packages()
    assert set(names) <= pinned and {"torch", "numpy", "transformers"} <= set(names)
    assert len(names) == len(set(names))


# The tokenizer


@pytest.mark.parametrize("text", [
    "plain words", " leading and trailing ", "it 's , spaced . oddly !", "tabs\tand\n\n\n   indented\r\nlines",
    "naïve café 日本語 🎉 \u2028 \x00", "", "unseen: ßþ€", "=" * 500,
])
def test_decoding_gives_back_what_was_encoded(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_decoding_gives_back_any_text_at_all(tokenizer):
    draw = random.Random(0)
    for _ in range(200):
        # Any code point but the surrogates, which are no text
        text = "".join(chr(draw.choice([draw.randrange(0xD800), draw.randrange(0xE000, 0x110000)])) for _ in range(20))
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("vocabulary", [258, 400])
def test_the_vocabulary_has_the_size_asked_for(vocabulary):
    made = train_tokenizer(texts(100), vocabulary)
    assert len(made) == made.vocab_size == len(made.get_vocab()) == vocabulary
    assert sorted(made.get_vocab().values()) == list(range(vocabulary))


def test_end_of_text_and_padding_are_the_first_two_ids(tokenizer):
    assert (tokenizer.eos_token, tokenizer.pad_token) == (END_OF_TEXT, PADDING)
    assert {tokenizer.eos_token_id, tokenizer.pad_token_id} == {0, 1}


def test_more_merges_make_fewer_tokens(tokenizer):
    document = texts(1, seed=5)[0]
    byte_count = len(document.encode())
    assert len(train_tokenizer(texts(50), 258)(document)["input_ids"]) == byte_count  # no room for merges: bytes
    assert len(tokenizer(document)["input_ids"]) < byte_count / 2


def test_the_same_documents_make_the_same_tokenizer(tokenizer):
    assert train_tokenizer(texts(300), 512).get_vocab() == tokenizer.get_vocab()


def test_a_vocabulary_too_small_for_all_bytes_has_the_commonest_and_the_rest_is_end_of_text():
    documents = ["abcdef" * 10, "abcdef" * 10 + "z"]
    made = train_tokenizer(documents, 8)
    assert sorted(made.get_vocab()) == sorted([END_OF_TEXT, PADDING, *"abcdef"])
    assert made.decode(made("facade")["input_ids"]) == "facade"
    assert made("az?")["input_ids"] == [made.get_vocab()["a"], made.eos_token_id, made.eos_token_id]


def test_a_tokenizer_is_trained_on_a_list_of_texts_and_nothing_else():
    with pytest.raises(TypeError, match="documents must be a list of strings"):
        train_tokenizer("one text", 300)


def test_a_vocabulary_of_next_to_nothing_is_refused():
    with pytest.raises(ValueError, match="at least 6 others, got 7"):
        train_tokenizer(["a"], 7)


def test_code_is_the_source_of_each_module_once_without_what_is_too_short_or_no_utf_8(tmp_path, monkeypatch):
    import inspect

    import filelock

    files = {"a.py": b"x = 1\r\n" * 50, "again.py": b"x = 1\n" * 50, "short.py": b"x = 1\n", "latin.py": b"# \xe9" * 99}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(corpora, "_standard_library", lambda: sorted(tmp_path.iterdir()))
    found = corpora.code(packages="filelock")
    assert inspect.getsource(filelock._api) in found.documents and found.documents[-1] == "x = 1\n" * 50
    assert found.passed_over == 1 and len(set(found.documents)) == len(found.documents)
    monkeypatch.setattr(corpora, "default_packages", lambda: ["filelock"])
    assert corpora.open_text("code").fingerprint == found.fingerprint


# Long descriptions


def described(site, name, page, kind="text/markdown"):
    info = next(site.glob(f"{name}-*.dist-info")) / "METADATA"
    info.write_text(f"{info.read_text()}Description-Content-Type: {kind}\n\n{page}")


def test_readmes_are_the_sections_of_each_packages_page_once_in_order_and_long_enough(distribution, monkeypatch):
    pages = {"bbb": "Begins without a heading, naïvely 🎉.\n\n## Licence\n\nAs it is, with no warranty.\n",
             "aaa": "# aaa\n\n[![badge](https://x.y/z.svg)](https://x.y)\n\n## Licence\n\nAs it is, with no warranty.\n"
                    "\n### Short\n\nNo.\n",
             "ccc": ""}
    for name, page in pages.items():
        described(distribution(name, "1.0", {f"{name}.py": ""}), name, page)
    distribution("ddd", "1.0", {"ddd.py": ""})  # metadata without any description
    found = readmes(20, packages=["bbb", "aaa", "ccc", "ddd", "bbb"])
    assert found == Corpus("readmes", ["# aaa\n\n[![badge](https://x.y/z.svg)](https://x.y)",
                                       "## Licence\n\nAs it is, with no warranty.",
                                       "Begins without a heading, naïvely 🎉."])
    assert readmes(20, packages="bbb").documents == found.documents[:0:-1]
    described(distribution("ddd", "1.1", {"ddd.py": ""}), "ddd", "word " * 40)  # 199 characters of text
    described(distribution("eee", "1.0", {"eee.py": ""}), "eee", "words " * 40)
    monkeypatch.setattr(corpora, "default_packages", lambda: ["ddd", "eee"])
    monkeypatch.setattr(corpora, "PYTHON", (3, 13))  # has no part in them, nor in their name
    assert open_text("readmes") == Corpus("readmes", [("words " * 40).strip()])


@pytest.mark.parametrize("name", ["attrs", "httpcore2", "sphinx_external_toc", "torch", "typer"])
def test_a_markdown_page_is_cut_where_markdown_it_finds_headings(name):
    page = metadata.metadata(name)["Description"]
    expected = [token.map[0] for token in MarkdownIt().parse(page) if token.type == "heading_open" and not token.level]
    assert readme_sections._headings(page.split("\n")) == expected and len(expected) > 5


@pytest.mark.parametrize("name", ["cycler", "psutil", "regex", "wcwidth"])
def test_a_page_in_restructured_text_is_cut_where_docutils_finds_titles(name):
    page = metadata.metadata(name)["Description"]
    parsed = docutils.core.publish_doctree(page, settings_overrides={"report_level": 5, "doctitle_xform": False})
    expected = [section.next_node(docutils.nodes.title).rawsource for section in parsed.findall(docutils.nodes.section)]
    parts = [part.split("\n") for part in readme_sections.sections(page)]
    ruled = [next(line.strip() for line in part if not readme_sections.RULE.match(line)) for part in parts]
    assert ruled[-len(expected) :] == expected and len(parts) - len(expected) in (0, 1) and expected


@pytest.mark.parametrize("page", [
    "Title\n=====\nA.\n\nNext\n----\nB.", "=====\nTitle\n=====\n\nA.\n\n====\nNext\n====\nB.",
    "# Title\n```sh\n# a comment\n~~~\n```\n## Next\nB.", "# Title\n~~~~python\n# a comment\n```\n~~~\n~~~~\n# Next",
    "# Title\n#no heading\n####### nor that\n\n---\n    # nor that\n| a |\n| --- |\n# Next\nB."])
def test_a_page_is_cut_before_its_headings_and_nothing_is_lost(page):
    parts = readme_sections.sections(page)
    assert len(parts) == 2 and "Title" in parts[0] and "Next" in parts[1]
    assert "".join("".join(parts).split()) == "".join(page.split())


def test_the_default_readmes_share_no_document_between_training_and_probe():
    whole = readmes()
    training, held_out = whole.split()
    assert not set(training.documents) & set(held_out.documents)
    assert len(training.documents) + len(held_out.documents) == len(whole.documents) > 1000

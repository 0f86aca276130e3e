"""Lists of texts, in whatever container, and what is none. Trusted: what was passed."""

import array
import collections
import io
import re
import sys
import types
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow
import pytest

from reptrace.texts.corpora import Corpus, Probe
from reptrace.texts.given import as_texts

CHARACTER = "w" if sys.version_info >= (3, 13) else "u"  # of an array; "u" is deprecated where there is "w"
GIVEN = ["one", "naïve 🎉", "three"]


@pytest.mark.parametrize("given", [
    GIVEN, tuple(GIVEN), pd.Series(GIVEN), pd.Series(GIVEN, dtype=object, index=[7, 5, 3]), np.array(GIVEN),
    np.array(GIVEN, dtype=object), datasets.Dataset.from_dict({"text": GIVEN})["text"], dict.fromkeys(GIVEN).keys(),
    (text for text in GIVEN), collections.deque(GIVEN), pyarrow.array(GIVEN),
    pyarrow.chunked_array([GIVEN[:1], GIVEN[1:]]), pyarrow.array(GIVEN).dictionary_encode(),
    pyarrow.table({"text": GIVEN})["text"]], ids=lambda given: type(given).__name__)
def test_texts_come_from_any_sequence_of_strings(given):
    found = as_texts(given)
    assert found == GIVEN and type(found) is list and {type(text) for text in found} == {str}
    assert as_texts([]) == []


@pytest.mark.parametrize(("given", "told"), [
    ("one text", r"got str 'one text'. One text? Pass [text]. A path? Pass text_file(path).documents"),
    (Path("a.txt"), "Pass text_file(path).documents"), (io.StringIO("a\nb"), "Pass text_file(path).documents"),
    (b"one", "Decode it"), (bytearray(b"one"), "Decode it"), (memoryview(b"one"), "Decode it"),
    (array.array(CHARACTER, "one text"), "An array of letters or numbers: pass [given.tounicode()]"),
    (array.array("i", [1, 2]), "An array of letters or numbers"), ({"a": "one"}, "Pass list(texts.values())"),
    (types.MappingProxyType({"a": "one"}), "Pass list(texts.values())"), (set(GIVEN), "A set has no order"),
    (frozenset(GIVEN), "A set has no order"), (None, "got NoneType None."), (3, "got int 3."), (2.5, "got float 2.5."),
    (np.array("one"), "got ndarray array('one'"), (pd.Series(GIVEN).str, "got StringMethods"),
    (Corpus("x", GIVEN), "Pass corpus.documents"),
    (Probe("x", [[1]], 2, 1), "last_token_states(model, probe.sequences)"),
    (pd.DataFrame({"text": GIVEN}), 'pass one column, as table["text"]'),
    (pyarrow.table({"text": GIVEN}), 'pass one column, as table["text"]'),
    (pyarrow.record_batch({"text": GIVEN}), 'pass one column, as table["text"]'),
    (dict(enumerate(GIVEN)).items(), "texts[0] is tuple (0, 'one'). Pairs? Pass their texts alone, as [text for _, "),
    (enumerate(GIVEN), "texts[0] is tuple (0, 'one'). Pairs?"), (zip(GIVEN, GIVEN, strict=True), "Pairs?"),
    ([["one", 1]], "texts[0] is list ['one', 1]. Pairs?"), (pd.Series(GIVEN).items(), "Pairs?"),
    (pyarrow.array(["a", None]), "texts[1] is NoneType None. Leave rows without text out")],
    ids=lambda value: type(value).__name__)
def test_what_is_no_sequence_of_texts_is_refused_with_what_was_meant(given, told):
    with pytest.raises(TypeError, match=rf"^texts must be a list of strings.*{re.escape(told)}"):
        as_texts(given)


@pytest.mark.parametrize(("item", "told"), [
    (None, "is NoneType None. Leave rows without text out"),
    (float("nan"), "is float nan. Leave rows without text out"),
    (pd.NA, "NAType <NA>. Leave rows"), (5, "is int 5. Token ids?"), (np.int64(5), "is int64 np.int64(5). Token ids?"),
    ([1, 2], "is list [1, 2]. Token ids? Pass them to last_token_states"), (["a"], "is list ['a']."),
    ({"text": "a"}, 'row["text"] for row in rows'), (b"a", "is bytes b'a'."), (np.array(["a", "b"]), "is ndarray")],
    ids=lambda value: type(value).__name__)
def test_a_text_that_is_none_is_named_by_its_index_and_type(item, told):
    with pytest.raises(TypeError, match=rf"documents\[2\] {re.escape(told) if told.startswith('is') else ''}") as error:
        as_texts(["one", "two", item], "documents")
    assert told in str(error.value)


def test_names_of_files_in_place_of_their_texts_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b.txt"):
        Path(name).write_text("text")
    for name in ("test", "yes", "README.md", "a.py", "c.TXT.gz"):
        Path(name).write_text("text")
    for given in (["a.txt"], ("a.txt", "b.txt"), [str(tmp_path / "a.txt"), "./LICENSE"], pd.Series(["no.csv", "b.txt"]),
                  ["no file.jsonl.zst", "a.txt"], ["README.md", "a.txt"], [str(tmp_path / "test"), "a.txt"],
                  ["c.TXT.gz", "a.txt"], ["no.parquet", "a.txt"]):
        with pytest.raises(TypeError, match=r"all look like names of files, and .*(txt|z|md|t)' is one: .*text_file"):
            as_texts(given)
    with pytest.raises(TypeError, match=r"texts\[0\] is PosixPath .* A path\? Pass .*text_file\(path\)"):
        as_texts([Path("a.txt"), Path("b.txt")])
    for given in (["a.txt", "text"], ["text", "a.txt"], [str(tmp_path)], ["x" * 5000], ["a\0b"], ["none.txt"], [""],
                  ["yes", "yes"], ["test"], ["os.path", "README.md"], ["a.py"], ["a.txt", "one\ntwo.txt"],
                  ["a.txt", f"{'x' * 255}.txt"], ["a.txt", "numpy.array"], []):
        assert as_texts(given) == given


def test_half_of_a_surrogate_pair_is_named_by_index_and_place():
    with pytest.raises(ValueError, match=r"texts\[1\] holds half of a surrogate pair \(U\+DFFF\) at character 3:"):
        as_texts(["fine 🎉", "ab\udfff", "c\ud800"])
    mended = "ab\udfff\ud83c\udf89".encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # as the message says
    assert as_texts([mended]) == ["ab\ufffd🎉"]


def test_messages_stay_short_whatever_was_passed():
    for given in ("x" * 10**6, {"x" * 10**6}, ["a", ["x" * 10**6] * 10**3], pd.DataFrame({"x": range(10**4)})):
        with pytest.raises(TypeError) as error:
            as_texts(given)
        assert len(str(error.value)) < 600

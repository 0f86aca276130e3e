"""Files of text: what is read of each kind, and what is refused.

Trusted: files written by json, csv, pandas, pyarrow and gzip from documents that are known beforehand. Everything is
exact, so there is no tolerance.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import re
import zipfile

import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest

from reptrace.texts.text_files import Rows, read

# White space at the ends, separators, quotes, line breaks, what looks like a number or like nothing
DOCUMENTS = ["one, two\tthree", 'he said "so"', "two\nlines\n\nand a blank one", "  indented", "1.50", "007", "NA",
             "null", "nan", "naïve 🎉", "'", "{}", "a\u2028b", "a\u0085b", "line\r\nends", "the last \n"]
PACKED = {"": bytes, ".gz": gzip.compress,
          ".zst": lambda content: pyarrow.Codec("zstd").compress(content, asbytes=True)}


@pytest.fixture
def file(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def table(documents, field="text"):
    return pd.DataFrame({"id": range(len(documents)), field: documents, "more": "x"}, dtype=object)


def lines(rows):
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def parquet(documents, field="text", kind=None):
    columns = {"id": list(range(len(documents))), field: pyarrow.array(documents, kind)}
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink, row_group_size=max(3, len(documents) // 5))
    return sink.getvalue()


def separated(documents, field, delimiter):
    sink = io.StringIO()
    writer = csv.writer(sink, delimiter=delimiter)
    writer.writerows([["id", field], *([str(k), document] for k, document in enumerate(documents))])
    return sink.getvalue().encode()


WRITTEN = {
    ".jsonl": lambda texts, field: lines([{"id": k, field: text} for k, text in enumerate(texts)]),
    ".ndjson": lambda texts, field: table(texts, field).to_json(orient="records", lines=True).encode(),
    ".json": lambda texts, field: json.dumps([{field: text, "id": 1} for text in texts]).encode(),
    ".csv": lambda texts, field: separated(texts, field, ","),
    ".tsv": lambda texts, field: table(texts, field).to_csv(index=False, sep="\t").encode(),
    ".parquet": parquet,
}


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("kind", WRITTEN)
def test_the_rows_of_a_table_are_documents_as_they_stand(file, kind, packing):
    for field in ("text", "body"):
        path = file(f"a{kind}{packing}", PACKED[packing](WRITTEN[kind](DOCUMENTS, field)))
        assert read(path, field) == (DOCUMENTS, 0)
        assert read(path.rename(path.with_name(path.name.upper())), field) == (DOCUMENTS, 0)


@pytest.mark.parametrize("kind", WRITTEN)
def test_blank_rows_are_passed_over_and_counted(file, kind):
    assert read(file(f"a{kind}", WRITTEN[kind](["", "one", " \n\t", "two", ""], "text"))) == (["one", "two"], 3)


@pytest.mark.parametrize(("name", "content"), [
    ("a.jsonl", lines([{"text": None}, {"text": "one"}, {"text": None}])),
    ("a.json", json.dumps([{"text": None}, {"text": "one"}, {"text": None}]).encode()),
    ("a.json", json.dumps([None, "one", None]).encode()), ("a.parquet", parquet([None, "one", None])),
    ("b.parquet", parquet([None, "one", None], kind=pyarrow.dictionary(pyarrow.int32(), pyarrow.string()))),
    ("c.parquet", parquet([None, "one", None], kind=pyarrow.large_string()))])
def test_null_rows_are_passed_over_and_counted(file, name, content):
    assert read(file(name, content)) == (["one"], 2)


@pytest.mark.parametrize("content", [
    json.dumps(DOCUMENTS), json.dumps({"text": DOCUMENTS, "id": list(range(len(DOCUMENTS)))}),
    table(DOCUMENTS).to_json(), table(DOCUMENTS).to_json(orient="records", indent=2)])
def test_json_is_an_array_or_an_object_of_columns(file, content):
    assert read(file("a.json", content)).documents == DOCUMENTS


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r"])
def test_a_plain_text_is_cut_at_blank_lines(file, line_break, packing):
    content = "\n\nOne line.\nAnd another.\n\nSecond, naïve.\n \t\n\n\nThird\n".replace("\n", line_break).encode()
    for kind in (".txt", ".md"):
        path = file(f"a{kind}{packing}", PACKED[packing](b"\xef\xbb\xbf" + content))  # a byte order mark is no text
        assert read(path) == (["One line.\nAnd another.", "Second, naïve.", "Third"], 0)


@pytest.mark.parametrize("suffix", ["jsonl", "ndjson"])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_jsonl_has_a_document_a_line_whatever_characters_it_holds(file, suffix, ascii_only):
    # The last four count as line breaks to str.splitlines, and JSON lets three of them stand unescaped in a string
    documents = ["one\ntwo\n\nthree", "naïve 🎉", "a\u2028b", "a\u2029b", "a\u0085b", "a\x1cb", "\x00"]
    rows = [json.dumps({"text": document, "id": k}, ensure_ascii=ascii_only) for k, document in enumerate(documents)]
    assert read(file(f"a.{suffix}", "\r\n\n".join(rows) + "\n")).documents == documents


def test_a_cell_may_be_longer_than_the_csv_module_takes(file):
    limit = csv.field_size_limit()
    long = "x" * (2 * limit)
    assert read(file("a.csv", f"text,id\n{long},1\n")).documents == [long] and csv.field_size_limit() == limit


def test_a_blank_line_of_a_table_is_a_row_where_there_is_one_column_alone(file):
    assert read(file("a.csv", "text\none\n\ntwo\n")) == (["one", "two"], 1)
    assert read(file("a.csv", "text,id\none,1\n\ntwo,2\n")) == (["one", "two"], 0)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv", "a.txt.gz", "a.txt.zst"])
def test_an_empty_file_has_no_documents(file, name):
    assert read(file(name, "")) == ([], 0)


# What is refused


READABLE = r"Readable are \.txt and \.md .*\.jsonl, \.ndjson, \.json, \.csv, \.tsv and \.parquet, each also with \.gz"


@pytest.mark.parametrize("name", ["a.xml", "a.html", "a.rst", "a.zip", "a.txt.xz", "a.jsonl.bz2", "a.tar.gz", "a.gz",
                                  "a", "a.TXT.zip", "a.xlsx", "a.txt.bak", "a.arrow", "jsonl", ".txt"])
def test_an_unknown_suffix_is_refused_with_those_that_are_read(file, name):
    with pytest.raises(ValueError, match=rf"^{re.escape(name)} cannot be read: .*{READABLE}"):
        read(file(name, "text\n\ntext"))


def test_a_missing_file_or_a_folder_is_an_error_that_says_what_a_text_may_be(tmp_path):
    for path in (tmp_path / "no.txt", tmp_path):
        with pytest.raises(FileNotFoundError, match=rf"no text file .*{READABLE}.*docstrings.*code.*readmes.*hub:"):
            read(str(path))
    with pytest.raises(FileNotFoundError, match=f"that is a folder.* hub:{tmp_path} reads all the files of this fold"):
        read(tmp_path)
    for text in ("words " * 1000, "a\0b"):  # no names of files
        with pytest.raises(FileNotFoundError, match="no text file"):
            read(text)


@pytest.mark.parametrize(("asked", "told"), [
    ("held_outt.jsonl", "held_out.jsonl"), ("held-out.txt", "held_out.jsonl"), ("docstring", "docstrings"),
    ("readme", "readmes"), ("texst/a.txt", "texts")])
def test_a_path_that_is_mistyped_is_told_those_like_it(tmp_path, file, asked, told):
    file("held_out.jsonl", '{"text": "a"}')
    (tmp_path / "texts").mkdir()
    with pytest.raises(FileNotFoundError, match=rf"no text file .* Did you mean (\S*/)?{told}\?"):
        read(tmp_path / asked)
    with pytest.raises(FileNotFoundError) as error:
        read(tmp_path / "quite" / "elsewhere.txt")
    assert "Did you mean" not in str(error.value)


def test_a_file_whose_name_is_no_text_is_refused(tmp_path):
    path = tmp_path / os.fsdecode(b"na\xefve.txt")
    path.write_text("text")
    with pytest.raises(ValueError, match=r"name of the file '.*na\\\\udcefve.txt' is not UTF-8.*rename") as error:
        read(path)
    str(error.value).encode()
    with pytest.raises(FileNotFoundError, match=r"na\\\\udcef.txt") as error:
        read(tmp_path / os.fsdecode(b"na\xef.txt"))
    str(error.value).encode()


ZIP = io.BytesIO()
with zipfile.ZipFile(ZIP, "w") as archive:
    archive.writestr("a.txt", "text")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt.gz"])
@pytest.mark.parametrize(("content", "form"), [
    (gzip.compress(b"text"), r"gzip \(\.gz\)"), (PACKED[".zst"](b"text"), r"Zstandard \(\.zst\)"),
    (parquet(["one"]), r"Parquet \(\.parquet\)"), (ZIP.getvalue(), "a ZIP archive"), (bz2.compress(b"text"), "bzip2"),
    (lzma.compress(b"text"), "xz"), ("naïve".encode("utf-16"), "UTF-16"), (b"%PDF-1.7 text", "PDF"),
    ("text".encode("utf-16-le"), "it holds NUL characters"), ("naïve".encode("latin-1"), "can't decode byte 0xef"),
    (bytes(range(256)), "can't decode byte 0x80"), (b"a\xed\xa0\x80b", "can't decode byte 0xed"),
    (b"{\\rtf1\\ansi one\\par two}", "RTF"), (b"%!PS-Adobe-3.0\n\n(one) show", "PostScript")],
    ids=["gzip", "zst", "parquet", "zip", "bz2", "xz", "utf-16", "pdf", "utf-16 bare", "latin-1", "bytes", "surrogate",
         "rtf", "ps"])
def test_what_is_no_text_is_refused_whatever_its_name(file, name, content, form):
    with pytest.raises(ValueError, match=rf"{name} is not UTF-8 text: .*{form}"):
        read(file(name, gzip.compress(content) if name.endswith(".gz") else content))


def test_a_file_far_below_is_read_however_long_its_path_is(tmp_path):
    folder = tmp_path.joinpath(*["a folder of a long name " * 3] * 4)
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text("one\n\ntwo")
    assert len(str(folder)) > 250 and read(folder / "a.txt").documents == ["one", "two"]


@pytest.mark.parametrize("content", [b"", b"PAR1", parquet(DOCUMENTS)[:-9], b"text\n\ntext", gzip.compress(b"text")],
                         ids=["empty", "its beginning", "cut off", "text", "gzip"])
def test_what_is_no_whole_parquet_file_is_refused(file, content):
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read as Parquet: cut off"):
        read(file("a.parquet", content))


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_a_compressed_file_that_is_cut_off_or_none_is_refused(file, packing):
    whole = PACKED[packing](b"some text\n\n" * 2000)
    for content in (whole[:-1], whole[: len(whole) // 2], whole[:3], b"plain text", whole + b"rubbish"):
        for kind in (".txt", ".parquet"):
            with pytest.raises(ValueError, match=rf"a{kind}{packing} cannot be unpacked: cut off, damaged, or no"):
                read(file(f"a{kind}{packing}", content))
    assert len(read(file(f"a.txt{packing}", whole + whole)).documents) == 4000  # two in a row are one


@pytest.mark.parametrize(("name", "content", "told"), [
    ("a.jsonl", "[\n1\n]", "holds one JSON array, where a line should hold an object: name it .json"),
    ("a.jsonl", '[{"text": "a"}, {"text": "b"}]', "holds one JSON array"),
    ("a.json", '{"text": "a"}\n{"text": "b"}\n', "One JSON value a line? Name it .jsonl"),
    ("a.json", '["a", ', "a.json is not JSON"), ("a.json", "text", "a.json is not JSON"),
    ("a.json", "[" * 100_000, "a.json is not JSON"),
    ("a.json", '{"text": "a"}', "of which the documents cannot be told: expected an array of objects"),
    ("a.json", '{"text": ["a", "b"], "id": [1]}', "of which the documents cannot be told"),
    ("a.json", '{"text": ["a"], "version": 1}', "of which the documents cannot be told"),
    ("a.json", '{"text": {"0": "a", "1": "b"}, "id": {"1": 1, "2": 2}}', "of which the documents cannot be told"),
    ("a.json", "5", "of which the documents cannot be told"), ("a.json", "{}", "of which the documents cannot be told"),
    ("a.txt", '{"text": "a"}\n{"text": "b"}\n', "holds JSON lines: name it .jsonl"),
    ("a.txt", '{"text":\n"a"}', "holds JSON: name it .json"), ("a.txt", '["a",\n"b"]', "holds JSON: name it .json"),
    ("a.txt", "\n<?xml version='1.0'?>\n<a/>", "holds markup"), ("a.txt", "<!DOCTYPE html>\n<p>a", "holds markup"),
    ("a.txt", "<HTML>\n\n<p>a", "holds markup")])
def test_a_text_that_is_of_another_form_than_its_name_says_is_refused(file, name, content, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        read(file(name, content))


@pytest.mark.parametrize("content", ["[1] first\n\n[2] second", "{a} is a set\n\n{b}", "<p> is a tag\n\nand so on"])
def test_a_plain_text_may_begin_like_another_form(file, content):
    assert read(file("a.txt", content)).documents == content.split("\n\n")


# Rows


@pytest.mark.parametrize("line", ["{not json", '{"other": "text"}', "[1, 2]", '"text"', "3", '{"text": 5}',
                                  '{"text": ["a"]}', '{"text": true}', "null", '{"text": "a"} {"text": "b"}'])
def test_a_line_that_is_no_document_is_an_error_that_names_it(file, line):
    path = file("a.jsonl", f'{{"text": "fine"}}\n\n{line}\n{{"text": "fine"}}\n')
    with pytest.raises(ValueError, match=r'a\.jsonl, line 3: expected a JSON object with a field "text"'):
        read(path)


@pytest.mark.parametrize(("content", "got"), [
    ('[{"text": "a"}, {"text": 5}]', "that holds a text, got int 5"),
    ('[{"text": "a"}, {"text": ["b"]}]', r"that holds a text, got list \['b'\]"), ('["a", 5]', "got int 5"),
    ('["a", ["b"]]', r"got list \['b'\]"), ('[{"text": "a"}, {"body": "b", "id": 1}]', "got the fields body, id: name"),
    ('{"text": ["a", 5], "id": [1, 2]}', "that holds a text, got int 5")])
def test_a_row_that_is_no_document_is_an_error_that_names_it(file, content, got):
    with pytest.raises(ValueError, match=rf'^a\.json, row 2: expected a JSON object with a field "text".*{got}'):
        read(file("a.json", content))


@pytest.mark.parametrize(("values", "kind", "row", "got"), [
    ([1, 2], None, 1, "int 1"), ([None, ["a"]], None, 2, r"list \['a'\]"), ([b"a"], None, 1, "bytes b'a'"),
    ([*[None] * 70_000, {"a": 1}], None, 70_001, r"dict \{'a': 1\}"), ([None, 0.5], None, 2, "float 0.5")],
    ids=["numbers", "list", "bytes", "far down", "float"])
def test_a_parquet_row_that_is_no_text_is_an_error_that_names_it(file, values, kind, row, got):
    with pytest.raises(ValueError, match=rf'^a\.parquet, row {row}: expected a row with a field "text" that .*{got}'):
        read(file("a.parquet", parquet(values, kind=kind)))


@pytest.mark.parametrize(("kind", "place"), [(".jsonl", ", line 1"), (".json", ", row 1"), (".csv", ""), (".tsv", ""),
                                             (".parquet", "")])
def test_a_wrong_field_is_an_error_with_the_fields_there_are(file, kind, place):
    path = file(f"a{kind}", WRITTEN[kind](["one", "two"], "body"))
    with pytest.raises(ValueError, match=rf"^a{kind}{place}: expected .*\"text\".*, got .*body.*--field"):
        read(path)


def test_the_fields_of_a_table_without_a_header_are_shown_in_short(file):
    path = file("a.csv", f"{'the first document ' * 9},{','.join('abcdefghijklmnop')}\nsecond{',' * 16}\n")
    with pytest.raises(ValueError, match=r"expected a first line that names .*got the fields the first") as error:
        read(path)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(("content", "told"), [
    ("id,text,text\n1,a,b\n", "names the columns, \"text\" among them, got it twice"),
    ("id;text\n1;a\n", "got the fields id;text"),
    ("text,id\na,1\nb, and c,2\n",
     "row 2: the first line names 2 columns, the row has 3 cells. A cell that holds the separator"),
    ("text,id\na,1\nb\n", "row 2: the first line names 2 columns, the row has 1 cells"),
    ('text,id\na,1\n"b" c,2\n', "row 2 (line 3): "),
    ('text,id\na,1\n"b,2\n', "row 2 (line 3): unexpected end of data")])
def test_a_table_whose_rows_do_not_fit_its_header_is_refused(file, content, told):
    with pytest.raises(ValueError, match=f"^a.csv.*{re.escape(told)}"):
        read(file("a.csv", content))
    with pytest.raises(ValueError, match=f"^a.tsv.*{re.escape(told)}"):
        read(file("a.tsv", content.replace(",", "\t").replace("b\t and c", "b\tand c")))


@pytest.mark.parametrize(("content", "rows"), [
    ('id\ttext\n1\t"Hello he said\n2\tb\n3\tc"\n4\td\n', "2 rows, .* or 4"),
    ('id\ttext\n1\t"Well\n2\tb\n3\t" he said\n4\td"\n', None),
    ('text\tid\n"Hello there\t1\nb\t2\nshe said"\t3\nd\t4\n', "2 rows, .* or 4"),
    ('text\n"Hello there\nb\nshe said"\nd\n', "2 rows, .* or 4"), ('text\n"a\r\n\r\nb"\r\n', "1 rows, .* or 2")])
def test_quotes_in_a_tsv_that_may_be_letters_or_hold_a_cell_together_are_refused(file, content, rows):
    with pytest.raises(ValueError, match=rf"a\.tsv can be read in two ways: {rows}" if rows else r"a\.tsv, row 1"):
        read(file("a.tsv", content))
    if rows:  # in a .csv quotes have one meaning
        table = pd.read_csv(io.StringIO(content.replace("\t", ","), newline=""))
        assert read(file("a.csv", content.replace("\t", ","))).documents == table.text.tolist()


@pytest.mark.parametrize("content", [
    'id\ttext\n1\t"x\ty\nz"\n2\tb\n', 'id\ttext\n1\t"x\ny"\n', 'id\ttext\n1\t"x\ty"\n2\t"z"\n', 'text\n"a ""b"""\nc\n',
    'id\ttext\n1\t"one ""x""\n\n2\ttwo\t"\n3\tc\n'])
def test_a_cell_of_a_tsv_in_quotes_is_read_as_csv_and_pandas_read_it(file, content):
    by_csv = [row["text"] for row in csv.DictReader(io.StringIO(content, newline=""), delimiter="\t")]
    assert read(file("a.tsv", content)).documents == by_csv
    assert by_csv == pd.read_csv(io.StringIO(content, newline=""), sep="\t").text.tolist()


def test_two_columns_of_one_name_are_refused_in_parquet_too(file):
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, ["text", "text"]), sink)
    with pytest.raises(ValueError, match=r'a\.parquet: expected a column "text", got it twice'):
        read(file("a.parquet", sink.getvalue()))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_key_that_stands_in_an_object_twice_is_refused(file, name):
    row = '{"text": "a", "text": "b"}'
    with pytest.raises(ValueError, match="'text' stands in one object twice"):
        read(file(name, row if name == "a.jsonl" else f"[{row}]"))


@pytest.mark.parametrize(("name", "place"), [("a.jsonl", "line 2"), ("a.json", "row 2")])
def test_half_of_a_surrogate_pair_is_refused_with_its_place(file, name, place):
    rows = ['{"text": "fine \\ud83c\\udf89"}', '{"text": "abc\\ud83c"}']
    content = "\n".join(rows) if name == "a.jsonl" else f"[{', '.join(rows)}]"
    with pytest.raises(ValueError, match=rf"{name}, {place} holds half of a surrogate pair \(U\+D83C\) at character 4"):
        read(file(name, content))


def test_parquet_that_is_not_utf_8_is_refused(file):
    broken = pyarrow.Array.from_buffers(pyarrow.string(), 1, [None, pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0"),
                                                             pyarrow.py_buffer(b"\xff\xfe")])
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read as Parquet: .*not UTF-8"):
        read(file("a.parquet", parquet(broken)))


def test_rows_of_any_source_are_counted_and_named_alike():
    rows = Rows("owner/name", "body")
    assert rows.documents([(1, None), (2, "a"), (3, " ")]) == (["a"], 2)
    with pytest.raises(ValueError, match=r'owner/name, row 7: expected a row with a field "body" that holds a text'):
        rows.documents([(6, "a"), (7, 0)])
    with pytest.raises(ValueError, match=r'owner/name, row 1: .*"body", got the fields text: name the one .*hub:'):
        rows.value(1, {"text": "a"})

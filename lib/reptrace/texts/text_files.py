"""Files of text -> documents. The suffix says how a file is read; what cannot be read for sure is refused by name.

Text that is measured together with its syntax (commas, tags, braces) gives numbers that look like any others.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from reptrace.support.arguments import near, near_folders, shown
from reptrace.texts.given import check_characters
from reptrace.texts.text_forms import loaded, other_form

FIELD = "text"
READABLE = ("Readable are .txt and .md (blank lines between documents), .jsonl, .ndjson, .json, .csv, .tsv and "
            ".parquet, each also with .gz or .zst")
# First bytes of files that are no text, whatever their suffix.
SIGNATURES = {b"\x1f\x8b": "gzip (.gz)", b"\x28\xb5\x2f\xfd": "Zstandard (.zst)", b"PAR1": "Parquet (.parquet)",
              b"PK\x03\x04": "a ZIP archive", b"BZh91AY&SY": "bzip2", b"\xfd7zXZ\x00": "xz", b"ARROW1": "Arrow",
              b"%PDF-": "PDF", b"{\\rtf": "RTF", b"%!PS": "PostScript", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
SHOWN_FIELDS, SHOWN_LETTERS = 12, 40  # of the names of fields, in a message


class Documents(NamedTuple):
    """Texts in the order of their rows, and how many rows had none."""

    documents: list[str]
    passed_over: int


@dataclass(frozen=True)
class Rows:
    """Rows, each with a text in one field, and how to speak of them: "NAME, row 3: expected a row with a field ..."."""

    name: str
    field: str = FIELD
    unit: str = "row"
    form: str = "a row"

    def value(self, number: int, row):
        """What stands in the field of a row; ValueError with the fields there are where it has no such field."""
        if not isinstance(row, Mapping):
            raise self.wrong(number, shown(row))
        if self.field not in row:
            raise self.wrong(number, self.other_fields(row))
        return row[self.field]

    def documents(self, values: Iterable[tuple[int, object]]) -> Documents:
        """Texts of (number, value) pairs as they stand; null and blank ones are passed over and counted."""
        kept, passed_over = [], 0
        for number, value in values:
            if value is None or (isinstance(value, str) and not value.strip()):
                passed_over += 1
            elif isinstance(value, str):
                check_characters(value, f"the text in {self.where(number)}")
                kept.append(value)
            else:
                raise self.wrong(number, shown(value), " that holds a text")
        return Documents(kept, passed_over)

    def where(self, number: int) -> str:
        return f"{self.name}, {self.unit} {number}"

    def wrong(self, number: int, got: str, need: str = "") -> ValueError:
        return ValueError(f'{self.where(number)}: expected {self.form} with a field "{self.field}"{need}, got {got}.')

    def other_fields(self, fields: Iterable) -> str:
        """The fields that there are, with the advice to name one of them."""
        names = [str(name)[:SHOWN_LETTERS] for name in fields]
        more = ", ..." if len(names) > SHOWN_FIELDS else ""
        return (f"the fields {', '.join(names[:SHOWN_FIELDS]) or '(none)'}{more}: name the one that holds the text "
                "(field=, --field; of a hub: source the last part, hub:REPOSITORY:CONFIG:SPLIT:FIELD)")


def read(path: str | Path, field: str = FIELD) -> Documents:
    """Documents of a file, by its suffix in any case; each kind may be compressed (.gz, .zst).

    Parameters
    ----------
    path : str or Path
        .txt, .md: blank lines stand between documents, which lose the white space around them. All others are tables, a
        document a row, as it stands: .jsonl or .ndjson (an object a line); .json (an array of objects or of strings, or
        an object of columns); .csv or .tsv (the first line names the columns; no cell is taken for a number or for
        missing); .parquet.
    field : str, default "text"
        Which field of a row holds the text; a plain text, or an array of strings, has none.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        A folder; another suffix; content that is not what the suffix says, not UTF-8, or cut off; a row without the
        field or with something else than text in it. The message names file and row or line (from 1).
    """
    path = Path(path)
    _check_there(path)
    kind, packing = kind_of(path)
    if kind == ".parquet":
        return _parquet(path, packing, field)
    return READERS[kind](path.name, _decoded(path.name, _unpacked(path, packing)), field)


def _check_there(path: Path) -> None:
    try:
        folder, file, beside = path.is_dir(), path.is_file(), path.parent.is_dir()
    except OSError:  # a name that no file can have: the text itself, for instance
        folder = file = beside = False
    name = shown_name(path)
    if not file:
        what, hint = "", ""
        if folder:
            what = ": that is a folder"
            hint = f" hub:{name} reads all the files of this folder, in their order; or pass one of them."
        elif beside:
            files = [shown_name(each.name) for each in path.parent.iterdir() if each.is_file()]
            hint = near(path.name, ["docstrings", "code", "readmes", "catalogues", *files])
        elif len(name) < 200:
            hint = near_folders(path)
        raise FileNotFoundError(f"there is no text file {name!r}{what}. {READABLE}; a text may also be \"docstrings\", "
                                f"\"code\", \"readmes\", \"catalogues\" or \"hub:REPOSITORY:CONFIG\".{hint}")
    if not _is_utf8(str(path)):
        raise ValueError(f"the name of the file {name!r} is not UTF-8, so no table can hold it: rename the file.")


def shown_name(path: str | Path) -> str:
    """A path for a message: in short, and with what stands for no character in it written out."""
    name = str(path).encode(errors="backslashreplace").decode()
    return name if len(name) <= 200 else f"{name[:200]}..."


def _is_utf8(name: str) -> bool:
    """Whether a name holds no bytes that Python could not take for characters."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def kind_of(path: Path) -> tuple[str, str]:
    """The suffix that says how to read a file, and that of its compression or ""; both in small letters."""
    name = path.name.lower()
    packing = next((suffix for suffix in PACKINGS if name.endswith(suffix)), "")
    kind = Path(name.removesuffix(packing)).suffix
    if kind != ".parquet" and kind not in READERS:
        named = f"the suffix {kind + packing!r} is" if kind or packing else "it has no suffix, so its form is"
        raise ValueError(f"{path.name} cannot be read: {named} not known. {READABLE}. Plain text whose documents stand "
                         "between blank lines can be named .txt; unpack an archive, and take the text out of markup, "
                         "first.")
    return kind, packing


def _unpacked(path: Path, packing: str) -> bytes:
    content = path.read_bytes()
    try:
        return PACKINGS[packing](content) if packing else content
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f"{path.name} cannot be unpacked: cut off, damaged, or no {packing} file at all "
                         f"({error}).") from error


def _unzstd(content: bytes) -> bytes:
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.BufferReader(content), "zstd").read() if content else b""


def _decoded(name: str, content: bytes) -> str:
    """Text of a file that is one; ValueError for binary content and other encodings."""
    form = next((form for start, form in SIGNATURES.items() if content.startswith(start)), None)
    try:
        text = content.decode("utf-8-sig")
        why = f"its first bytes are those of {form}" if form else "it holds NUL characters" if "\0" in text else None
    except UnicodeDecodeError as error:
        why = f"its first bytes are those of {form}" if form else str(error)
    if why:
        raise ValueError(f"{name} is not UTF-8 text: {why}. Convert it, or name it as what it is. {READABLE}.")
    return text


def _plain(name: str, text: str, field: str) -> Documents:
    text = _line_ends(text)
    other = other_form(text, markdown=kind_of(Path(name))[0] == ".md")
    if other:
        raise ValueError(f"{name} holds {other} (in a plain text the syntax would be measured with the words); or, "
                         "where it is meant as it stands, put it into .jsonl.")
    documents = re.split(r"\n\s*\n", text)
    return Documents([document.strip() for document in documents if document.strip()], 0)


def _json_lines(name: str, text: str, field: str) -> Documents:
    rows = Rows(name, field, "line", "a JSON object")
    lines = _line_ends(text).split("\n")  # not splitlines: JSON strings may hold U+2028 and its like

    def values() -> Iterator[tuple[int, object]]:
        first = True
        for number, line in enumerate(lines, 1):
            if line.strip():
                if first and line.lstrip().startswith("[") and isinstance(loaded(text), list):
                    raise ValueError(f"{name} holds one JSON array, where a line should hold an object: name it .json.")
                yield number, rows.value(number, _parsed(rows, number, line))
                first = False

    return rows.documents(values())


def _whole_json(name: str, text: str, field: str) -> Documents:
    rows = Rows(name, field, "row", "a JSON object")
    if not text.strip():
        return Documents([], 0)
    try:
        content = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        hint = " One JSON value a line? Name it .jsonl." if "Extra data" in str(error) else ""
        raise ValueError(f"{name} is not JSON ({error}).{hint}") from error
    if isinstance(content, list):
        return rows.documents((number, row if row is None or isinstance(row, str) else rows.value(number, row))
                              for number, row in enumerate(content, 1))
    if isinstance(content, dict) and (table := _columns(content)) is not None:
        if field not in table:
            raise ValueError(f'{name}: expected columns with the field "{field}", got {rows.other_fields(table)}.')
        return rows.documents(enumerate(table[field], 1))
    raise ValueError(f"{name} holds {shown(content)}, of which the documents cannot be told: expected an array of "
                     'objects, an array of strings, or an object of columns of one length ({"text": ["...", "..."]}).')


def _columns(content: dict) -> dict[str, list] | None:
    """Columns by name, from lists of one length or, as pandas writes them, objects with the same keys; else None."""
    columns = list(content.values())
    if columns and all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
        return content
    if columns and all(isinstance(column, dict) and list(column) == list(columns[0]) for column in columns):
        return {name: list(column.values()) for name, column in content.items()}
    return None


def _comma_separated(name: str, text: str, field: str) -> Documents:
    rows = Rows(name, field)
    with _long_cells():
        return rows.documents(_cells(rows, csv.reader(io.StringIO(text, newline=""), strict=True)))


def _tab_separated(name: str, text: str, field: str) -> Documents:
    """As pandas writes it, a cell with a tab or a line break in double quotes; but others write quotes as they stand.

    ValueError where both readings give a table, of other rows.
    """
    rows = Rows(name, field)
    with _long_cells():
        found = rows.documents(_cells(rows, csv.reader(io.StringIO(text, newline=""), "excel-tab", strict=True)))
        if '"' in text:
            quoted, plain = (list(filter(None, csv.reader(io.StringIO(text, newline=""), "excel-tab", quoting=quoting)))
                             for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE))
            if len(quoted) != len(plain) and all(len(cells) == len(quoted[0]) for cells in plain):
                raise ValueError(f"{name} can be read in two ways: {len(quoted) - 1} rows, if double quotes hold a "
                                 f"cell's line breaks together, or {len(plain) - 1}, if they are letters like others. "
                                 "Write it as .csv or .jsonl.")
    return found


def _cells(rows: Rows, reader) -> Iterator[tuple[int, str]]:
    """The field's cell of every row, as it stands; ValueError where a row does not fit the header."""
    number = 0
    try:
        header = next(reader, [])
        if header and header.count(rows.field) != 1:
            found = "it twice" if rows.field in header else rows.other_fields(header)
            raise ValueError(f'{rows.name}: expected a first line that names the columns, "{rows.field}" among them, '
                             f"got {found}.")
        for cells in reader:
            cells = cells or [""] * (len(header) == 1)  # a blank line is an empty cell where there is one column
            if cells:
                number += 1
                if len(cells) != len(header):
                    raise ValueError(f"{rows.where(number)}: the first line names {len(header)} columns, the row has "
                                     f"{len(cells)} cells. A cell that holds the separator or a line break must stand "
                                     "in double quotes.")
                yield number, cells[header.index(rows.field)]
    except csv.Error as error:
        raise ValueError(f"{rows.where(number + 1)} (line {reader.line_num}): {error}. A cell with a double quote must "
                         "stand in double quotes, and have it twice.") from error


@contextmanager
def _long_cells() -> Iterator[None]:
    """csv without its limit of 131,072 characters a cell."""
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _parquet(path: Path, packing: str, field: str) -> Documents:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    rows = Rows(path.name, field)

    def values(file) -> Iterator[tuple[int, object]]:
        number = 0
        for batch in file.iter_batches(columns=[field]):
            yield from enumerate(batch.column(0).to_pylist(), number + 1)
            number += len(batch)

    source = pyarrow.BufferReader(_unpacked(path, packing)) if packing else path
    try:
        with ParquetFile(source) as file:
            names = file.schema_arrow.names
            if names.count(field) == 1:
                return rows.documents(values(file))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name} cannot be read as Parquet: cut off, damaged, not UTF-8, or another form "
                         f"({error}).") from error
    found = "it twice" if field in names else rows.other_fields(names)
    raise ValueError(f'{path.name}: expected a column "{field}", got {found}.')


def _line_ends(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _parsed(rows: Rows, number: int, line: str):
    try:
        return json.loads(line, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise rows.wrong(number, f"{shown(line)}, which is not JSON ({error})") from error


def _object(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in found if names.count(name) > 1)!r} stands in one object twice")
    return found


PACKINGS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.decompress, ".zst": _unzstd}
READERS: dict[str, Callable[[str, str, str], Documents]] = {
    ".txt": _plain, ".md": _plain, ".jsonl": _json_lines, ".ndjson": _json_lines, ".json": _whole_json,
    ".csv": _comma_separated, ".tsv": _tab_separated}

"""Records of a data file, each with its line number: JSON lines, JSON, CSV, TSV, Parquet."""

from __future__ import annotations

import csv
import itertools
import json
import os
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from perdure.errors import DataError
from perdure.tasks.chats import is_list_of_messages


@dataclass(frozen=True)
class Row:
    """One record and its place, as "file, line 3"."""

    where: str
    fields: dict[str, Any]

    @property
    def names(self) -> str:
        """Names of the fields, quoted, for messages."""
        return ", ".join(map(repr, self.fields))


class Places:
    """Where many records were read, in a number each: "file, line " once, and 3, 4, 5."""

    def __init__(self) -> None:
        self._begin = ""
        self._numbers = array("q")

    def add(self, where: str) -> None:
        """Add the place of the next record."""
        self._begin, _, number = where.rpartition(" ")
        self._numbers.append(int(number))

    def of(self, i: int) -> str:
        """The place of record `i`."""
        return f"{self._begin} {self._numbers[i]}"

    def without(self, some: Collection[int]) -> Places:
        """The places of the records but those at `some`."""
        left = Places()
        left._begin = self._begin
        left._numbers = array("q", (number for i, number in enumerate(self._numbers) if i not in some))
        return left


def read_rows(
    path: Path, encoding: str = "utf-8", relative_to: str = "the task's YAML file", bad: list[str] | None = None
) -> list[Row]:
    """All records of the file; see `each_row`."""
    return list(each_row(path, encoding, relative_to, bad))


def each_row(
    path: Path, encoding: str = "utf-8", relative_to: str = "the task's YAML file", bad: list[str] | None = None
) -> Iterator[Row]:
    """The records of the file one after another; of a .json file alone, all are held at once.

    Args:
        relative_to: what relative paths are resolved against, for the message about a missing file.
        bad: gets a message for each line that cannot be read, which is left out; None: the first is an error.

    Raises:
        DataError: missing, empty, of an unknown type, or malformed; names the file and the line, and what to do.
    """
    if not os.path.isfile(path):
        problem = "is a folder, not a file" if os.path.isdir(path) else "does not exist"
        raise DataError(f"{path} {problem}; give the path of a data file, relative to {relative_to}.")
    if path.suffix.lower() not in KINDS:
        raise DataError(f"{path}: unknown file type; known: {', '.join(KINDS)}.")
    if not path.stat().st_size:
        raise DataError(f"{path} is empty.")
    found = False
    for row in KINDS[path.suffix.lower()](path, encoding, bad):
        found = True
        yield row
    if not found and not bad:
        raise DataError(f"{path} holds no records.")


def set_apart(error: DataError, bad: list[str] | None) -> None:
    """Add what is wrong with a record to `bad`; without such a list it is raised."""
    if bad is None:
        raise error
    bad.append(str(error))


def _json_lines(path: Path, encoding: str, bad: list[str] | None) -> Iterator[Row]:
    with path.open("rb") as file:
        yield from each_json_line(file, str(path), encoding, bad)


def each_json_line(file: BinaryIO, name: str, encoding: str = "utf-8", bad: list[str] | None = None) -> Iterator[Row]:
    """The records of JSON lines; `name` is what they are called in messages. For `bad` and errors see `each_row`."""
    for number, line in enumerate(_lines(file, name, encoding), start=1):
        if not line.strip():
            continue
        try:
            row = _row(f"{name}, line {number}", _parsed(name, line.removesuffix("\n"), number))
        except DataError as error:
            set_apart(error, bad)
        else:
            yield row


def _json(path: Path, encoding: str, bad: list[str] | None) -> Iterator[Row]:
    """A list of objects, or an object with such a list under 'data'."""
    content = _parsed(str(path), _text(path.read_bytes(), str(path), encoding))
    if isinstance(content, dict):
        content = content.get("data")
    if not isinstance(content, list):
        raise DataError(f"{path} must hold a list of records, or an object with such a list under 'data'.")
    for i, item in enumerate(content):
        try:
            row = _row(f"{path}, record {i}", item)
        except DataError as error:
            set_apart(error, bad)
        else:
            yield row


def _table(path: Path, encoding: str, bad: list[str] | None) -> Iterator[Row]:
    """A table with a header line; tabs separate fields in .tsv, commas otherwise."""
    with path.open("rb") as file:
        yield from _cells(path, (line.removesuffix("\n") + "\n" for line in _lines(file, str(path), encoding)), bad)


def _cells(path: Path, lines: Iterable[str], bad: list[str] | None) -> Iterator[Row]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] = []
    while (cells := _next_cells(path, reader)) is not None:
        where = f"{path}, line {reader.line_num}"
        if not cells:
            continue
        if not header:
            header = _header(path, cells, delimiter)
        elif len(cells) != len(header):
            problem = f"{where}: {len(cells)} cells, the header has {len(header)}: quote the text."
            set_apart(DataError(problem), bad)
        else:
            yield Row(where, dict(zip(header, cells, strict=True)))


def _next_cells(path: Path, reader: Any) -> list[str] | None:
    """The cells of the next record, of any length; None at the end."""
    limit = csv.field_size_limit(1 << 30)
    try:
        return next(reader, None)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not a valid table ({error}).") from None
    finally:
        csv.field_size_limit(limit)


def _parquet(path: Path, _encoding: str, _bad: list[str] | None) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    number = itertools.count()
    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=1000):
            for record in batch.to_pylist():
                yield Row(f"{path}, row {next(number)}", record)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a valid Parquet file ({str(error).splitlines()[0]}).") from None


KINDS: dict[str, Callable[[Path, str, list[str] | None], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _table,
    ".tsv": _table,
    ".parquet": _parquet,
}

SEPARATORS = {"\t": ".tsv", ";": None, ",": ".csv"}
"""Field separator of a table -> the file name's suffix under which it is supported, if any."""


def _lines(file: BinaryIO, name: str, encoding: str) -> Iterator[str]:
    """The lines of a text file, decoded one by one where a line's end is the byte it is in ASCII."""
    try:
        one_by_one = "a\n".encode(encoding) == b"a\n"
    except LookupError:
        one_by_one = False
    for number, content in enumerate(file if one_by_one else [file.read()], start=1):
        text = _text(content, name, encoding, number)
        yield from [text] if one_by_one else text.split("\n")


def _text(content: bytes, path: str, encoding: str, line: int = 1) -> str:
    """The bytes that begin at this line as text."""
    if line == 1 and content.startswith((b"\xff\xfe", b"\xfe\xff")) and not encoding.lower().startswith("utf-16"):
        raise DataError(f"{path} is UTF-16: save it as UTF-8, or set `encoding: utf-16`.")
    try:
        text = content.decode(encoding)
        return text.removeprefix("\ufeff") if line == 1 else text
    except LookupError:
        raise DataError(f"Unknown encoding {encoding!r}; try utf-8, latin-1 or cp1252.") from None
    except UnicodeDecodeError as error:
        if error.encoding != "utf-8":
            raise DataError(f"{path} is not {encoding}: byte {error.start} cannot be decoded.") from None
        line += error.object.count(b"\n", 0, error.start)
        raise DataError(
            f"{path}, line {line}: byte 0x{error.object[error.start]:02x} is not UTF-8. Save the whole file as UTF-8, or set "
            "`encoding` if all of it is in another one (latin-1, cp1252)."
        ) from None


def _parsed(path: str, text: str, line: int = 1) -> Any:
    """The JSON value of `text`, which starts at `line` of the file."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        lines = error.msg == "Extra data" and path.lower().endswith(".json")
        hint = " If there is one object per line, name the file .jsonl." if lines else ""
        where = f"{path}, line {line + error.lineno - 1}"
        raise DataError(f"{where}: not valid JSON ({error.msg}, column {error.colno}).{hint}") from None
    except RecursionError:
        raise DataError(f"{path}, line {line}: nested too deeply.") from None
    except ValueError:  # Python limits the digits of an integer
        raise DataError(f"{path}, line {line}: a number has more digits than can be read. Put it in quotes.") from None


def _row(where: str, value: Any) -> Row:
    if is_list_of_messages(value):
        value = {"messages": value}
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object with fields, found {type(value).__name__}.")
    return Row(where, value)


def _header(path: Path, cells: list[str], delimiter: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    other = next((mark for mark in SEPARATORS if mark != delimiter and len(names) == 1 and mark in names[0]), None)
    if other:
        fix = f"name the file {SEPARATORS[other]}" if SEPARATORS[other] else "save it with commas"
        raise DataError(f"{path}: the header seems to be separated by {other!r}: {fix}.")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{path}: the header names {', '.join(map(repr, twice))} twice.")
    return names

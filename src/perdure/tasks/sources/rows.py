"""Records of a data file, each with its line number: JSON lines, JSON, CSV, TSV, Parquet."""

from __future__ import annotations

import csv
import json
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


def read_rows(
    path: Path, encoding: str = "utf-8", relative_to: str = "the task's YAML file", bad: list[str] | None = None
) -> list[Row]:
    """All records of the file.

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
    rows = KINDS[path.suffix.lower()](path, encoding, bad)
    if not rows and not bad:
        raise DataError(f"{path} holds no records.")
    return rows


def set_apart(error: DataError, bad: list[str] | None) -> None:
    """Add what is wrong with a record to `bad`; without such a list it is raised."""
    if bad is None:
        raise error
    bad.append(str(error))


def _json_lines(path: Path, encoding: str, bad: list[str] | None) -> list[Row]:
    return read_json_lines(path.read_bytes(), str(path), encoding, bad)


def read_json_lines(content: bytes, name: str, encoding: str = "utf-8", bad: list[str] | None = None) -> list[Row]:
    """The records of JSON lines; `name` is what they are called in messages. For `bad` and errors see `read_rows`."""
    rows = []
    lines = deque(_text(content, name, encoding).split("\n"))
    del content  # half of the memory
    for number in range(1, len(lines) + 1):
        line = lines.popleft()  # freed when read
        if not line.strip():
            continue
        try:
            rows.append(_row(f"{name}, line {number}", _parsed(name, line, number)))
        except DataError as error:
            set_apart(error, bad)
    return rows


def _json(path: Path, encoding: str, bad: list[str] | None) -> list[Row]:
    """A list of objects, or an object with such a list under 'data'."""
    content = _parsed(str(path), _decoded(path, encoding))
    if isinstance(content, dict):
        content = content.get("data")
    if not isinstance(content, list):
        raise DataError(f"{path} must hold a list of records, or an object with such a list under 'data'.")
    rows = []
    for i, item in enumerate(content):
        try:
            rows.append(_row(f"{path}, record {i}", item))
        except DataError as error:
            set_apart(error, bad)
    return rows


def _table(path: Path, encoding: str, bad: list[str] | None) -> list[Row]:
    """A table with a header line; tabs separate fields in .tsv, commas otherwise."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    lines = (line + "\n" for line in _decoded(path, encoding).split("\n"))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    rows: list[Row] = []
    header: list[str] = []
    limit = csv.field_size_limit(1 << 30)  # fields of any length
    try:
        for cells in reader:
            where = f"{path}, line {reader.line_num}"
            if not cells:
                continue
            if not header:
                header = _header(path, cells, delimiter)
            elif len(cells) != len(header):
                problem = f"{where}: {len(cells)} cells, the header has {len(header)}: quote the text."
                set_apart(DataError(problem), bad)
            else:
                rows.append(Row(where, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not a valid table ({error}).") from None
    finally:
        csv.field_size_limit(limit)
    return rows


def _parquet(path: Path, _encoding: str, _bad: list[str] | None) -> list[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        records = parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a valid Parquet file ({str(error).splitlines()[0]}).") from None
    return [Row(f"{path}, row {i}", record) for i, record in enumerate(records)]


KINDS: dict[str, Callable[[Path, str, list[str] | None], list[Row]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _table,
    ".tsv": _table,
    ".parquet": _parquet,
}

SEPARATORS = {"\t": ".tsv", ";": None, ",": ".csv"}
"""Field separator of a table -> the file name's suffix under which it is supported, if any."""


def _decoded(path: Path, encoding: str) -> str:
    """The file's text without a byte order mark."""
    return _text(path.read_bytes(), str(path), encoding)


def _text(content: bytes, path: str, encoding: str) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) and not encoding.lower().startswith("utf-16"):
        raise DataError(f"{path} is UTF-16: save it as UTF-8, or set `encoding: utf-16`.")
    try:
        return content.decode(encoding).removeprefix("\ufeff")
    except LookupError:
        raise DataError(f"Unknown encoding {encoding!r}; try utf-8, latin-1 or cp1252.") from None
    except UnicodeDecodeError as error:
        if error.encoding != "utf-8":
            raise DataError(f"{path} is not {encoding}: byte {error.start} cannot be decoded.") from None
        line = error.object.count(b"\n", 0, error.start) + 1
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

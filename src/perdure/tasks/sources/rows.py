"""Records of a data file, each with the line it stands in: JSON lines, JSON, CSV, TSV, Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perdure.errors import DataError


@dataclass(frozen=True)
class Row:
    """One record and where it stands, as "file, line 3"."""

    where: str
    fields: dict[str, Any]


def read_rows(path: Path, encoding: str = "utf-8", relative_to: str = "the task's YAML file") -> list[Row]:
    """All records of the file.

    Args:
        relative_to: what a relative path starts from, for the message about a missing file.

    Raises:
        DataError: missing, empty, of an unknown kind, or malformed; names the file and the line, and what to do.
    """
    if not path.is_file():
        kind = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise DataError(f"{path} {kind}; give the path of a data file, relative to {relative_to}.")
    if path.suffix.lower() not in KINDS:
        raise DataError(f"{path}: unknown kind of file; known are {', '.join(KINDS)}.")
    if not path.stat().st_size:
        raise DataError(f"{path} is empty.")
    rows = KINDS[path.suffix.lower()](path, encoding)
    if not rows:
        raise DataError(f"{path} holds no records.")
    return rows


def _json_lines(path: Path, encoding: str) -> list[Row]:
    rows = []
    for number, line in _lines(path, encoding):
        if line.strip():
            where = f"{path}, line {number}"
            rows.append(Row(where, _object(where, _parsed(where, line))))
    return rows


def _json(path: Path, encoding: str) -> list[Row]:
    """A list of objects, or an object with such a list under 'data'."""
    text = "".join(line for _, line in _lines(path, encoding))
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        hint = " One object a line? Then name the file .jsonl." if error.msg == "Extra data" else ""
        raise DataError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}).{hint}") from None
    except RecursionError:
        raise DataError(f"{path}: nested too deeply.") from None
    if isinstance(content, dict):
        content = content.get("data")
    if not isinstance(content, list):
        raise DataError(f"{path} should hold a list of records, or an object with such a list under 'data'.")
    return [Row(f"{path}, record {i}", _object(f"{path}, record {i}", item)) for i, item in enumerate(content)]


def _table(path: Path, encoding: str) -> list[Row]:
    """A table with a header line; the delimiter is the tab in .tsv, else the comma."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader((line for _, line in _lines(path, encoding)), delimiter=delimiter, strict=True)
    rows: list[Row] = []
    header: list[str] = []
    with _long_fields():
        try:
            for cells in reader:
                where = f"{path}, line {reader.line_num}"
                if not cells:
                    continue
                if not header:
                    header = _header(path, cells, delimiter)
                elif len(cells) != len(header):
                    raise DataError(f"{where}: {len(cells)} cells, the header has {len(header)}: quote the text.")
                else:
                    rows.append(Row(where, dict(zip(header, cells, strict=True))))
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: not a valid table ({error}).") from None
    return rows


def _parquet(path: Path, _encoding: str) -> list[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        records = parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a valid Parquet file ({str(error).splitlines()[0]}).") from None
    return [Row(f"{path}, row {i}", record) for i, record in enumerate(records)]


KINDS: dict[str, Callable[[Path, str], list[Row]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _table,
    ".tsv": _table,
    ".parquet": _parquet,
}


SEPARATORS = {"\t": ".tsv", ";": None, ",": ".csv"}
"""What may separate the fields of a table -> the ending under which it is read so, if any is."""


def _lines(path: Path, encoding: str) -> Iterator[tuple[int, str]]:
    """(number from 1, line with its end), decoded line by line so that a wrong byte is found where it stands."""
    content = path.read_bytes()
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) and not encoding.lower().startswith("utf-16"):
        raise DataError(f"{path} is UTF-16: save it as UTF-8, or set `encoding: utf-16`.")
    try:
        if encoding.lower().replace("_", "-") not in ("utf-8", "utf8"):
            lines = content.decode(encoding).removeprefix("\ufeff").split("\n")
            yield from ((number, line + "\n") for number, line in enumerate(lines, 1))
            return
    except LookupError:
        raise DataError(f"There is no encoding {encoding!r}; try utf-8, latin-1 or cp1252.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not {encoding}: byte {error.start} cannot be read.") from None
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            yield number, line.decode("utf-8") + "\n"
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}, line {number}: byte 0x{line[error.start]:02x} is not UTF-8. Save the whole file as UTF-8, "
                "or set `encoding` if all of it is in another one (latin-1, cp1252)."
            ) from None


def _parsed(where: str, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON ({error.msg}, column {error.colno}).") from None
    except RecursionError:
        raise DataError(f"{where}: nested too deeply.") from None


def _object(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object with fields, found {type(value).__name__}.")
    return value


def _header(path: Path, cells: list[str], delimiter: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    other = next((mark for mark in SEPARATORS if mark != delimiter and len(names) == 1 and mark in names[0]), None)
    if other:
        cure = f"name the file {SEPARATORS[other]}" if SEPARATORS[other] else "save it with commas"
        raise DataError(f"{path}: the fields of the header seem to be separated by {other!r}: {cure}.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path}: the header names {', '.join(map(repr, twice))} twice.")
    return names


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let csv read fields of any length, and set the limit back."""
    limit = csv.field_size_limit(1 << 30)
    try:
        yield
    finally:
        csv.field_size_limit(limit)

"""Atomic writes: to a temporary file, synced, then renamed, so that a crash leaves the old file or the new one."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import RawIOBase
from pathlib import Path
from typing import Any

from perdure.errors import CorruptFile, StoreError
from perdure.files.parsing import parse_json, read_limited

RESTORE = "Restore it from a copy, or run again."


def make_folder(folder: Path) -> None:
    """Create a folder and its parents; an existing one is fine.

    Raises:
        StoreError: a file is in the way, or permission is denied.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"Cannot create folder '{folder}': {error.strerror}. Choose another path.") from error


@contextmanager
def remove_folder_on_refusal(folder: Path, lock: str, made: bool) -> Iterator[None]:
    """If the block raises, remove a folder that was `made` for it and holds nothing but its lock.

    Call it while holding the lock: a process that waits for it finds the file gone and creates another.
    """
    try:
        yield
    except BaseException:
        with suppress(OSError):  # another process wrote to it, or the system keeps open files
            if made and [path.name for path in folder.iterdir()] == [lock]:
                (folder / lock).unlink()
                folder.rmdir()
        raise


@contextmanager
def disk_full_as_error(place: Path, then: str) -> Iterator[None]:
    """Turn a full disk into an error that names the place and the remedy (`then`).

    Raises:
        StoreError: no space left.
    """
    try:
        yield
    except Exception as error:
        if _disk_is_full(error):
            raise StoreError(f"No space left to write '{place}'. {then}") from error
        raise


def _disk_is_full(error: BaseException | None) -> bool:
    """Whether a full disk caused the error; safetensors tells only by its message."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    if any(f"(os error {number})" in str(error) for number in (errno.ENOSPC, errno.EDQUOT)):
        return True
    return error is not None and _disk_is_full(error.__cause__)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, atomically; see `write_text`."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write atomically: a reader sees the old content or the new, never a part of it.

    Raises:
        StoreError: the folder cannot be created, permission is denied, or no space is left.
    """
    make_folder(path.parent)
    partial = path.with_name(f".partial-{path.name}")
    try:
        partial.unlink(missing_ok=True)  # not to write through a link
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StoreError(f"Cannot write '{path}': {error.strerror or error}. Choose another path.") from error


def append_line(path: Path, line: str) -> None:
    """Add a line, which ends in a newline, to a file of whole lines, and sync it.

    What follows the last newline was left by a process that was killed while it wrote, and is removed first; a reader does not
    count it. If the line cannot be written, the file is as before.

    Raises:
        StoreError: permission is denied, or no space is left.
    """
    try:
        with path.open("r+b", buffering=0) as file:
            end = _end_of_lines(file)
            try:
                file.truncate(end)
                file.seek(end)
                left = line.encode("utf-8")
                while left:  # a full disk may take a part
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    file.truncate(end)
                raise
    except OSError as error:
        raise StoreError(f"Cannot write '{path}': {error.strerror or error}. Choose another path.") from error


def _end_of_lines(file: RawIOBase) -> int:
    """The position after the last newline."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - (1 << 16))
        file.seek(start)
        found = (file.read(end - start) or b"").rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line. NaN and infinity become null: they must not cost a finished stage."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json_lines(rows))


def json_lines(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """The lines that `write_lines` writes."""
    for row in rows:
        yield json.dumps(finite_or_none(row), ensure_ascii=False, allow_nan=False) + "\n"


def finite_or_none(value: Any) -> Any:
    """The value with None in place of every number JSON cannot represent."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite_or_none(item) for key, item in value.items()}
    return [finite_or_none(item) for item in value] if isinstance(value, (list, tuple)) else value


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows `write_lines` wrote.

    Raises:
        CorruptFile: a line is not valid JSON; names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CorruptFile(f"Cannot read '{path}': {error}. {RESTORE}") from error
    return parse_lines(text, path)


def parse_lines(text: str, path: Path) -> list[dict[str, Any]]:
    """The rows in a text of such lines, which is the content of `path`; errors as in `read_lines`."""
    rows = []
    # not splitlines: an answer may contain one of Unicode's other line separators
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            rows += [_object(line)] if line else []
        except ValueError as error:
            raise CorruptFile(f"'{path}', line {number}: not valid JSON: {error}. {RESTORE}") from error
    return rows


def _object(line: str) -> dict[str, Any]:
    value = parse_json(line)
    if not isinstance(value, dict):
        raise ValueError("expected an object")  # noqa: TRY004  (as for what is not JSON)
    return value


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        CorruptFile: it is missing or not valid JSON.
    """
    try:
        return parse_json(read_limited(path), strict=True)
    except FileNotFoundError as error:
        raise CorruptFile(f"'{path}' is missing. {RESTORE}") from error
    except OSError as error:
        raise CorruptFile(f"Cannot read '{path}': {error.strerror}. {RESTORE}") from error
    except ValueError as error:  # UnicodeDecodeError, too
        raise CorruptFile(f"'{path}' is not valid JSON: {error}. {RESTORE}") from error


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_tree(folder: Path) -> dict[str, str]:
    """Flush every file and folder below `folder` to disk; returns relative path -> sha256."""
    flush_tree(folder)
    return {path.relative_to(folder).as_posix(): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def flush_tree(folder: Path) -> None:
    """Flush every file and folder below `folder` to disk, each folder after what it holds."""
    for path in (*sorted(folder.rglob("*"), reverse=True), folder):
        if path.exists():  # a broken link does not
            sync_file(path)


def sync_file(path: Path) -> None:
    """Flush a file's content, or a folder's entries (after a rename), to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


sync_folder = sync_file

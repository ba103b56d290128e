"""Files a crash leaves old or new, never half: written beside, forced to disk, renamed; read with clear errors."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from perdure.errors import CorruptFile, StoreError


def make_folder(folder: Path) -> None:
    """Make a folder, and those it lies in, where there is none.

    Raises:
        StoreError: there is a file in the way, or no leave to write.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"The folder '{folder}' cannot be made: {error.strerror}. Choose another place.") from error


@contextmanager
def remove_folder_on_refusal(folder: Path, lock: str, made: bool) -> Iterator[None]:
    """Remove a folder that was `made` for what is within, and holds its lock alone, if that ends with an error.

    While the lock is held: who waits for it finds the file gone and makes another.
    """
    try:
        yield
    except BaseException:
        with suppress(OSError):  # another process has come in between; or the system keeps files that are open
            if made and [path.name for path in folder.iterdir()] == [lock]:
                (folder / lock).unlink()
                folder.rmdir()
        raise


@contextmanager
def disk_full_as_error(place: Path, then: str) -> Iterator[None]:
    """Turn a full disk into an error that says where it is full and what to do (`then`).

    Raises:
        StoreError: no space.
    """
    try:
        yield
    except Exception as error:
        if disk_is_full(error):
            raise StoreError(f"No space is left for '{place}'. {then}") from error
        raise


def write_json(path: Path, value: Any) -> None:
    """A value as JSON; see `write_text`."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write atomically: a reader sees the old content or the new, never a part.

    Raises:
        StoreError: there is no folder for it and none can be made, no leave to write, or no space.
    """
    make_folder(path.parent)
    partial = path.with_name(f".partial-{path.name}")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StoreError(f"'{path}' cannot be written: {error.strerror or error}. Choose another place.") from error


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line; a number that JSON cannot hold is null, for a finished stage is worth more than it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(finite_or_none(row), ensure_ascii=False, allow_nan=False) + "\n")


def finite_or_none(value: Any) -> Any:
    """The same with None for every number JSON cannot hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite_or_none(item) for key, item in value.items()}
    return [finite_or_none(item) for item in value] if isinstance(value, (list, tuple)) else value


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows `write_lines` wrote.

    Raises:
        CorruptFile: a line is no JSON; says which.
    """
    rows = []
    # not splitlines: an answer may hold a character that Unicode calls a line separator
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        try:
            rows += [json.loads(line)] if line else []
        except ValueError as error:
            raise CorruptFile(
                f"'{path}', line {number}: no JSON ({error}). Restore it from a copy, or run again."
            ) from error
    return rows


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_tree(folder: Path) -> dict[str, str]:
    """Force every file and folder below `folder` to the disk; relative path -> sha256."""
    force_tree(folder)
    return {path.relative_to(folder).as_posix(): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def force_tree(folder: Path) -> None:
    """Force every file and folder below `folder` to the disk, without reading them."""
    paths = sorted(folder.rglob("*"))
    for path in (path for path in paths if path.is_file()):
        sync_file(path)
    for path in (*(path for path in reversed(paths) if path.is_dir()), folder):  # the inner ones first
        sync_folder(path)


def sync_file(path: Path) -> None:
    """Force a file's content to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Force a folder's entries (a rename) to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def disk_is_full(error: BaseException | None) -> bool:
    """Whether that is what the error says, or what caused it; safetensors says it in words only."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    if any(f"(os error {number})" in str(error) for number in (errno.ENOSPC, errno.EDQUOT)):
        return True
    return error is not None and disk_is_full(error.__cause__)


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        CorruptFile: it is missing, or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CorruptFile(f"'{path}' is missing. Restore it from a copy, or run again.") from error
    except (ValueError, UnicodeDecodeError) as error:
        raise CorruptFile(f"'{path}' is not valid JSON: {error}. Restore it from a copy, or run again.") from error

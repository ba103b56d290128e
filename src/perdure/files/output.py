"""Output that appears whole or not at all, and replaces nothing unless told to, and then only output.

Every folder written here holds `MARK`, the list of its files. Only a folder that has one and holds nothing else is replaced.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from perdure.errors import StoreError
from perdure.files.durable import disk_full_as_error, flush_tree, sync_folder
from perdure.files.exchange import exchange
from perdure.files.parsing import parse_json, read_limited

RUN, STAGES, MERGE_STATE = "run.json", "stages", "state.json"
KINDS = {RUN: "a run", MERGE_STATE: "a merge state"}
"""The file that marks a folder -> what the folder is."""
MARK = ".perdure-output.json"
"""In every output folder: {"files": the paths that were written}."""


@contextmanager
def new_folder(folder: Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder to write into; it becomes `folder` when the block ends without an error.

    Args:
        overwrite: replace an existing folder that was written here, or is empty; it stays untouched until the new one is there.

    Raises:
        StoreError: see `check_new`; or `folder` cannot be created, or no space is left.
    """
    folder = check_new(folder, overwrite)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise StoreError(f"Cannot create '{folder}': {error.strerror or error}. Choose another path.") from error
    try:
        with disk_full_as_error(folder, "Nothing was written; free some space and try again."):
            yield made
            _mark(made)
            flush_tree(made)  # before the rename, which could otherwise survive a crash that the content does not
            _move(made, folder, overwrite)
            sync_folder(folder.parent)
    finally:
        shutil.rmtree(made, ignore_errors=True)  # what is left of the new folder, or the old one


def _mark(made: Path) -> None:
    files = sorted(path.relative_to(made).as_posix() for path in made.rglob("*") if not path.is_dir())
    (made / MARK).write_text(json.dumps({"files": files}, indent=1) + "\n", encoding="utf-8")


def _move(made: Path, folder: Path, overwrite: bool) -> None:
    check_new(folder, overwrite)  # again: hours may have passed
    mask = os.umask(0)
    os.umask(mask)
    made.chmod(0o777 & ~mask)  # mkdtemp lets in the owner only
    if os.path.exists(folder):
        exchange(made, folder)
    else:
        os.replace(made, folder)


def check_new(folder: Path, overwrite: bool = False) -> Path:
    """The absolute path of a folder that may be written.

    Raises:
        StoreError: it exists and `overwrite` is false, is not a folder, holds a run or a merge state, or anything else that was
            not written here.
    """
    folder = Path(os.path.abspath(folder))  # not resolved: a link to a folder is neither followed nor replaced
    _check_free(folder, overwrite)
    if os.path.lexists(folder) and (folder.is_symlink() or not os.path.isdir(folder)):
        raise StoreError(f"'{folder}' is not a folder and will not be replaced. Choose another name.")
    for name, kind in KINDS.items():
        if os.path.isfile(folder / name):
            raise StoreError(
                f"'{folder}' holds {kind} ({name}), which --overwrite does not replace. Choose another name, or delete it "
                "yourself."
            )
    if os.path.exists(folder):
        _check_own(folder)
    return folder


def _check_own(folder: Path) -> None:
    """Raise a StoreError for a folder that holds anything but an output that was written here."""
    held = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    if not held:
        return
    known = _marked(folder / MARK)
    if known is None:
        raise StoreError(
            f"'{folder}' was not written by perdure's merge, export or save (it has no {MARK}), so --overwrite does not replace "
            f"it: it holds '{min(held)}'. Choose another name, or delete it yourself."
        )
    inside = {parent.as_posix() for name in known for parent in PurePosixPath(name).parents}
    strangers = [
        name for name in held if name not in (known if held[name].is_file() else inside) or held[name].is_symlink()
    ]
    if strangers:
        raise StoreError(
            f"'{folder}' also holds '{min(strangers)}', which perdure did not write there, so --overwrite does not replace it. "
            "Move that away, or choose another name."
        )


def _marked(path: Path) -> set[str] | None:
    """The files that a mark lists, and the mark itself; None if there is none, or not one written here."""
    try:
        files = parse_json(read_limited(path))["files"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    listed = isinstance(files, list) and all(isinstance(name, str) for name in files)
    return {*files, MARK} if listed else None


def check_apart(folder: Path, read: Iterable[str | Path | None]) -> None:
    """Check that writing `folder` destroys no input and no part of a run or a merge state.

    Args:
        read: the inputs; hub ids and None are skipped.

    Raises:
        StoreError: `folder` is or contains an input, or lies inside a run or a merge state.
    """
    for place in read:
        if place is not None and os.path.exists(place) and Path(place).resolve().is_relative_to(folder.resolve()):
            raise StoreError(f"'{folder}' is or contains the input '{place}'. Choose another name.")
    _check_outside(folder)


def check_file(file: Path, read: Iterable[str | Path | None] = (), overwrite: bool = False) -> None:
    """Check that a file may be written without destroying an input or a part of a run or a merge state.

    Args:
        read: input files and folders; hub ids and None are skipped.

    Raises:
        StoreError: it exists and `overwrite` is false, is a folder, or is or lies inside an input, a run or a merge state.
    """
    _check_free(file, overwrite)
    for place in read:
        if place is not None and os.path.exists(place) and file.resolve().is_relative_to(Path(place).resolve()):
            raise StoreError(f"'{file}' is or lies inside the input '{place}'. Choose a path outside it.")
    if os.path.isdir(file):
        raise StoreError(f"'{file}' is a folder. Name a file.")
    _check_outside(file)


def _check_free(place: Path, overwrite: bool) -> None:
    if os.path.lexists(place) and not overwrite:  # a broken link counts
        raise StoreError(f"'{place}' already exists. Choose another name, or pass --overwrite.")


def _check_outside(place: Path) -> None:
    for outer in place.resolve().parents:
        # one file name is not enough: other tools have a state.json too
        for name, sibling in ((RUN, STAGES), (MERGE_STATE, "merged-*.safetensors")):
            if (outer / name).is_file() and any(outer.glob(sibling)):
                raise StoreError(f"'{place}' is inside {KINDS[name]} ('{outer}'). Choose a path outside it.")

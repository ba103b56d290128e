"""Output that appears whole or not at all, and never in the place of something else without leave."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from perdure.errors import StoreError
from perdure.files.durable import disk_full_as_error, force_tree, sync_folder

RUN, STAGES, MERGE_STATE = "run.json", "stages", "state.json"
WHAT = {RUN: "a run", MERGE_STATE: "a merge state"}
"""The file that says what a folder holds -> what that is."""


@contextmanager
def new_folder(folder: Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside `folder` to write into; it becomes `folder` when the block ends without an error.

    Args:
        overwrite: replace an existing folder; it stays untouched until the new one is complete.

    Raises:
        StoreError: see `check_new`; or `folder` cannot be made there, or no space is left.
    """
    folder = check_new(folder, overwrite)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise StoreError(f"'{folder}' cannot be made: {error.strerror or error}. Choose another place.") from error
    try:
        with disk_full_as_error(folder, "Nothing was written; free some space, then try again."):
            yield made
            force_tree(made)  # before the rename, which could otherwise outlive a crash that its content did not
            _put_in_place(made, folder)
            sync_folder(folder.parent)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def check_new(folder: Path, overwrite: bool = False) -> Path:
    """The absolute path of a folder that may be written.

    Raises:
        StoreError: it exists (and is not to be replaced), is no folder, or holds a run or a merge state.
    """
    folder = Path(os.path.abspath(folder))  # not resolved: a link to a folder is neither followed nor replaced
    check_free(folder, overwrite)
    if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir()):
        raise StoreError(f"'{folder}' is not a folder and is not replaced; choose another name.")
    for name in (RUN, MERGE_STATE):
        if (folder / name).is_file():
            raise StoreError(
                f"'{folder}' holds {WHAT[name]} ({name}), which --overwrite does not replace. Choose another name, or remove it "
                "yourself."
            )
    return folder


def check_free(place: Path, overwrite: bool = False) -> None:
    """Nothing is there, not even a broken link, or it may be replaced.

    Raises:
        StoreError: something is.
    """
    if os.path.lexists(place) and not overwrite:
        raise StoreError(f"'{place}' exists and nothing is overwritten. Choose another name, or say --overwrite.")


def check_apart(folder: Path, read: Iterable[str | Path | None]) -> None:
    """Writing `folder` destroys nothing that is read for it, and no part of a run or a merge state.

    Args:
        read: folders; what is none (a hub id, None) is passed over.

    Raises:
        StoreError: it is or holds one of them, or lies inside a run or a merge state.
    """
    out = folder.resolve()
    for place in read:
        if place is not None and Path(place).exists() and Path(place).resolve().is_relative_to(out):
            raise StoreError(f"'{folder}' is or holds '{place}', which is read to write it. Choose another name.")
    _check_outside(folder)


def check_file(file: Path, read: Iterable[str | Path | None] = (), overwrite: bool = False) -> None:
    """A single file may be written, and that destroys nothing that is read for it, and no part of a run or a merge state.

    Args:
        read: files and folders; what is none (a hub id, None) is passed over.

    Raises:
        StoreError: it exists (and is not to be replaced), is a folder, is one of `read`, or lies inside one of them, a run
            or a merge state.
    """
    check_free(file, overwrite)
    out = file.resolve()
    for place in read:
        if place is not None and Path(place).exists() and out.is_relative_to(Path(place).resolve()):
            raise StoreError(f"'{file}' is or lies in '{place}', which is read to write it. Choose a place outside.")
    if out.is_dir():
        raise StoreError(f"'{file}' is a folder and cannot be written as a file. Name a file.")
    _check_outside(file)


def _check_outside(place: Path) -> None:
    """It lies in no run and no merge state; for errors see `check_apart`."""
    for outer in place.resolve().parents:
        # the name of one file alone says little: other tools have a state.json too
        for name, beside in ((RUN, STAGES), (MERGE_STATE, "merged-*.safetensors")):
            if (outer / name).is_file() and any(outer.glob(beside)):
                raise StoreError(f"'{place}' lies inside {WHAT[name]} ('{outer}'). Choose a place outside.")


def _put_in_place(made: Path, folder: Path) -> None:
    made.chmod(0o777 & ~_umask())
    if folder.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
        os.replace(folder, old)  # onto an empty folder: atomic
        os.replace(made, folder)
        shutil.rmtree(old)
    else:
        os.replace(made, folder)


def _umask() -> int:
    """The process's umask; mkdtemp makes folders for the owner only, this one is for whom the user allows."""
    mask = os.umask(0)
    os.umask(mask)
    return mask

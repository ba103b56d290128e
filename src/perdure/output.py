"""An output folder that appears whole or not at all, and never in the place of another without leave."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from perdure.durable import force_tree, sync_folder
from perdure.errors import StoreError


@contextmanager
def new_folder(folder: Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside `folder` to write into; it becomes `folder` when the block ends without an error.

    Args:
        overwrite: replace an existing folder; it stays untouched until the new one is complete.

    Raises:
        StoreError: `folder` exists (and is not to be replaced), or cannot be made there.
    """
    folder = Path(os.path.abspath(folder))  # not resolved: a link to a folder is neither followed nor replaced
    if os.path.lexists(folder) and not overwrite:
        raise StoreError(f"'{folder}' exists and nothing is overwritten. Choose another name, or say --overwrite.")
    if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir()):
        raise StoreError(f"'{folder}' is not a folder and is not replaced; choose another name.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise StoreError(f"'{folder}' cannot be made: {error.strerror or error}. Choose another place.") from error
    try:
        yield made
        force_tree(made)  # before the rename, which could otherwise outlive a crash that its content did not
        _put_in_place(made, folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(made, ignore_errors=True)


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

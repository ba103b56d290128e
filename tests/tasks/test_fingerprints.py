"""What a task's fingerprint notices: texts to the bit, images by what is in their files."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from perdure.tasks.sources.folders import whole_folder
from perdure.tasks.task import Task


def image_task(folder: Path, pixels: bytes = b"pixels") -> Task:
    folder.mkdir(exist_ok=True)
    paths = {label: folder / f"{label}.PNG" for label in "ab"}
    for label, path in paths.items():
        path.write_bytes(pixels + label.encode())
    rows = [(str(path), label) for label, path in paths.items()]
    return Task("images", rows, test=rows, labels=["a", "b"])


def test_changed_pixels_are_noticed_and_a_moved_folder_is_not(tmp_path: Path) -> None:
    before = image_task(tmp_path / "one").fingerprint()
    assert image_task(tmp_path / "two").fingerprint() == before
    assert image_task(tmp_path / "one", b"others").fingerprint() != before


def test_a_text_is_what_counts_of_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("a file, but no image")
    texts = [
        "a text",
        "notes.txt",
        "missing.png",
        "two lines\nmissing.png",
        "x" * 5000 + ".png",
        "nul \0.png",
        "data:image/png",
    ]
    rows = [(text, "a") for text in texts]
    payload = json.dumps(
        ["t", {"train": rows, "validation": [], "test": rows}, [["a", "a"]], "accuracy"], ensure_ascii=True
    )
    task = Task("t", rows, test=rows, labels=["a"])
    assert task.fingerprint() == hashlib.sha256(payload.encode()).hexdigest()


def test_a_folder_of_the_cache_can_be_read_by_whom_the_user_allows(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        made = whole_folder(tmp_path / "made", lambda fresh: (fresh / "file").write_text("x") and None)
    finally:
        os.umask(before)
    assert made.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["made"]

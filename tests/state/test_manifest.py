"""manifest.json as lines: one more stage is one more line; what was cut off, and what a later perdure wrote, is refused."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from perdure.errors import CorruptFile, StoreError
from perdure.files.durable import append_line
from perdure.state.manifest import FORMAT, append_stage, read_manifest, write_manifest
from perdure.state.store import Store
from tests.contract.runs import short_run


def entry(name: str) -> dict[str, object]:
    return {"name": name, "folder": f"00-{name}", "files": {"scores.json": "0" * 64}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_manifest(tmp_path / "manifest.json", {"stages": [entry("untrained")], "warnings": ["w"]})
    return tmp_path / "manifest.json"


def test_a_stage_is_one_line_added_to_the_same_file(path: Path) -> None:
    before, inode = path.read_bytes(), path.stat().st_ino
    assert append_stage(path, entry("a"))
    after = path.read_bytes()
    assert after.startswith(before)
    assert after[len(before) :] == json.dumps(entry("a")).encode() + b"\n"
    assert path.stat().st_ino == inode
    assert read_manifest(path) == {"stages": [entry("untrained"), entry("a")], "warnings": ["w"]}


@pytest.mark.parametrize("part", [1, 10, -1])
def test_half_a_line_does_not_count_and_goes(path: Path, part: int) -> None:
    """A process killed while it wrote left it; -1: all but the newline."""
    whole = path.read_bytes()
    path.write_bytes(whole + json.dumps(entry("a")).encode()[: part if part > 0 else None])
    assert [stage["name"] for stage in read_manifest(path)["stages"]] == ["untrained"]
    assert append_stage(path, entry("b"))
    assert path.read_bytes() == whole + json.dumps(entry("b")).encode() + b"\n"


def test_a_long_piece_of_a_line_is_found(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_bytes(b"one\n" + b"x" * 200_000)
    append_line(file, "two\n")
    assert file.read_bytes() == b"one\ntwo\n"


def test_a_full_disk_leaves_the_file_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("perdure.files.durable.os.fsync", full)
        with pytest.raises(StoreError, match="No space left"):
            append_stage(path, entry("a"))
    assert path.read_bytes() == whole


@pytest.mark.parametrize("how", ["link", "hard link", "format 1", "missing"])
def test_a_file_that_is_not_this_runs_alone_is_not_added_to(path: Path, how: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    match how:
        case "link":
            path.rename(other)
            path.symlink_to(other)
        case "hard link":
            os.link(path, other)
        case "format 1":
            path.write_text(json.dumps({"stages": [entry("untrained")]}, indent=1))
        case _:
            path.unlink()
    kept = other.read_bytes() if other.exists() else None
    assert not append_stage(path, entry("a"))
    assert kept is None or other.read_bytes() == kept


def test_a_damaged_line_is_named(path: Path) -> None:
    append_stage(path, entry("a"))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1][:20] + "\n" + lines[2])
    with pytest.raises(CorruptFile, match=r"manifest.json', line 2: not valid JSON"):
        read_manifest(path)
    path.write_text(lines[0][:20])
    with pytest.raises(CorruptFile, match="cut off in its first line"):
        read_manifest(path)


def test_a_later_format_is_refused(path: Path, tmp_path: Path) -> None:
    path.write_text(json.dumps({"format": FORMAT + 1}) + "\n")
    with pytest.raises(StoreError, match=r"has format 3 of run folders; this perdure reads up to 2.*upgrade"):
        read_manifest(path)
    (tmp_path / "run.json").write_text(json.dumps({"format": FORMAT + 1, "anything": "else"}))
    with pytest.raises(StoreError, match=r"run.json' has format 3"):
        Store(tmp_path).initial  # noqa: B018


def test_perdure_0_1_does_not_misread_it(path: Path) -> None:
    """It read the file as one JSON value."""
    append_stage(path, entry("a"))
    with pytest.raises(json.JSONDecodeError, match="Extra data: line 2"):
        json.loads(path.read_text())


def test_a_manifest_cut_off_between_two_lines_is_not_resumed_from(tmp_path, small_tasks, encoder_folder) -> None:
    """One stage more than it names may have been renamed when a process was killed; two may not."""
    short_run(tmp_path / "run", small_tasks, encoder_folder, "inc-lora")
    manifest = tmp_path / "run/manifest.json"
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join(lines[:-1]))
    Store(tmp_path / "run").verify()
    manifest.write_text("".join(lines[:-2]))
    with pytest.raises(CorruptFile, match=r"names 2 stages, but later ones are there \(03-sea\): it was cut off"):
        short_run(tmp_path / "run", small_tasks, encoder_folder, "inc-lora")
    assert (tmp_path / "run/stages/03-sea/state.safetensors").is_file()

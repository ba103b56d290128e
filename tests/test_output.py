"""An output folder appears whole or not at all."""

import os

import pytest

from perdure.errors import StoreError
from perdure.output import new_folder


def test_a_folder_appears_when_the_block_ends(tmp_path):
    with new_folder(tmp_path / "deep" / "out") as made:
        (made / "file").write_text("new")
        assert not (tmp_path / "deep" / "out").exists()
    assert (tmp_path / "deep" / "out" / "file").read_text() == "new"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"], "no temporary folder is left"


def test_content_is_on_the_disk_before_the_folder_appears(tmp_path, monkeypatch):
    forced = []

    def fsync(handle):
        forced.append((os.path.basename(os.readlink(f"/proc/self/fd/{handle}")), (tmp_path / "out").exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    with new_folder(tmp_path / "out") as made:
        (made / "inner").mkdir()
        (made / "inner" / "file").write_text("new")
    assert forced == [("file", False), ("inner", False), (made.name, False), (tmp_path.name, True)]


def test_an_error_leaves_nothing_behind(tmp_path):
    with pytest.raises(FileNotFoundError), new_folder(tmp_path / "out") as made:
        ((made / "file").write_text("half"), (made / "nowhere" / "file").write_text("fails"))
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_without_leave(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("old")
    with pytest.raises(StoreError, match="exists and nothing is overwritten"), new_folder(tmp_path / "out"):
        pytest.fail("the block must not run")
    with pytest.raises(KeyError), new_folder(tmp_path / "out", overwrite=True):
        raise KeyError("failed")
    assert (tmp_path / "out" / "file").read_text() == "old"
    with new_folder(tmp_path / "out", overwrite=True) as made:
        (made / "other").write_text("new")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["other"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_or_a_link_is_never_replaced(tmp_path):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    for name in ("file", "link"):
        with pytest.raises(StoreError, match="is not a folder"), new_folder(tmp_path / name, overwrite=True):
            pytest.fail("the block must not run")


def test_a_place_where_no_folder_can_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be made"), new_folder(tmp_path / "file" / "out"):
        pytest.fail("the block must not run")

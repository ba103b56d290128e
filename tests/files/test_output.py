"""An output folder appears whole or not at all."""

import errno
import os

import pytest
from safetensors import SafetensorError

from perdure.errors import StoreError
from perdure.files.output import check_apart, check_file, check_new, new_folder


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


def test_nothing_is_overwritten_by_default(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("old")
    with pytest.raises(StoreError, match="already exists"), new_folder(tmp_path / "out"):
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


def test_a_folder_that_cannot_be_created(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="Cannot create"), new_folder(tmp_path / "file" / "out"):
        pytest.fail("the block must not run")


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left (os error 28)")],
)
def test_a_full_disk_is_reported(tmp_path, error):
    with (
        pytest.raises(StoreError, match=r"No space left to write '.*out'. Nothing was written"),
        new_folder(tmp_path / "out"),
    ):
        raise error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["run.json", "state.json"])
def test_a_run_or_a_state_is_never_replaced(tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("{}")
    with pytest.raises(StoreError, match=rf"\({name}\), which --overwrite does not replace"):
        check_new(tmp_path / "out", overwrite=True)


def test_a_folder_is_kept_apart_from_its_inputs(tmp_path):
    (tmp_path / "in" / "news").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for out in ("in", "in/news", "link/news", "link/../in"):
        with pytest.raises(StoreError, match="is or contains the input"):
            check_apart(tmp_path / out, [tmp_path / "in" / "news"])
    check_apart(tmp_path / "in" / "other", [tmp_path / "in" / "news", None, "owner/on-a-hub"])


def test_outside_of_runs_and_states(tmp_path):
    (tmp_path / "run" / "stages").mkdir(parents=True)
    (tmp_path / "state").mkdir()
    for name in ("run/run.json", "state/state.json", "state/merged-1.safetensors", "state.json"):
        (tmp_path / name).write_text("{}")
    for out, what in (("run/deployed", "a run"), ("run/stages/01-news", "a run"), ("state/out", "a merge state")):
        with pytest.raises(StoreError, match=f"is inside {what} "):
            check_apart(tmp_path / out, [])
    check_apart(tmp_path / "out", [])  # a state.json of another tool lies beside


def test_a_file_is_kept_apart_from_its_inputs(tmp_path):
    (tmp_path / "news").mkdir()
    for name in ("news/adapter_model.safetensors", "in.csv"):
        (tmp_path / name).write_text("precious")
    (tmp_path / "link.csv").symlink_to(tmp_path / "in.csv")
    read = [tmp_path / "news", tmp_path / "in.csv", None, "owner/on-a-hub"]
    for out in ("in.csv", "link.csv", "news/adapter_model.safetensors", "news/page.html"):
        with pytest.raises(StoreError, match=r"is or lies inside the input"):
            check_file(tmp_path / out, read, overwrite=True)
    with pytest.raises(StoreError, match="already exists"):
        check_file(tmp_path / "in.csv")
    with pytest.raises(StoreError, match=r"is a folder\. Name a file"):
        check_file(tmp_path, overwrite=True)
    check_file(tmp_path / "out.csv", read)


def test_a_file_is_written_outside_of_runs_and_states(tmp_path):
    (tmp_path / "run" / "stages").mkdir(parents=True)
    (tmp_path / "run" / "run.json").write_text("{}")
    for out in ("run/run.json", "run/stages/answers.jsonl"):
        with pytest.raises(StoreError, match="is inside a run "):
            check_file(tmp_path / out, overwrite=True)

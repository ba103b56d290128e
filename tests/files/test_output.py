"""An output folder appears whole or not at all."""

import errno
import os
import subprocess
import sys

import pytest
from safetensors import SafetensorError

from perdure.errors import StoreError
from perdure.files.exchange import _swapped, exchange
from perdure.files.output import MARK, check_apart, check_file, check_new, new_folder


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
    assert forced == [("file", False), ("inner", False), (MARK, False), (made.name, False), (tmp_path.name, True)]


def test_an_error_leaves_nothing_behind(tmp_path):
    with pytest.raises(FileNotFoundError), new_folder(tmp_path / "out") as made:
        ((made / "file").write_text("half"), (made / "nowhere" / "file").write_text("fails"))
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_by_default(tmp_path):
    with new_folder(tmp_path / "out") as made:
        (made / "file").write_text("old")
    with pytest.raises(StoreError, match="already exists"), new_folder(tmp_path / "out"):
        pytest.fail("the block must not run")
    with pytest.raises(KeyError), new_folder(tmp_path / "out", overwrite=True):
        raise KeyError("failed")
    assert (tmp_path / "out" / "file").read_text() == "old"
    with new_folder(tmp_path / "out", overwrite=True) as made:
        (made / "other").write_text("new")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [MARK, "other"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def content(folder):
    return {path.relative_to(folder): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def written(folder):
    with new_folder(folder) as made:
        (made / "inner").mkdir()
        for name in ("file", "inner/file"):
            (made / name).write_text("old")


@pytest.mark.parametrize(
    "held",
    [
        "task/run.json",
        "file",
        "sweep.json",
        ".git/config",
        "empty/",
        "merge.json",
        f"deep/{MARK}",
        "adapter_config.json",
    ],
)
def test_a_folder_that_was_not_written_here_is_never_replaced(tmp_path, held):
    """A folder of runs, of a sweep, of somebody's files: all were gone, with exit code 0."""
    place = tmp_path / "out" / held
    place.mkdir(parents=True) if held.endswith("/") else place.parent.mkdir(parents=True)
    if not held.endswith("/"):
        place.write_text('{"files": []}')
    before = content(tmp_path)
    with (
        pytest.raises(StoreError, match=r"was not written by perdure's .*Choose another name, or delete it yourself"),
        new_folder(tmp_path / "out", overwrite=True),
    ):
        pytest.fail("the block must not run")
    assert content(tmp_path) == before


@pytest.mark.parametrize("held", ["notes.txt", "inner/notes.txt", "runs/one/run.json", "empty/", "link"])
def test_foreign_files_beside_an_output_keep_it(tmp_path, held):
    written(tmp_path / "out")
    place = tmp_path / "out" / held
    if held == "link":
        place.symlink_to(tmp_path)
    elif held.endswith("/"):
        place.mkdir()
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("precious")
    before = content(tmp_path)
    with (
        pytest.raises(StoreError, match=rf"also holds '{held.split('/')[0]}.*Move that away"),
        new_folder(tmp_path / "out", overwrite=True),
    ):
        pytest.fail("the block must not run")
    assert content(tmp_path) == before


@pytest.mark.parametrize("mark", ["", "[]", "{}", '{"files": "file"}', '{"files": [1]}', "[" * 100_000])
def test_a_mark_that_is_none(tmp_path, mark):
    written(tmp_path / "out")
    (tmp_path / "out" / MARK).write_text(mark)
    with pytest.raises(StoreError, match="was not written by perdure's"):
        check_new(tmp_path / "out", overwrite=True)


def test_what_was_written_here_is_replaced_even_after_a_loss_and_so_is_an_empty_folder(tmp_path):
    written(tmp_path / "out")
    (tmp_path / "out" / "inner" / "file").unlink()
    (tmp_path / "empty").mkdir()
    for name in ("out", "empty"):
        with new_folder(tmp_path / name, overwrite=True) as made:
            (made / "other").write_text("new")
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == [MARK, "other"]


def test_files_that_came_while_the_output_was_computed_are_kept(tmp_path):
    written(tmp_path / "out")
    with pytest.raises(StoreError, match="also holds 'late'"), new_folder(tmp_path / "out", overwrite=True):
        (tmp_path / "out" / "late").write_text("precious")
    with pytest.raises(StoreError, match="already exists"), new_folder(tmp_path / "new"):
        written(tmp_path / "new")
    assert (tmp_path / "out" / "late").read_text() == "precious"
    assert (tmp_path / "new" / "file").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "out"]


@pytest.mark.parametrize("one_step", [True, False])
def test_two_folders_change_places(tmp_path, monkeypatch, one_step):
    if not one_step:
        monkeypatch.setattr("perdure.files.exchange._swapped", lambda *_: False)
    elif sys.platform == "linux":  # no rename of Python's is needed
        monkeypatch.setattr(os, "rename", None)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    exchange(tmp_path / "one", tmp_path / "two")
    assert [(tmp_path / name / "file").read_text() for name in ("one", "two")] == ["two", "one"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("failing", [1, 2])
def test_a_rename_that_fails_leaves_the_old_output(tmp_path, monkeypatch, failing, error):
    monkeypatch.setattr("perdure.files.exchange._swapped", lambda *_: False)
    written(tmp_path / "out")
    before, real, calls = content(tmp_path), os.rename, []

    def rename(old, new):
        calls.append(new)
        if len(calls) == failing:
            raise error
        real(old, new)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises((StoreError, KeyboardInterrupt)), new_folder(tmp_path / "out", overwrite=True) as made:
        (made / "file").write_text("new")
    assert content(tmp_path) == before


def test_a_process_killed_at_any_point_leaves_the_old_output_or_the_new(tmp_path):
    """The C library's call is the one step: seen from another process, `out` is never missing."""
    if not _swapped_here(tmp_path):
        pytest.skip("this file system does not swap folders")
    written(tmp_path / "out")
    watch = (
        "import os, sys\nprint('ready', flush=True)\nwhile not os.path.exists(sys.argv[2]):\n    os.stat(sys.argv[1])"
    )
    watching = subprocess.Popen(
        [sys.executable, "-c", watch, tmp_path / "out", tmp_path / "end"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert watching.stdout.readline() == b"ready\n"
    for _ in range(50):
        with new_folder(tmp_path / "out", overwrite=True) as made:
            (made / "file").write_text("new")
    (tmp_path / "end").touch()
    assert watching.communicate()[1] == b""


def _swapped_here(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    return _swapped(tmp_path / "a", tmp_path / "b")


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

"""A run folder refuses what it is not, and says which stage is still whole."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from collections.abc import Iterable
from typing import Any

import pytest
from filelock import FileLock
from safetensors import SafetensorError

from perdure.config.run_config import RunConfig
from perdure.errors import CorruptFile, RunBusy, RunMismatch, StoreError
from perdure.files.durable import disk_full_as_error, read_lines, sync_tree, write_json, write_lines, write_text
from perdure.methods.contract.parts import Method
from perdure.methods.plain import Kaiming, Sum
from perdure.state.checkpoint import remember
from perdure.state.scores import read_scores
from perdure.state.store import Store
from tests.contract.runs import bits, short_run


def run_of(tasks: Iterable[str], fingerprint: str = "") -> dict[str, Any]:
    """run.json of a run of these tasks."""
    config = RunConfig.model_validate({"method": "ps-lora"}).model_dump(mode="json")
    return {
        "config": config,
        "precision": "fp32",
        "threads": 1,
        "tasks": dict.fromkeys(tasks, fingerprint),
        "sizes": {task: {} for task in tasks},
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory, small_tasks, encoder_folder):
    out = tmp_path_factory.mktemp("store") / "run"
    short_run(out, small_tasks[:2], encoder_folder, "inc-lora")
    return out


@pytest.fixture
def copy(run, tmp_path):
    import shutil

    return shutil.copytree(run, tmp_path / "run")


def test_a_finished_run_run_again_changes_nothing(copy, small_tasks, encoder_folder):
    before = bits(copy)
    short_run(copy, small_tasks[:2], encoder_folder, "inc-lora")
    assert bits(copy) == before


def test_another_configuration_is_refused_and_named(copy, small_tasks, encoder_folder):
    before = bits(copy)
    with pytest.raises(RunMismatch, match=r"config\.method\.consolidate.*Choose another folder"):
        short_run(copy, small_tasks[:2], encoder_folder, {"consolidate": {"kind": "max-magnitude"}})
    with pytest.raises(RunMismatch, match=r"config\.seed was 0, now 1"):
        short_run(copy, small_tasks[:2], encoder_folder, "inc-lora", seed=1)
    assert bits(copy) == before


@pytest.mark.parametrize(
    "change,told",
    [
        ({"train": slice(1, None)}, "it had 20 train examples, now 19"),
        ({"test": slice(None, None, -1)}, "as many examples, but different ones"),
    ],
)
def test_changed_data_is_refused_and_named(change, told, copy, small_tasks, encoder_folder):
    fruit, sky = small_tasks[:2]
    changed = dataclasses.replace(sky, **{split: getattr(sky, split)[part] for split, part in change.items()})
    before = bits(copy)
    with pytest.raises(RunMismatch, match=rf"The data of task 'sky' changed since it was learnt .*tasks\.sky: {told}"):
        short_run(copy, [fruit, changed], encoder_folder, "inc-lora")
    assert bits(copy) == before


def test_other_tasks_are_refused_and_named(copy, small_tasks, encoder_folder):
    with pytest.raises(RunMismatch, match=r"tasks\.fruit was .*tasks\.sea was "):
        short_run(copy, [small_tasks[1], small_tasks[2]], encoder_folder, "inc-lora")


def test_the_same_tasks_in_another_order_are_refused(copy, small_tasks, encoder_folder):
    before = bits(copy)
    with pytest.raises(RunMismatch, match=r"order of its tasks was fruit, sky, now sky, fruit"):
        short_run(copy, small_tasks[1::-1], encoder_folder, "inc-lora")
    assert bits(copy) == before


def test_every_difference_is_named(copy, small_tasks, encoder_folder):
    with pytest.raises(RunMismatch, match=r"config\.lora\.rank was 2, now 4; config\.seed was 0, now 1"):
        short_run(copy, small_tasks[:2], encoder_folder, "inc-lora", seed=1, lora={"rank": 4, "alpha": 4})
    with pytest.raises(RunMismatch, match=r"tasks\.fruit was.*tasks\.sky was"):
        short_run(copy, small_tasks[2:], encoder_folder, "inc-lora")


def test_going_on_with_another_version_is_noticed_once(copy):
    store, about = Store(copy), Store(copy).initial
    older = {**about, "versions": {**about["versions"], "torch": "2.0.0"}}
    write_json(copy / "run.json", older)
    store.create(about)
    assert "warnings" not in store.manifest, "a finished run is not gone on with"
    manifest = store.manifest
    write_json(copy / "manifest.json", {**manifest, "stages": manifest["stages"][:2]})
    for _ in range(2):
        store.create(about)
    (line,) = store.about["warnings"]
    assert line.startswith(f"the run began with torch 2.0.0 (now {about['versions']['torch']}): ")
    store.create(older)
    assert store.about["warnings"] == [line]


def test_a_base_whose_weights_changed_is_refused(copy, small_tasks, encoder_folder, monkeypatch):
    from perdure.backbones.encoder import Encoder

    real = Encoder.load.__func__  # type: ignore[attr-defined]

    def other_weights(cls, settings):
        encoder = real(cls, settings)
        next(encoder.model.parameters()).data[0, 0] += 1
        return encoder

    monkeypatch.setattr(Encoder, "load", classmethod(other_weights))
    with pytest.raises(RunMismatch, match=r"base model .* changed since .* its fingerprint was \w{12}, now \w{12}"):
        short_run(copy, small_tasks[:2], encoder_folder, "inc-lora")


@pytest.mark.parametrize("name", ["state.safetensors", "adapter/adapter_model.safetensors", "scores.json"])
def test_a_damaged_file_is_named_with_the_last_whole_stage(copy, small_tasks, encoder_folder, name):
    path = Store(copy).stage_folder(2) / name
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptFile, match=rf"{name}.*is damaged.*intact stage: fruit"):
        short_run(copy, small_tasks[:2], encoder_folder, "inc-lora")


def test_a_missing_file_is_named(copy, small_tasks, encoder_folder):
    (Store(copy).stage_folder(1) / "state.safetensors").unlink()
    with pytest.raises(CorruptFile, match=r"is missing.*intact stage: untrained"):
        short_run(copy, small_tasks[:2], encoder_folder, "inc-lora")


def test_a_manifest_that_is_no_json(copy):
    (copy / "manifest.json").write_text("{")
    with pytest.raises(CorruptFile, match=r"manifest\.json' is not valid JSON"):
        Store(copy).stages()


def test_a_folder_in_use_is_refused(copy, small_tasks, encoder_folder):
    with FileLock(copy / ".lock"), pytest.raises(RunBusy, match="Another process is writing"):
        short_run(copy, small_tasks[:2], encoder_folder, "inc-lora")


def test_what_is_refused_leaves_no_folder(tmp_path):
    store = Store(tmp_path / "new")
    with pytest.raises(KeyError), store.writing():
        raise KeyError("refused")
    assert list(tmp_path.iterdir()) == []
    with store.writing():
        assert (tmp_path / "new" / ".lock").is_file(), "made and locked anew"
    with pytest.raises(KeyError), store.writing():
        raise KeyError("refused")
    assert [path.name for path in tmp_path.iterdir()] == ["new"], "it was there before"


def test_what_another_process_put_into_the_folder_stays(tmp_path):
    def refused():
        (tmp_path / "new" / "notes.txt").write_text("mine")
        raise KeyError("refused")

    with pytest.raises(KeyError), Store(tmp_path / "new").writing():
        refused()
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [".lock", "notes.txt"]


def test_a_folder_without_leave_to_write(copy, monkeypatch):
    def denied(self):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(FileLock, "acquire", denied)
    with pytest.raises(StoreError, match=r"Cannot write to .*: Permission denied"), Store(copy).writing():
        pass


def test_a_folder_with_something_else_is_left_alone(tmp_path, small_tasks, encoder_folder):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(StoreError, match="holds no run"):
        short_run(tmp_path, small_tasks[:2], encoder_folder, "inc-lora")
    assert (tmp_path / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "full",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["file", "safetensors"],
)
def test_a_full_disk_keeps_finished_stages(full, tmp_path, small_tasks, encoder_folder, monkeypatch):
    import perdure.state.record

    real, calls = perdure.state.record.save_checkpoint, []

    def fills_up(*args):
        calls.append(args)
        if len(calls) == 2:
            raise full
        real(*args)

    monkeypatch.setattr(perdure.state.record, "save_checkpoint", fills_up)
    with pytest.raises(StoreError, match=r"No space left.*Finished stages are kept"):
        short_run(tmp_path / "run", small_tasks[:2], encoder_folder, "inc-lora")
    assert Store(tmp_path / "run").stages() == ["fruit"]


def test_lines_hold_any_character(tmp_path):
    rows = [{"label": "a\u2028b\x85c\nd"}, {"label": "é"}]
    write_lines(tmp_path / "rows.jsonl", rows)
    assert read_lines(tmp_path / "rows.jsonl") == rows


def test_lines_are_json_whatever_the_numbers(tmp_path):
    write_lines(tmp_path / "rows.jsonl", [{"a": float("inf"), "b": {"c": [float("nan"), 1.5]}}])
    assert read_lines(tmp_path / "rows.jsonl") == [{"a": None, "b": {"c": [None, 1.5]}}]


def test_folders_inside_are_forced_to_the_disk_before_those_around(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr("perdure.files.durable.sync_file", lambda path: synced.append(path.name))
    write_lines(tmp_path / "out" / "inner" / "deep" / "rows.jsonl", [{"a": 1}])
    assert [*sync_tree(tmp_path / "out")] == ["inner/deep/rows.jsonl"]
    assert synced == ["rows.jsonl", "deep", "inner", "out"]


def test_a_text_that_cannot_be_written_leaves_what_was_there(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match=r"Cannot write '.*folder': .*Choose another path"):
        write_text(tmp_path / "folder", "x")
    write_text(tmp_path / "a", "old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(StoreError, match=r"Cannot write '.*a': No space left"):
        write_text(tmp_path / "a", "new")
    with (
        pytest.raises(StoreError, match=r"No space left to write '.*'\. Free some"),
        disk_full_as_error(tmp_path, "Free some."),
    ):
        write_text(tmp_path / "a", "new")
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "a"}
    assert (tmp_path / "a").read_text() == "old"


def test_json_is_replaced_whole(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(ValueError):
        write_json(path, {"x": float("nan")})
    assert json.loads(path.read_text()) == {"x": 1}


def test_tasks_stand_in_the_order_of_their_stages_after_a_second_rollback(tmp_path):
    """Begun with a, b, c, d; back to a; c and b added; back to b: b and c now stand with the stages that added them."""
    store = Store(tmp_path)
    every = ("a", "b", "c", "d")
    write_json(tmp_path / "run.json", run_of(every, "begun"))
    entries = [{"name": name, "folder": name, "files": {}} for name in ("untrained", *every)]
    write_json(tmp_path / "manifest.json", {"stages": entries})
    with store.transaction():
        store.truncate(2, ["a"])
    for name in ("c", "b"):
        added = {"tasks": {name: "added"}, "sizes": {}, "asked": {}, "warnings": [], "task": None}
        stages = [*store.manifest["stages"], {"name": name, "folder": name, "files": {}, "added": added}]
        write_json(tmp_path / "manifest.json", {**store.manifest, "stages": stages})
    with store.transaction():
        store.truncate(4, ["a", "c", "b"])
    assert store.about["tasks"] == {"a": "begun", "c": "added", "b": "added"}
    assert list(store.about["tasks"]) == store.stages() == ["a", "c", "b"]


def test_a_rollback_that_is_killed_after_its_commit_is_ended_by_the_next_process(tmp_path, monkeypatch):
    store = Store(tmp_path)
    write_json(tmp_path / "run.json", run_of("ab"))
    entries = [{"name": name, "folder": name, "files": {}} for name in ("untrained", "a", "b")]
    write_json(tmp_path / "manifest.json", {"stages": entries})
    write_json(tmp_path / "stages/b/scores.json", {})
    with monkeypatch.context() as killed:
        killed.setattr("perdure.state.store.os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        killed.setattr("perdure.state.store.write_manifest", lambda path, value: path.write_text(json.dumps(value)))
        with pytest.raises(KeyboardInterrupt), store.transaction():
            store.truncate(2, ["a"])
    assert store.stages() == ["a"]
    assert (tmp_path / "stages/b").is_dir()
    with store.writing():
        assert (tmp_path / "aside/b/scores.json").is_file()
    assert json.loads((tmp_path / "aside/b/why.json").read_text())["why"].startswith("'b' was rolled back")
    assert store.manifest.keys() == {"stages", "begun"}


def test_memory_of_parts_that_a_method_lacks_is_refused(tmp_path):
    groups = {"total": {}, "part:penalties.fisher": {}}
    with pytest.raises(StoreError, match=r"state' holds the memory of parts .* not have: penalties\.fisher"):
        remember(Method("inc-lora", Kaiming(), Sum()), groups, tmp_path / "state")


def test_a_stage_that_is_gone_is_named(tmp_path, small_tasks, encoder_folder):
    short_run(tmp_path / "run", small_tasks[:1], encoder_folder, "inc-lora")
    scores = Store(tmp_path / "run").stage_folder(1) / "scores.json"
    scores.unlink()
    with pytest.raises(CorruptFile, match=r"scores\.json' is missing"):
        read_scores(tmp_path / "run")


def test_a_record_is_read_once_until_it_is_replaced(tmp_path, monkeypatch):
    """With a hundred stages, `show` read and checked a megabyte of manifest sixty-four times."""
    import perdure.state.run_folder as module
    from tests.report.run_folders import write_run

    store = Store(write_run(tmp_path / "run"))
    reads = []
    for name in ("read_json", "read_manifest"):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda path, real=real: reads.append(path.name) or real(path))
    for _ in range(5):
        assert store.about["tasks"].keys() == {"mood", "topic", "spam"}
        store.stage_folder(1)
    assert sorted(reads) == ["manifest.json", "run.json"]
    store.about["tasks"] = {}
    assert store.about["tasks"].keys() == {"mood", "topic", "spam"}
    with store.writing():
        store._commit({**store.manifest, "warnings": ["new"]})
    assert "new" in store.about["warnings"]
    assert len(reads) == 3
    with store.writing(), store.stage("more"):
        pass
    assert store.stages()[-1] == "more"
    assert len(reads) == 3, "a stage that was added need not be read"
    assert "new" in Store(store.folder).about["warnings"]

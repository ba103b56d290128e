"""A stored name that leads out of its folder is refused before anything is read, moved or removed there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from perdure.errors import CorruptFile
from perdure.files.durable import sha256, write_json
from perdure.files.names import stored_name
from perdure.merging.rules import rule_named
from perdure.merging.state import State, merge_into
from perdure.report.sweeps import read_failures
from perdure.state.checkpoint import checkpoint_deployed, save_groups
from perdure.state.manifest import read_manifest
from perdure.state.store import Store
from tests.bad_inputs.place import Bad, Place, refused

RESUME, ROLLBACK, ADD = ("resume", "run"), ("rollback", "run", "--to", "fruit"), ("add", "run", "task.yaml")
SCORES, SHOW, REPORT = ("scores", "run"), ("show", "run"), ("report", "run", "--out", "page")
EXPORT, STUDY = ("export", "run", "--as", "adapter", "--out", "new"), ("study", "signs", "run")
BAD_NAMES = ["", ".", "..", "a/b", "../precious", "/", "a\\b", "a\0b", "a/../..", 3, None, ["a"]]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_only_one_component_is_a_name(name: Any) -> None:
    with pytest.raises(CorruptFile, match=r"'m\.json': aside is .* not a plain name"):
        stored_name(name, Path("m.json"), "aside")


@pytest.mark.parametrize("name", [*(n for n in BAD_NAMES if n != "a/b"), "/a", "a/", "a//b", "a/./b", "./a", "a/.."])
def test_only_plain_components_are_a_path(name: Any) -> None:
    with pytest.raises(CorruptFile, match=r"'m\.json': files is .* not a path inside its folder"):
        stored_name(name, Path("m.json"), "files", nested=True)


@pytest.mark.parametrize("name", ["00-untrained", "...", ".hidden", "a@2", "größe x", "history-a"])
def test_other_names_are_kept(name: str) -> None:
    assert stored_name(name, Path(), "aside") == name
    assert stored_name(f"{name}/b/{name}", Path(), "files", nested=True) == f"{name}/b/{name}"


def precious(place: Place) -> Path:
    """A folder outside the run, which must survive."""
    folder = place.folder / "precious"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    (place.folder / "task.yaml").write_text(yaml.safe_dump({"name": "more", "train": "data/fruit.jsonl"}))
    return folder


def change(path: Path, **changed: Any) -> None:
    about = read_manifest(path) if path.name == "manifest.json" else json.loads(path.read_text())
    path.write_text(json.dumps(about | changed))


@pytest.mark.parametrize("absolute", [True, False], ids=["absolute", "dots"])
@pytest.mark.parametrize("argv", [RESUME, ROLLBACK, ADD], ids=" ".join)
def test_what_is_to_be_moved_aside(argv: tuple[str, ...], absolute: bool, place: Place, monkeypatch, capsys) -> None:
    def spoil(place: Place) -> None:
        folder = precious(place)
        name = str(folder) if absolute else "../../precious"
        change(place.run / "manifest.json", aside={name: "was rolled back"})

    refused(Bad(spoil, ("manifest.json': aside is", "precious'", "Restore"), 6, argv), place, monkeypatch, capsys)


@pytest.mark.parametrize("argv", [RESUME, ROLLBACK, ADD, SCORES, SHOW, REPORT, EXPORT, STUDY], ids=" ".join)
def test_the_folder_of_a_stage(argv: tuple[str, ...], place: Place, monkeypatch, capsys) -> None:
    def spoil(place: Place) -> None:
        stages = read_manifest(place.run / "manifest.json")["stages"]
        shutil.copytree(place.run / "stages" / stages[2]["folder"], precious(place), dirs_exist_ok=True)
        stages[2]["folder"] = str(place.folder / "precious")
        change(place.run / "manifest.json", stages=stages)

    refused(Bad(spoil, ("manifest.json': stages[2].folder is", "precious'"), 6, argv), place, monkeypatch, capsys)


@pytest.mark.parametrize("argv", [RESUME, ROLLBACK, SCORES], ids=" ".join)
def test_a_file_of_a_stage(argv: tuple[str, ...], place: Place, monkeypatch, capsys) -> None:
    def spoil(place: Place) -> None:
        stages = read_manifest(place.run / "manifest.json")["stages"]
        secret = precious(place) / "thesis.txt"
        stages[1]["files"]["../../../precious/thesis.txt"] = sha256(secret)
        change(place.run / "manifest.json", stages=stages)

    says = ("manifest.json': stages[1].files is", "thesis.txt', which is not a path inside its folder")
    refused(Bad(spoil, says, 6, argv), place, monkeypatch, capsys)


@pytest.mark.parametrize("argv", [RESUME, SHOW, REPORT], ids=" ".join)
def test_the_name_of_a_task(argv: tuple[str, ...], place: Place, monkeypatch, capsys) -> None:
    def spoil(place: Place) -> None:
        tasks = json.loads((place.run / "run.json").read_text())["tasks"]
        change(place.run / "run.json", tasks={**tasks, str(precious(place) / "thesis"): "0"})

    refused(
        Bad(spoil, ("run.json': tasks is", "thesis', which is not a plain name"), 6, argv), place, monkeypatch, capsys
    )


@pytest.mark.parametrize(
    "content", [[], [{"name": "x"}], [3], {}, [{"name": "x", "folder": "x", "files": []}]], ids=str
)
def test_stages_of_another_shape(content: Any, place: Place, monkeypatch, capsys) -> None:
    if content == []:
        content = {"a": 1}
    spoil = lambda place: change(place.run / "manifest.json", stages=content)  # noqa: E731
    refused(Bad(spoil, ("manifest.json' is not what a run writes",), 6, RESUME), place, monkeypatch, capsys)


def test_the_task_of_an_added_stage(place: Place) -> None:
    stages = read_manifest(place.run / "manifest.json")["stages"]
    stages[2]["added"] = {"tasks": {"../../precious": "0"}, "sizes": {}, "asked": {}, "warnings": [], "task": {}}
    change(place.run / "manifest.json", stages=stages)
    with pytest.raises(CorruptFile, match=r"stages\[2\]\.added\.tasks is '../../precious'"):
        Store(place.run).about  # noqa: B018


def test_a_task_that_is_deployed_in_its_own_folder(tmp_path: Path) -> None:
    save_groups(tmp_path / "state.safetensors", {}, {"deployed": ["sky", "../../precious"]})
    with pytest.raises(CorruptFile, match=r"state.safetensors': deployed is '../../precious'"):
        checkpoint_deployed(tmp_path / "state.safetensors")


@pytest.mark.parametrize("name", ["..", "../other.safetensors", "/etc/hostname", "."])
def test_the_file_of_a_merge_state(name: str, place: Place) -> None:
    merge_into(place.folder / "state", place.run / "stages/01-fruit/adapter", rule_named("sum", {}))
    change(place.folder / "state" / "state.json", file=name)
    with pytest.raises(CorruptFile, match=r"state.json': file is .* not a plain name"):
        State(place.folder / "state")


def test_the_id_of_a_failed_run(tmp_path: Path) -> None:
    write_json(tmp_path / "failed" / "a.json", {"id": "../../precious", "error": "x"})
    with pytest.raises(CorruptFile, match=r"a.json': id is '../../precious'"):
        read_failures(tmp_path)

"""Run folders that are missing, foreign, in use, damaged or changed: reported, and left as they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

from perdure.state.manifest import read_manifest
from tests.bad_inputs.place import Bad, Place, nothing, refused

AGAIN = ("run", "config.yaml", "--out", "run")
RESUME = ("resume", "run")
MODEL = ("--as", "model")
READERS = {"scores": ("scores", "run"), "report": ("report", "run", "--out", "page")}


def damage(file: str) -> Callable[[Place], None]:
    """Change the last byte of a file of the run."""

    def spoil(place: Place) -> None:
        path = place.run / file
        path.write_bytes(path.read_bytes()[:-1] + b"\x01")

    return spoil


def gone(file: str) -> Callable[[Place], None]:
    return lambda place: (place.run / file).unlink()


def holds(file: str, content: str) -> Callable[[Place], object]:
    def spoil(place: Place) -> None:
        path = place.run / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)

    return spoil


def more_data(place: Place) -> None:
    with (place.folder / "data/fruit.jsonl").open("a") as file:
        file.write(json.dumps({"text": "a new one", "label": "a"}) + "\n")


def other_base(place: Place) -> None:
    """The base model's weights changed since the run started."""
    about = json.loads((place.run / "run.json").read_text())
    model = place.folder / "model"
    shutil.copytree(about["config"]["backbone"]["model"], model)
    weights = load_file(model / "model.safetensors")
    name = next(name for name in weights if weights[name].ndim == 2)
    save_file({**weights, name: weights[name] + torch.ones(1)}, model / "model.safetensors", {"format": "pt"})
    about["config"]["backbone"]["model"] = str(model)
    (place.run / "run.json").write_text(json.dumps(about))


def unfinished(place: Place) -> None:
    """Only the untrained stage is finished."""
    manifest = read_manifest(place.run / "manifest.json")
    (place.run / "manifest.json").write_text(json.dumps({"stages": manifest["stages"][:1]}))


def from_python(place: Place) -> None:
    about = json.loads((place.run / "run.json").read_text())
    about["config"]["tasks"] = []
    (place.run / "run.json").write_text(json.dumps(about))


STATE = "stages/02-sky/state.safetensors"
DATA_CHANGED = ("The data of task 'fruit' changed since it was learnt", "train examples, now", "Restore the old data")
NO_RUN = ("holds no run", "Give the folder that `perdure run --out` wrote")
CASES: dict[str, Bad] = {
    "another configuration": Bad(
        nothing, ("config.seed was 0, now 1", "Choose another folder", "settings it began with"), 6, (*AGAIN, "seed=1")
    ),
    "data changed since": Bad(more_data, DATA_CHANGED, 6, RESUME),
    "data changed, and the same again": Bad(more_data, DATA_CHANGED, 6, AGAIN),
    "data gone since": Bad(lambda p: (p.folder / "data/sky.csv").unlink(), ("data/sky.csv does not exist",), 4, RESUME),
    "base changed since": Bad(other_base, ("The base model", "changed since the run", "restore them"), 6, RESUME),
    "run.json empty": Bad(holds("run.json", ""), ("run.json' is not valid JSON", "Restore it from a copy"), 6, RESUME),
    "state damaged": Bad(damage(STATE), (STATE, "is damaged", "The last intact stage: fruit", "Restore"), 6, RESUME),
    "state missing": Bad(gone(STATE), (STATE, "is missing", "The last intact stage: fruit", "Restore"), 6, RESUME),
    "adapter damaged": Bad(
        damage("stages/01-fruit/adapter/adapter_model.safetensors"), ("adapter_model", "intact stage: untrained"), 6, RESUME
    ),
    "scores damaged": Bad(damage("stages/00-untrained/scores.json"), ("scores.json", "intact stage: none"), 6, RESUME),
    "run.json that is no JSON": Bad(holds("run.json", "{"), ("run.json' is not valid JSON", "Restore"), 6, RESUME),
    "run.json of another shape": Bad(holds("run.json", "[]"), ("run.json", "is not what a run writes"), 6, RESUME),
    "manifest that is no JSON": Bad(holds("manifest.json", "{"), ("manifest.json' is not valid JSON",), 6, RESUME),
    "manifest of another shape": Bad(
        holds("manifest.json", "[]"), ("manifest.json", "is not what a run writes", "Restore"), 6, RESUME
    ),
    "resume of nothing": Bad(nothing, ("'nowhere'", *NO_RUN), 6, ("resume", "nowhere")),
    "resume of a folder of data": Bad(nothing, ("'data'", *NO_RUN), 6, ("resume", "data")),
    "resume of a run from Python": Bad(from_python, ("were given from Python", "perdure.learn again"), 6, RESUME),
    "out that holds something else": Bad(
        nothing, ("'data' exists and holds no run", "Choose an empty or a new folder"), 6, ("run", "config.yaml", "--out", "data")
    ),
    "out that is a file": Bad(
        nothing, ("'config.yaml'", "Cannot create", "another"), 6, ("run", "config.yaml", "--out", "config.yaml")
    ),
    "scores of no run": Bad(nothing, ("'data'", *NO_RUN), 6, ("scores", "data")),
    "scores of an unfinished run": Bad(unfinished, ("No stage", "perdure resume run"), 6, READERS["scores"]),
    "scores damaged, read": Bad(holds("stages/02-sky/scores.json", "{"), ("scores.json", "not valid JSON"), 6, READERS["scores"]),
    "report of no run": Bad(nothing, ("'data'", *NO_RUN), 6, ("report", "data", "--out", "page")),
    "report of an unfinished run": Bad(unfinished, ("No stage", "perdure resume run"), 6, READERS["report"]),
    "report of a run twice": Bad(nothing, ("run", "twice"), 3, ("report", "run", "run", "--out", "page")),
    "report of a damaged log": Bad(holds("stages/02-sky/log.jsonl", "{"), ("log.jsonl", "Restore"), 6, READERS["report"]),
    "report into a file": Bad(nothing, ("config.yaml", "Cannot create"), 6, ("report", "run", "--out", "config.yaml")),
    "report where a folder is": Bad(
        lambda p: (p.folder / "page/report.json").mkdir(parents=True), ("Cannot write 'page/report.json'",), 6, READERS["report"]
    ),
    "reason that is no JSON": Bad(holds("aside/x/why.json", "{"), ("why.json' is not valid JSON",), 6, ("show", "run")),
    "export of no run": Bad(nothing, ("'data'",), 6, ("export", "data", "--out", "x")),
    "export over a folder": Bad(nothing, ("already exists", "--overwrite"), 6, ("export", "run", "--out", "data", *MODEL)),
    "study of no run": Bad(nothing, ("'data'", *NO_RUN), 6, ("study", "signs", "data")),
    "diagnosis of no adapter": Bad(nothing, ("data",), 5, ("diagnose", "data", "run/stages/01-fruit/adapter")),
    "merge of no adapter": Bad(nothing, ("data",), 5, ("merge", "data", "--rule", "sum", "--out", "m")),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_folder(name: str, place: Place, monkeypatch, capsys) -> None:
    refused(CASES[name], place, monkeypatch, capsys)


@pytest.mark.parametrize("argv", [RESUME, AGAIN], ids=["resume", "run"])
def test_a_folder_in_use_is_refused(argv: tuple[str, ...], place: Place, monkeypatch, capsys) -> None:
    with FileLock(place.run / ".lock"):
        says = ("Another process is writing to 'run'", "Wait for it, or choose another folder")
        refused(Bad(nothing, says, 6, argv), place, monkeypatch, capsys)


def test_a_diverged_loss_keeps_finished_tasks(place: Place, monkeypatch, capsys) -> None:
    from tests.own_files import perdure

    monkeypatch.chdir(place.folder)
    argv = ("run", "config.yaml", "--out", "new", "training.learning_rate=1e30", "training.max_grad_norm=null")
    ended = perdure(monkeypatch, capsys, *argv, "training.epochs=3")
    assert ended.code == 7
    assert "Task 'fruit', step" in ended.err
    assert "Lower training.learning_rate" in ended.err
    assert perdure(monkeypatch, capsys, "scores", Path("new")).code == 6

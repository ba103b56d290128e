"""Run folders that commit 0d18cb0 (perdure 0.1) wrote still open: shown, scored, answered, reported, added to, resumed.

runs_0_1.tar.gz holds a tiny encoder, three data files, `finished` (method perdure on two tasks, a third added) and `stopped`
(method slice, interrupted in its second task). Paths in it begin with /tmp/oldruns and are rewritten to where it is unpacked.
"""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

import perdure
from perdure.cli import app
from perdure.commands.before_run import absolute
from perdure.config.run_config import load_config
from perdure.errors import RunMismatch
from perdure.state.store import Store


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(Path(__file__).with_name("runs_0_1.tar.gz")) as archive:
        archive.extractall(folder, filter="data")
    for run in ("finished", "stopped"):
        for name in ("run.json", "manifest.json"):
            file = folder / run / name
            file.write_text(file.read_text().replace("/tmp/oldruns", str(folder)))
    return folder


@pytest.mark.parametrize("run", ["finished", "stopped"])
def test_is_whole_and_shown(unpacked: Path, run: str) -> None:
    Store(unpacked / run).verify()
    shown = CliRunner().invoke(app, ["show", str(unpacked / run)])
    assert shown.exit_code == 0, shown.output
    assert "fruit" in shown.output


def test_a_configuration_that_leaves_sizes_open_is_still_that_of_a_run_that_took_all(unpacked: Path) -> None:
    """Splits cut from train had no limit in 0.1; a run that began so keeps them, under the configuration it was given."""
    store = Store(unpacked / "stopped")
    begun = store.initial["config"]
    assert {task["test_size"] for task in begun["tasks"]} == {"all"}
    sizes = ("test_size", "validation_size")
    tasks = [{key: value for key, value in task.items() if key not in sizes} for task in begun["tasks"]]
    config = absolute(load_config({**begun, "tasks": tasks}), store)
    assert {task.test_size for task in config.tasks} == {"all"}
    store.must_match({"config": config.model_dump(mode="json")})
    other = absolute(load_config({**begun, "tasks": [{**task, "test_size": 5} for task in tasks]}), store)
    with pytest.raises(RunMismatch, match=r"another configuration: config\.tasks"):
        store.must_match({"config": other.model_dump(mode="json")})


def test_scores_are_those_that_were_written(unpacked: Path) -> None:
    scores = perdure.read_scores(unpacked / "finished")
    assert scores.tasks == scores.stages == ["fruit", "sky", "sea"]
    assert scores.method == "perdure"
    assert scores.examples == [9, 9, 9]


def test_is_reported(unpacked: Path, tmp_path: Path) -> None:
    paths = perdure.write_report([unpacked / "finished", unpacked / "stopped"], tmp_path)
    assert "sea" in paths["md"].read_text()


def test_answers(unpacked: Path) -> None:
    rows = list(perdure.predict(unpacked / "finished", ["apples and number 3 of fruit"], task="fruit"))
    assert len(rows) == 1


def test_is_rolled_back_and_added_to(unpacked: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(unpacked / "finished", run)
    perdure.rollback(run, "sky")
    sea = {
        "name": "sea",
        "train": str(unpacked / "data" / "sea.jsonl"),
        "labels": {"a": "about waves", "b": "about sand"},
    }
    assert perdure.add(run, sea).stages == ["fruit", "sky", "sea"]


def test_is_resumed_inside_its_second_task(unpacked: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(unpacked / "stopped", run)
    first = perdure.read_scores(run).score_matrix[0]
    assert (run / "unfinished").is_dir()
    scores = perdure.resume(run)
    assert scores.stages == ["fruit", "sky", "sea"]
    assert scores.score_matrix[0] == first
    assert Store(run).finished

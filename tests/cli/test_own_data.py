"""From a folder of files to a run: init, edit, run, resume."""

from __future__ import annotations

import csv
import json

import pytest
import yaml
from typer.testing import CliRunner

from perdure.cli import app, init
from perdure.commands.learn import resume, run_config
from perdure.commands.predict import predict
from perdure.config.run_config import load_config
from perdure.errors import ConfigError, RunMismatch, StoreError
from perdure.settings.read import parse_overrides
from perdure.state.store import Store
from tests.contract.runs import SETTINGS, bits


@pytest.fixture
def folder(tmp_path, encoder_folder):
    """A configuration with one task in JSONL and one in CSV, described in a separate file."""
    rows = [(f"{word} and {i}", label) for i in range(20) for word, label in (("apples", "a"), ("pears", "b"))]
    (tmp_path / "data").mkdir()
    (tmp_path / "data/fruit.jsonl").write_text("".join(json.dumps({"text": t, "label": y}) + "\n" for t, y in rows))
    with (tmp_path / "data/sky.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *[(t.replace("apples", "sun"), y) for t, y in rows]])
    (tmp_path / "data/sky.yaml").write_text("name: sky\ntrain: sky.csv\n")
    config = {
        "tasks": [
            {"name": "fruit", "train": "data/fruit.jsonl", "labels": {"a": "apples", "b": "pears"}},
            "data/sky.yaml",
        ],
        "method": "l2",
        "backbone": {"kind": "encoder", "model": str(encoder_folder)},
        **SETTINGS,
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def test_own_files_are_learnt_and_resumed_from_anywhere(folder, monkeypatch, tmp_path_factory):
    scores = run_config(load_config(folder / "config.yaml"), folder / "run")
    assert scores.tasks == ["fruit", "sky"]
    before = bits(folder / "run")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert resume(folder / "run").score_matrix == scores.score_matrix
    assert bits(folder / "run") == before


def test_bad_rows_are_left_out_of_a_run_and_written_beside_it(folder):
    """In a run and in `add`; asked for by neither, they are an error."""
    with (folder / "data/fruit.jsonl").open("a") as file:
        file.write('{"text": "broken\n{"text": "", "label": "a"}\n')
    (folder / "data/sea.csv").write_text((folder / "data/sky.csv").read_text().replace("sun", "waves") + "a,b,c\n")
    (folder / "data/sea.yaml").write_text("name: sea\ntrain: sea.csv\n")
    run, said = str(folder / "run"), CliRunner()
    refused = said.invoke(app, ["run", str(folder / "config.yaml"), "--out", run])
    assert "2 of 42 rows cannot be read" in str(refused.exception)
    for command in (["run", str(folder / "config.yaml"), "--out", run], ["add", run, str(folder / "data/sea.yaml")]):
        result = said.invoke(app, [*command, "--bad-rows", "skip", "--progress", "quiet"])
        assert result.exit_code == 0, result.output
    assert "sea: 1 of 41 rows left out, the first: " in result.output
    found = {
        path.stem: [json.loads(line)["problem"] for line in path.read_text().splitlines()]
        for path in folder.glob("run/skipped/*")
    }
    assert sorted(found) == ["fruit", "sea"]
    places = [problem.partition(": ")[0].rpartition("/")[2] for problem in [*found["fruit"], *found["sea"]]]
    assert places == ["fruit.jsonl, line 41", "fruit.jsonl, line 42", "sea.csv, line 42"]
    Store(folder / "run").verify()
    assert len(resume(run).tasks) == 3  # read again the same way


def test_a_model_beside_the_run_is_found_from_anywhere(folder, monkeypatch, tmp_path_factory, encoder_folder):
    (folder / "tiny").symlink_to(encoder_folder)
    monkeypatch.chdir(folder)
    given = {"backbone": {"kind": "encoder", "model": "tiny"}}
    scores = run_config(load_config(folder / "config.yaml", given), "run")
    out = folder / "run"
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert resume(out).score_matrix == scores.score_matrix
    assert len(predict(out, ["apples and 3"], task="fruit")) == 1


def test_a_folder_of_something_else_is_refused_at_once(folder, monkeypatch):
    monkeypatch.setattr("perdure.commands.learn.load_learner", None)
    before = sorted((folder / "data").iterdir())
    with pytest.raises(StoreError, match="exists and holds no run"):
        run_config(load_config(folder / "config.yaml"), folder / "data")
    assert sorted((folder / "data").iterdir()) == before, "not even a lock"


def test_changed_data_is_detected(folder):
    run_config(load_config(folder / "config.yaml"), folder / "run")
    with (folder / "data/fruit.jsonl").open("a") as file:
        file.write(json.dumps({"text": "a new one", "label": "a"}) + "\n")
    with pytest.raises(RunMismatch, match=r"tasks\.fruit"):
        resume(folder / "run")


def test_a_suite_and_tasks_at_once_are_refused(folder):
    config = load_config(folder / "config.yaml", {"suite": "quickstart"})
    with pytest.raises(ConfigError, match="not both"):
        run_config(config, folder / "run")


@pytest.mark.parametrize(
    "task,message",
    [
        ({"name": "x", "trian": "a.jsonl"}, "trian"),
        ({"train": "a.jsonl"}, "name"),
        ({"name": "x"}, "say where the examples come from"),
        ("missing.yaml", r"missing\.yaml"),
    ],
)
def test_a_wrong_task_is_named_before_anything_is_written(folder, task, message):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "tasks": [task]}))
    with pytest.raises(ConfigError, match=message):
        load_config(folder / "config.yaml")
    assert not (folder / "run").exists()


def test_what_init_writes_is_a_valid_configuration(tmp_path):
    init([tmp_path / "perdure.yaml"])
    config = load_config(tmp_path / "perdure.yaml", parse_overrides(["training.learning_rate=1e-3"]))
    assert [task.name for task in config.tasks] == ["tickets"]
    assert config.method_name == "ps-lora"
    assert config.training.learning_rate == 1e-3
    with pytest.raises(ConfigError, match=r"already exists\. Choose another name"):
        init([tmp_path / "perdure.yaml"])

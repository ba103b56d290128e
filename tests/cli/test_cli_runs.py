"""add, rollback, predict and show on the command line: exit codes, messages and output."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import perdure.state.gate
from perdure.cli import app
from perdure.commands.learn import run_config
from perdure.config.run_config import load_config
from perdure.state.answers import StageAnswers
from perdure.state.outcomes import Answered, TaskOutcome
from perdure.state.store import Store
from tests.cli.test_cli import fails
from tests.contract.runs import bits
from tests.loop.test_adapter_history import peft_adapter
from tests.months import write_config, write_task


@pytest.fixture
def here(tmp_path, encoder_folder, monkeypatch):
    """A folder with a finished run of fruit and sky, and the file of a third task."""
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path, encoder_folder, ["fruit", "sky"])
    write_task(tmp_path, "sea")
    run_config(load_config(config), "run")
    return tmp_path


def said(*argv: str) -> str:
    done = CliRunner().invoke(app, list(argv))
    assert done.exit_code == 0, f"{done.output}\n{done.exception!r}"
    return done.stdout


def test_a_month_with_a_run(here):
    assert "sea" in said("add", "run", "sea.yaml", "--progress", "quiet")
    shown = said("show", "run")
    assert "sea" in shown
    assert "added" in shown
    assert "next: perdure rollback run --to sky" in shown
    found = json.loads(said("show", "run", "--json"))
    assert [(t["task"], t["added"], t["learnt"]) for t in found["tasks"]] == [
        ("fruit", False, True),
        ("sky", False, True),
        ("sea", True, True),
    ]
    assert found["bytes"]["stages"] == sum(p.stat().st_size for p in (here / "run/stages").rglob("*") if p.is_file())
    assert (found["finished"], found["deployed"]) == (True, "adapter")
    assert found["method"]["name"] == "inc-lora"
    assert "sea" not in said("rollback", "run", "--to", "sky")
    assert "aside/03-sea: 'sea' was rolled back" in said("show", "run")
    assert json.loads(said("scores", "run", "--json"))["stages"] == ["fruit", "sky"]
    assert said("resume", "run", "--progress", "quiet")


def test_a_run_with_an_adapter_for_each_task_is_exported_task_by_task(here, encoder_folder):
    config = write_config(here, encoder_folder, ["sky"], method="per-task")
    run_config(load_config(config), "apart")
    assert "next: perdure export apart --as model --out FOLDER --task TASK\n" in said("show", "apart")
    assert "next: perdure export run --as model --out FOLDER\n" in said("show", "run")


def test_a_failed_gate_exits_with_2(here, monkeypatch, capsys):
    before = bits("run")

    def fallen(store, upcoming=None):
        scores = {"fruit": (0.9, 0.8), "sky": (0.9, 0.89)}
        return [
            TaskOutcome(
                task,
                [
                    Answered(stage, task, StageAnswers(Path()), score)
                    for stage, score in zip(("sky", "sea"), pair, strict=True)
                ],
                0,
                None,
            )
            for task, pair in scores.items()
        ]

    monkeypatch.setattr(perdure.state.gate, "task_outcomes", fallen)
    code, error = fails(monkeypatch, capsys, "add", "run", "sea.yaml", "--max-forgetting", "2", "--progress", "quiet")
    assert code == 8
    assert "'fruit' is at 80.0, 10.0 below its best (90.0 after 'sky'), all of it by this stage" in error
    assert "'sky' is at" not in error
    assert "run/aside/03-sea" in error
    assert (here / "run/aside/03-sea/adapter/adapter_model.safetensors").is_file()
    assert bits("run") == before
    assert "aside/03-sea: After 'sea', more than 2 points are forgotten" in said("show", "run")


@pytest.mark.parametrize(
    "argv,code,message",
    [
        (["add", "nowhere", "sea.yaml"], 6, "holds no run"),
        (["add", "run", "nothing.yaml"], 4, "No such task file: 'nothing.yaml'"),
        (["add", "run", "sky.yaml"], 4, "'sky' is already learnt"),
        (["add", "run", "bad.yaml"], 3, "Did you mean 'train'?"),
        (["add", "run", "lost.yaml"], 4, "gone.jsonl does not exist"),
        (["add", "run", "sea.yaml", "lora.rank=2"], 3, "An existing run keeps its settings"),
        (["add", "run", "sea.yaml", "training.epoch=2"], 3, "epoch"),
        (["add", "run", "sea.yaml", "--max-forgetting", "-1"], 3, "0 or more"),
        (["add", "new", "sea.yaml", "--history", "adapter"], 3, "--backbone"),
        (["add", "new", "sea.yaml", "--history", "nothing", "--backbone", "minilm-none"], 3, "minilm"),
        (["rollback", "run", "--to", "skyy"], 3, "Did you mean 'sky'?"),
        (["rollback", "nowhere", "--to", "sky"], 6, "holds no run"),
        (["predict", "run", "sky.jsonl"], 6, "--task: fruit, sky"),
        (["predict", "run", "sky.jsonl", "--task", "ski"], 3, "Did you mean 'sky'?"),
        (["predict", "run", "none.jsonl", "--task", "sky"], 4, "none.jsonl does not exist"),
        (["predict", "nowhere", "sky.jsonl"], 6, "holds no run"),
        (["show", "nowhere"], 6, "holds no run"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_leaves_the_run_unchanged(argv, code, message, here, monkeypatch, capsys):
    (here / "bad.yaml").write_text("name: bad\ntrian: sea.jsonl\ntrain: sea.jsonl\n")
    (here / "lost.yaml").write_text("name: lost\ntrain: gone.jsonl\n")
    before = bits("run")
    found, error = fails(monkeypatch, capsys, *argv, *(["--progress", "quiet"] if argv[0] == "add" else []))
    assert (found, "Traceback" in error) == (code, False), error
    assert message in error
    assert bits("run") == before
    assert not (here / "run/aside").exists()
    assert not (here / "new/run.json").exists()


def test_changed_data_is_refused(here, monkeypatch, capsys):
    write_task(here, "fruit", start=3)
    before = bits("run")
    for argv in (["add", "run", "sea.yaml"], ["resume", "run"]):
        code, error = fails(monkeypatch, capsys, *argv, "--progress", "quiet")
        assert code == 6
        assert "tasks.fruit" in error
    assert bits("run") == before
    assert len(said("predict", "run", "sky.jsonl", "--task", "sky").splitlines()) == 40, "answering needs no old data"


@pytest.mark.parametrize(
    "argv",
    [
        ["predict", "run", "sky.jsonl", "--task", "sky"],
        ["add", "run", "sea.yaml", "--progress", "quiet"],
        ["resume", "run", "--progress", "quiet"],
        ["export", "run", "--as", "model", "--out", "model"],
        ["study", "signs", "run"],
    ],
    ids=lambda argv: argv[0],
)
def test_a_moved_base_is_reported(argv, here, encoder_folder, monkeypatch, capsys):
    gone = str(here / "moved-away")
    about = (here / "run/run.json").read_text()
    (here / "run/run.json").write_text(about.replace(str(encoder_folder), gone))
    code, error = fails(monkeypatch, capsys, *argv)
    assert code == 6, error
    assert f"The base of the run in 'run' is missing: run.json says it was in '{gone}'. Put it" in error


def test_existing_adapters_become_a_run(here, encoder_folder):
    for seed, name in enumerate(("news", "mail")):
        peft_adapter(encoder_folder, here / name, seed)
    said(
        "add", "new", "sea.yaml", "--history", "news", "--history", "mail", "--backbone", str(encoder_folder),
        "--method", "ps-lora", "backbone.kind=encoder", "lora.rank=2", "training.epochs=1", "precision=fp32", "threads=1",
        "--progress", "quiet",
    )  # fmt: skip
    assert Store(here / "new").stages() == ["history-news", "history-mail", "sea"]
    assert "history: history-news, history-mail" in said("show", "new")
    assert "fruit" in said("add", "new", "fruit.yaml", "--progress", "quiet")


def test_an_unfinished_run_is_shown(here):
    (here / "run/manifest.json").unlink()
    shutil.rmtree(here / "run/stages")
    found = json.loads(said("show", "run", "--json"))
    assert (found["finished"], found["tasks"][0]["learnt"]) == (False, False)
    assert found["next"] == ["perdure resume run"]
    assert "not learnt yet" in said("show", "run")
    about = json.loads((here / "run/run.json").read_text())
    about["config"]["tasks"] = []  # as where they were given from Python: resume would refuse it
    (here / "run/run.json").write_text(json.dumps(about))
    assert json.loads(said("show", "run", "--json"))["next"] == ["perdure.learn(tasks=[...], out='run') to resume"]


def test_help_imports_nothing_heavy():
    import subprocess

    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom perdure.cli import app\n"
        "for name in ('add', 'rollback', 'predict', 'show', 'repair'):\n"
        "    assert CliRunner().invoke(app, [name, '--help']).exit_code == 0\n"
        "print([m for m in ('torch', 'transformers', 'peft', 'datasets', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""docs/deployment.md: its Python code gives a run's own predictions and probabilities (tiny models); its exports load."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import perdure
from perdure.cli import app
from perdure.state.answers import read_answers
from perdure.state.store import Store
from perdure.tasks.task import Task
from tests.backbones.tiny import tiny_causal
from tests.contract.runs import SETTINGS, short_run

PAGE = (Path(__file__).parents[2] / "docs/deployment.md").read_text(encoding="utf-8")
LANGUAGE, ENCODER = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


def answers_as_scored(code: str, base: Path, run: Path, tasks: Sequence[Task]) -> None:
    """Run the page's code with our names, and compare with the predictions of the run's last stage."""
    for task in tasks:
        ours = f"base, run, task = {str(base)!r}, Path({str(run)!r}), {task.name!r}"
        code, count = re.subn(r"^base, run, task = .*$", ours, code, flags=re.MULTILINE)
        assert count == 1
        names: dict[str, Any] = {}
        exec(code.replace("max_length, temperature = 48", "max_length, temperature = 32"), names)
        rows = read_answers(Store(run).stage_folder(2), task.name)
        for example, row in zip(task.test, rows, strict=True):
            found = names["probabilities"](example.text)
            assert max(found, key=found.get) == row["predicted"]
            assert found[row["predicted"]] == pytest.approx(row["probability"], abs=2e-5)


@pytest.mark.parametrize("method", ["inc-lora", "ps-lora"])
@pytest.mark.parametrize("chat", [False, True])
def test_a_language_model(chat, method, tmp_path, small_tasks):
    base = tiny_causal(tmp_path / "base", chat=chat)
    backbone = {"kind": "causal", "model": str(base)}
    perdure.learn(out=tmp_path / "run", tasks=small_tasks[:2], method=method, backbone=backbone, **SETTINGS)
    answers_as_scored(LANGUAGE, base, tmp_path / "run", small_tasks[:2])


@pytest.mark.parametrize("method", ["inc-lora", "ps-lora"])
def test_a_sentence_encoder(method, tmp_path, small_tasks, encoder_folder):
    short_run(tmp_path / "run", small_tasks[:2], encoder_folder, method)
    answers_as_scored(ENCODER, encoder_folder, tmp_path / "run", small_tasks[:2])


def test_the_exports(tmp_path, small_tasks, encoder_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short_run(tmp_path / "runs/mine", small_tasks[:2], encoder_folder, "inc-lora")
    every = [line for line in PAGE.splitlines() if line.startswith("perdure export runs/mine")]
    commands = [line for line in every if "--as gguf" not in line]  # those need llama.cpp: tests/commands/test_gguf.py
    for command in commands:
        done = CliRunner().invoke(app, shlex.split(command)[1:])
        assert done.exit_code == 0, f"{command}\n{done.output}\n{done.exception!r}"
    assert (tmp_path / "adapter/adapter_config.json").is_file()
    assert (tmp_path / "model/config.json").is_file()

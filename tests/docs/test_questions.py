"""docs/own-data.md, "Ten questions": each command runs, in order, and its output has the line that the page promises."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import yaml
from typer.testing import CliRunner

from perdure.cli import app
from perdure.commands.learn import run_config
from perdure.config.run_config import load_config
from tests.contract.runs import SETTINGS
from tests.months import write_task

PAGE = (Path(__file__).parents[2] / "docs/own-data.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| ([^|`]+) \| `([^`]+)` \| `([^`]+)` \|$", re.MULTILINE)


def test_each_question_is_answered(tmp_path, encoder_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = {"tickets": ("bills", "lines"), "reviews": ("good", "bad"), "spam": ("win", "meet")}
    files = [write_task(tmp_path, name, pair).name for name, pair in words.items()]
    backbone = {"kind": "encoder", "model": str(encoder_folder), "max_length": 32}
    config = {"tasks": files[:2], "method": "inc-lora", "backbone": backbone, **SETTINGS}
    (tmp_path / "perdure.yaml").write_text(yaml.safe_dump(config))
    run_config(load_config(tmp_path / "perdure.yaml"), tmp_path / "runs/mine")
    questions = ROW.findall(PAGE.partition("## Ten questions")[2].partition("\n## ")[0])
    assert len(questions) == 10
    for question, command, promised in questions:
        done = CliRunner().invoke(app, shlex.split(command)[1:])
        assert done.exit_code == 0, f"{question}\n{done.output}\n{done.exception!r}"
        assert any(promised in line for line in done.stdout.splitlines()), f"{question}\n{done.stdout}"

"""The README's code and commands run as printed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from perdure.cli import app
from perdure.state.store import Store
from tests.contract.runs import SETTINGS
from tests.own_files import write_jsonl

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.package_data
def test_python_example_runs(tmp_path):
    (code,) = _blocks("python")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.match(r"\[\[[\d., ]+\], \[[\d., ]+\]\] -?[\d.]+", done.stdout)
    assert (tmp_path / "runs/small/deployed/config.json").is_file()


@pytest.mark.package_data
def test_commands_run_in_the_order_they_are_printed(tmp_path):
    (commands,) = _blocks("console")
    for command in commands.splitlines():
        assert command.startswith("perdure ")
        argv = [sys.executable, "-c", "from perdure.cli import main; main()", *command.split()[1:]]
        done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert done.stdout.strip(), f"{command} says nothing"


def test_month_after_month_runs_in_order(tmp_path, monkeypatch, encoder_folder):
    """On the tiny encoder, with steps too small to forget."""
    monkeypatch.chdir(tmp_path)
    for name in ("tickets", "spam", "inbox"):
        words = {"spam": ("win", "lose")}.get(name, ("bills", "lines"))
        rows = [{"text": f"{word} {i}", "label": word} for i in range(20) for word in words]
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    part = README.split("## Month after month")[1].split("\n## ")[0]
    commands = [re.split(r" {2,}", line.strip())[0] for line in part.splitlines() if line.startswith("    perdure ")]
    assert len(commands) == 6
    for command in commands:
        done = CliRunner().invoke(app, command.split()[1:])
        assert done.exit_code == 0, f"{command}\n{done.output}\n{done.exception!r}"
        if command.startswith("perdure init"):
            small = {**SETTINGS, "backbone": {"kind": "encoder", "model": str(encoder_folder)}}
            small["training"] = {"epochs": 1, "learning_rate": 1e-6}
            written = yaml.safe_load((tmp_path / "perdure.yaml").read_text())
            (tmp_path / "perdure.yaml").write_text(yaml.safe_dump({**written, **small}))
    assert Store(tmp_path / "runs/mine").stages() == ["tickets"]
    assert json.loads((tmp_path / "answers.jsonl").read_text().splitlines()[0])["label"] in ("bills", "lines")


def test_every_extra_is_explained():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    table = (ROOT / "docs" / "installation.md").read_text().split("| extra |")[1].split("\n\n")[0]
    explained = [name for line in table.splitlines()[2:] for name in re.findall(r"`([\w-]+)`", line.split("|")[1])]
    assert sorted(explained) == sorted(extras)


def test_every_file_of_the_map_exists():
    names = re.findall(r"^ {6}([\w/]+(?:\.py|/))  ", README.split("## Where things are")[1], flags=re.MULTILINE)
    assert len(names) >= 12
    assert [name for name in names if not (ROOT / "src/perdure" / name).exists()] == []

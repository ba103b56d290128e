"""The README's code and commands run as printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.package_data
def test_python_example_runs(tmp_path):
    (code,) = _blocks("python")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert re.match(r"\[\[[\d., ]+\], \[[\d., ]+\]\] -?[\d.]+", done.stdout)
    assert (tmp_path / "runs/small/deployed/config.json").is_file()


@pytest.mark.package_data
def test_commands_run_in_the_order_they_are_printed(tmp_path):
    (commands,) = _blocks("console")
    for command in commands.splitlines():
        assert command.startswith("perdure ")
        argv = [sys.executable, "-c", "from perdure.cli import main; main()", *command.split()[1:]]
        done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=250)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert done.stdout.strip(), f"{command} says nothing"


def test_every_file_of_the_map_exists():
    names = re.findall(r"^ {6}([\w/]+(?:\.py|/))  ", README.split("## Where things are")[1], flags=re.MULTILINE)
    assert len(names) >= 12
    assert [name for name in names if not (ROOT / "src/perdure" / name).exists()] == []

"""Nobody reads the output any more (`| head`): a training goes on, a short command ends without a word."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from perdure.state.store import Store
from tests.own_files import write_own_files


def closed(folder: Path, *argv: str, stream: str = "stdout") -> tuple[int, str]:
    """The exit status of `perdure argv...` with a pipe for `stream` that nobody reads, and what it wrote to the other one."""
    read, write = os.pipe()
    os.close(read)
    other = "stderr" if stream == "stdout" else "stdout"
    try:
        given: Any = {stream: write, other: subprocess.PIPE}
        done = subprocess.run([sys.executable, "-m", "perdure", *argv], cwd=folder, check=False, text=True, **given)
    finally:
        os.close(write)
    return done.returncode, getattr(done, other)


@pytest.mark.parametrize("progress, stream", [("json", "stdout"), ("auto", "stderr")])
def test_a_training_goes_on(progress: str, stream: str, tmp_path: Path, encoder_folder: Path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(place for place in sys.path if place))
    write_own_files(tmp_path, encoder_folder)
    code, other = closed(tmp_path, "run", "config.yaml", "--out", "run", "--progress", progress, stream=stream)
    assert code == 0, other
    assert "Traceback" not in other
    assert "Broken" not in other
    assert Store(tmp_path / "run").finished


@pytest.mark.parametrize("argv", [("methods",), ("methods", "--json"), ("suites",), ("--help",)], ids=" ".join)
def test_a_short_command_ends_quietly(argv: tuple[str, ...], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(place for place in sys.path if place))
    code, errors = closed(tmp_path, *argv)
    assert code in (0, 141), errors
    assert errors == ""

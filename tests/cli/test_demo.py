"""What `perdure demo` prints; its runs are stubbed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from perdure.cli import demonstration
from perdure.state.scores import read_scores
from perdure.training.metrics import Scores
from tests.own_files import perdure
from tests.report.run_folders import write_run


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """One method, and a run that is written without training."""

    def run_config(config: Any, out: Path, report: Any) -> Scores:
        scores = read_scores(write_run(out))
        report.end(scores)
        return scores

    monkeypatch.setattr(demonstration, "METHODS", ("ps-lora",))
    monkeypatch.setattr(demonstration, "run_config", run_config)


def test_json_lines_are_all_of_standard_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = perdure(monkeypatch, capsys, "demo", "--out", tmp_path, "--progress", "json")
    assert [json.loads(line)["event"] for line in ended.out.splitlines()] == ["end"]
    assert "Learning amazon" in ended.err
    assert "Report:" in ended.err


def test_without_json_the_result_is_on_standard_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = perdure(monkeypatch, capsys, "demo", "--out", tmp_path, "--progress", "quiet")
    assert "Report:" in ended.out
    assert ended.err == ""


def test_without_plotly_the_report_is_markdown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("demo", "--progress", "quiet", "--out")
    perdure(monkeypatch, capsys, *command, tmp_path / "with")
    assert (tmp_path / "with/report.html").exists()
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    ended = perdure(monkeypatch, capsys, *command, tmp_path / "without")
    assert (ended.code, ended.err) == (0, "")
    assert f"Report: {tmp_path / 'without/report.md'}" in ended.out.replace("\n", "")
    assert "| mood |" in (tmp_path / "without/report.md").read_text(encoding="utf-8")
    assert not (tmp_path / "without/report.html").exists()

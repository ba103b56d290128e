"""What the demonstration prints; its runs themselves are those of any other command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from perdure.cli import demonstration
from perdure.scores import Scores, read_scores
from tests.own_files import perdure
from tests.report.run_folders import write_run


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """One method, and a run that is written at once."""

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
    assert "perdure learns" in ended.err
    assert "Report:" in ended.err


def test_without_json_the_result_is_on_standard_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = perdure(monkeypatch, capsys, "demo", "--out", tmp_path, "--progress", "quiet")
    assert "Report:" in ended.out
    assert ended.err == ""

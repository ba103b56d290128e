"""The examples of the practitioner's months, on the tiny encoder."""

from __future__ import annotations

from pathlib import Path

import pytest

import perdure
from perdure.state.answers import StageAnswers
from perdure.state.outcomes import Answered, TaskOutcome
from perdure.state.store import Store
from tests.contract.runs import SETTINGS, bits

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


def test_two_months(tmp_path, encoder_folder, capsys):
    import add_next_month  # pyright: ignore[reportMissingImports]
    import own_data  # pyright: ignore[reportMissingImports]

    backbone = {"kind": "encoder", "model": str(encoder_folder)}
    scores = own_data.main(tmp_path, backbone, **SETTINGS)
    assert scores.stages == ["tickets", "reviews"]
    assert "No internet in the hospital -> " in capsys.readouterr().out
    first = bits(tmp_path / "run")
    later = add_next_month.main(tmp_path, max_forgetting=100.0)
    assert later.stages == ["tickets", "reviews", "tickets@2"]
    assert f"perdure rollback {tmp_path / 'run'} --to reviews" in capsys.readouterr().out
    perdure.rollback(tmp_path / "run", "reviews")
    assert bits(tmp_path / "run") == first


def test_a_refused_month(tmp_path, encoder_folder, capsys, monkeypatch):
    import add_next_month  # pyright: ignore[reportMissingImports]
    import own_data  # pyright: ignore[reportMissingImports]

    import perdure.state.gate

    own_data.main(tmp_path, {"kind": "encoder", "model": str(encoder_folder)}, **SETTINGS)
    best, now = (
        Answered(stage, "reviews", StageAnswers(tmp_path), score)
        for stage, score in (("reviews", 0.9), ("tickets@2", 0.8))
    )
    outcome = TaskOutcome("reviews", [best, now], 0, None)
    monkeypatch.setattr(perdure.state.gate, "task_outcomes", lambda store, upcoming: [outcome])
    assert add_next_month.main(tmp_path) is None
    assert "'reviews' is at 80.0, 10.0 below its best (90.0 after 'reviews')" in capsys.readouterr().out
    assert Store(tmp_path / "run").stages() == ["tickets", "reviews"]


@pytest.mark.parametrize("name", ["own_data.py", "add_next_month.py"])
def test_they_are_short(name):
    assert len((EXAMPLES / name).read_text().splitlines()) <= 60

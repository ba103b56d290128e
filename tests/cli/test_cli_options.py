"""Command-line options reach the one library call that a command makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from perdure.cli import app
from perdure.diagnostics.positions import PositionSettings
from perdure.studies.mining import Conflicts

Stand = Callable[..., list[tuple[tuple[Any, ...], dict[str, Any]]]]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Stand:
    """Replace a function by one that returns `result`; returns the list of its calls."""

    def put(name: str, result: Any = None) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def called(*args: Any, **kwargs: Any) -> Any:
            calls.append((args, kwargs))
            return result

        monkeypatch.setattr(name, called)
        return calls

    return put


def perdure(*argv: object) -> str:
    ended = CliRunner().invoke(app, [str(one) for one in argv], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    return ended.output


def test_run(stand_in: Stand, tmp_path: Path) -> None:
    learnt = stand_in("perdure.commands.learn.run_config")
    stand_in("perdure.cli.options.show_scores")
    named = ("--suite", "quickstart", "--order", "reversed", "--data", tmp_path, "--method", "ties", "--seed", 7)
    perdure("run", *named, "--backbone", "some/model", "--out", tmp_path / "run", "--max-forgetting", 3, "lora.rank=2")
    [((config, out), given)] = learnt
    assert (config.suite, config.order, config.data) == ("quickstart", "reversed", str(tmp_path))
    assert (config.method_name, config.seed, config.backbone["model"]) == ("ties", 7, "some/model")
    assert (config.lora.rank, out, given["gate"].max_forgetting) == (2, tmp_path / "run", 3.0)


def test_sweep(stand_in: Stand, tmp_path: Path) -> None:
    stand_in("perdure.sweeps.plan.load_sweep", SimpleNamespace(name="mine", methods={}, search={}))
    stand_in("perdure.sweeps.sweep.failures", [])
    ran = stand_in("perdure.sweeps.sweep.run_sweep")
    perdure("sweep", "mine.yaml", "--processes", 5)
    perdure("sweep", "mine.yaml", "--out", tmp_path)
    assert [args[1:3] for args, _ in ran] == [(Path("runs/mine"), 5), (tmp_path, 2)]


def test_report_of_a_sweep(stand_in: Stand, tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    written = stand_in("perdure.report.sweeps.write_sweep_report", {"md": tmp_path / "report.md"})
    assert "report.md" in perdure("report", tmp_path, "--out", tmp_path / "out", "--against", "inc-lora")
    assert written == [((tmp_path, tmp_path / "out", "inc-lora"), {})]


def test_predict(stand_in: Stand, tmp_path: Path) -> None:
    answered = stand_in("perdure.commands.predict.predict", [])
    perdure("predict", tmp_path, "new.csv", "--task", "mood", "--encoding", "latin-1", "--text-field", "body")
    settings = {"task": "mood", "text_field": "body", "encoding": "latin-1", "bad": []}
    assert answered == [((tmp_path, Path("new.csv")), settings)]


def test_mine(stand_in: Stand) -> None:
    """`seed` is a configuration setting that must reach the measurement."""
    suite = stand_in("perdure.commands.learn.load_configured_suite", SimpleNamespace(tasks=("one", "two", "three")))
    stand_in("perdure.commands.learn.load_learner", ("model", "backbone"))
    found = Conflicts(("one", "two", "three"), torch.eye(3), 0.1)
    measured = stand_in("perdure.studies.mining.gradient_conflicts", found)
    text = perdure("mine", "quickstart", "seed=1", "--length", 2, "--data", "/files")
    assert measured == [((("one", "two", "three"), "model", "backbone"), {"seed": 1})]
    [((config,), _)] = suite
    assert (config.suite, config.data) == ("quickstart", "/files")
    assert "Most conflicting: one, two (mean" in text


def test_diagnose(stand_in: Stand) -> None:
    compared = stand_in("perdure.diagnostics.folders.diagnose_folders", SimpleNamespace(as_json=dict))
    looking = ("--top", 0.3, "--threshold", 0.4, "--sample", 0.5, "--seed", 6)
    perdure("diagnose", "a", "b", *looking, "--history", "--json")
    assert compared == [((["a", "b"], PositionSettings(0.3, 0.4, 0.5, 6)), {"history": True, "base": None})]

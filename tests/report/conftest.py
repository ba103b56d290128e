"""Run folders the report's tests read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.run_folders import LABELS, write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three tasks learnt one after another."""
    return write_run(tmp_path / "ps")


@pytest.fixture
def joint(tmp_path: Path) -> Path:
    """The same tasks in one mixed stage, everything right."""
    untrained = {task: [answers[0]] * len(answers) for task, answers in LABELS.items()}
    return write_run(tmp_path / "joint", method="joint", rows=[untrained, LABELS], stages=["joint"])

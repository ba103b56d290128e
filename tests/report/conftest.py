"""Run folders the report's tests read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.run_folders import write_joint_run, write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three tasks learnt one after another."""
    return write_run(tmp_path / "ps")


@pytest.fixture
def joint(tmp_path: Path) -> Path:
    return write_joint_run(tmp_path / "joint")

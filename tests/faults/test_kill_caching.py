"""kill -9 while token ids are cached: half a file is never read, and what is resumed equals a run that was never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from perdure.backbones import token_rows
from perdure.tasks.sources.folders import is_whole
from perdure.tasks.task import Task
from tests.contract.runs import bits, short_run
from tests.faults.killed import caching_killed_at

METHOD = "inc-lora"
POINTS = [
    *[("tokenised", n) for n in (1, 2)],  # of the first task and of the second
    *[("token-file", n) for n in range(1, 7)],
    *[(f"{when}-rename", n) for n in (1, 2) for when in ("before", "after")],
    ("step", 2),
]


@pytest.fixture(scope="module")
def uncached(tmp_path_factory: pytest.TempPathFactory, small_tasks: list[Task], encoder_folder: Path) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("whole") / "run"
    short_run(out, small_tasks[:2], encoder_folder, METHOD)
    return bits(out)


@pytest.mark.parametrize("point,number", POINTS)
def test_killed_and_resumed(
    point: str,
    number: int,
    tmp_path: Path,
    small_tasks: list[Task],
    encoder_folder: Path,
    uncached: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache, out = tmp_path / "cache", tmp_path / "run"
    assert caching_killed_at(point, number, cache, out, encoder_folder, METHOD), "the run never reached that point"
    for folder in (cache / "tokens").glob("*"):
        assert (
            is_whole(folder) or not folder.is_dir() or "making" in folder.name
        )  # beside its place, where nothing reads it
    monkeypatch.setenv("PERDURE_CACHE", str(cache))
    monkeypatch.setattr(token_rows, "MANY", 1)
    short_run(out, small_tasks[:2], encoder_folder, METHOD)
    assert bits(out) == uncached
    assert len([path for path in (cache / "tokens").iterdir() if path.is_dir()]) == 2, "something half-written was left"

"""Every preset in every trainer: the committed record (benchmarks/trainers) has them all, and cells tried anew agree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.trainers import run

from perdure.methods.table import PRESETS

ROOT = Path(__file__).resolve().parents[2]
RECORD = json.loads((ROOT / "benchmarks" / "trainers" / "record.json").read_text())
ANEW = [(kind, "perdure") for kind in run.KINDS] + [(kind, "ps-lora") for kind in run.KINDS] + [("SFT", "slice")]


def test_the_record_is_of_presets_in_every_trainer_and_nothing_failed() -> None:
    """A preset added later is in it once `benchmarks/trainers/run.py` has tried it."""
    assert set(RECORD) <= set(PRESETS)
    assert {tuple(cells) for cells in RECORD.values()} == {run.KINDS}
    assert [reason for cells in RECORD.values() for reason in cells.values() if reason.startswith("FAILED")] == []


def test_the_papers_methods_work_in_sft() -> None:
    assert [RECORD[name]["SFT"] for name in ("ps-lora", "n-lora", "slice", "perdure")] == [""] * 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "preset"), ANEW)
def test_a_cell_tried_anew(kind: str, preset: str, tmp_path: Path) -> None:
    assert run.outcome(kind, preset, run.folders(tmp_path)) == RECORD[preset][kind]

"""Records that are committed are those of their sweeps: a sweep goes on where they end, and never does them again."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.sweeps.plan import cells, load_sweep

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SWEEPS = {
    "all_presets/sweep.yaml": "all_presets",
    "recipe/sweep.yaml": "recipe",
    "conflict/final.yaml": "conflict/final",
    "conflict/tune.yaml": "conflict/tuning",
    "first_table/final.yaml": "first_table/final",
    "first_table/tune.yaml": "first_table/tuning",
    "language/sweep.yaml": "language",
    "leaderboard/tune.yaml": "leaderboard/tune",
    "leaderboard/runoff.yaml": "leaderboard/runoff",
    "leaderboard/screen.yaml": "leaderboard/screen",
    "leaderboard/finals.yaml": "leaderboard/finals",
    "leaderboard/long.yaml": "leaderboard/long",
    "leaderboard/later.yaml": "leaderboard/later",
    "language_leaderboard/first.yaml": "language_leaderboard/first",
    "claims/compare.yaml": "claims/compare",
    "vision/sweep.yaml": "vision",
}


@pytest.mark.parametrize("sweep", SWEEPS)
def test_every_record_is_of_a_run_of_its_sweep(sweep):
    ids = {cell.id for cell in cells(load_sweep(BENCHMARKS / sweep))}
    recorded = {path.stem for path in (BENCHMARKS / SWEEPS[sweep] / "records").glob("*.json")}
    assert recorded
    assert recorded <= ids

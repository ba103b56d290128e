"""The sweep over every preset leaves none out, and every row of it is a configuration."""

from __future__ import annotations

from pathlib import Path

from perdure.methods.table import PRESETS
from perdure.sweeps.plan import cells, load_sweep

SWEEP = Path(__file__).resolve().parents[2] / "benchmarks" / "all_presets" / "sweep.yaml"


def test_every_preset_is_in_the_sweep_over_all_of_them():
    found = {cell.method: cell.config.method_name for cell in cells(load_sweep(SWEEP))}
    assert found == {name: name for name in PRESETS}, "a new preset needs a row in benchmarks/all_presets/sweep.yaml"

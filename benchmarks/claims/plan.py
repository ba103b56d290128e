"""The claims' sweeps, from claims.yaml and what the leaderboard's tuning chose.

python benchmarks/claims/plan.py          -> compare.yaml (rows x seeds x sequences), many.yaml (more than fifteen tasks)
                                             and grids.yaml (one setting varied)
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from benchmarks.leaderboard import plan as leaderboard  # noqa: E402

from perdure.methods.table import PRESETS  # noqa: E402


def read() -> dict[str, Any]:
    """claims.yaml."""
    return yaml.safe_load((HERE / "claims.yaml").read_text(encoding="utf-8"))


def row(about: Mapping[str, Any], chosen: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A row of the sweep: its preset, the settings chosen for it, and what it changes of them."""
    left_out = about.get("without")
    tuned = {
        key: value for key, value in chosen[about["preset"]].items() if not left_out or not key.startswith(left_out)
    }
    return {"method": about["preset"], **tuned, **({left_out: None} if left_out else {}), **about.get("change", {})}


def setting(preset: str, key: str, tuned: Mapping[str, Any]) -> float:
    """A penalty's setting as tuned, or the preset's own."""
    _, _, penalty, name = key.split(".")
    return float(tuned.get(key, PRESETS[preset].penalties[penalty][name]))


def sweeps(chosen: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """File name -> sweep."""
    claims, common = read(), leaderboard.read("sequences.yaml")
    budget = common["held_back"]["budget_test"]
    own = {"data_seed": claims["cells"]["data_seed"], "budget.test": budget, "evaluation.every_stage": "own"}
    settings = {**common["settings"], **own}
    cells, many = ({key: claims[part][key] for key in ("seeds", "sequences")} for part in ("cells", "many"))
    rows = {name: row(about, chosen) for name, about in claims["rows"].items()}
    varied = {
        f"{name}, {key.rpartition('.')[2]} x {factor:g}": {**rows[name], key: factor * setting(name, key, rows[name])}
        for name, keys in claims["grids"].items()
        for key in keys
        for factor in claims["factors"]
    }
    return {
        "compare": {"name": "claims", "settings": settings, **cells, "methods": rows},
        "many": {
            "name": "many",
            "settings": settings,
            **many,
            "methods": {name: rows[name] for name in claims["many"]["rows"]},
        },
        "grids": {"name": "grids", "settings": settings, **cells, "seeds": cells["seeds"][:1], "methods": varied},
    }


def main() -> None:
    for name, sweep in sweeps(leaderboard.chosen_trials()).items():
        head = "# Written by plan.py; do not edit.\n"
        (HERE / f"{name}.yaml").write_text(head + yaml.safe_dump(sweep, sort_keys=False, width=120), encoding="utf-8")


if __name__ == "__main__":
    main()

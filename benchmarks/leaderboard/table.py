"""How far the leaderboard is, and what tuning has found so far, from the records."""

from __future__ import annotations

import yaml
from benchmarks.records import HERE, records

STEPS = ("tune", "runoff", "screen", "finals", "long")


def progress() -> str:
    """Runs with a record, and failed ones, a step a row."""
    lines = ["| step | runs recorded | failed |", "|---|---|---|"]
    for step in STEPS:
        done = records(f"leaderboard/{step}/records")
        names = {row["id"] for row in done}
        failed = [row for row in records(f"leaderboard/{step}/failed") if row["id"] not in names]
        lines.append(f"| {step} | {len(done)} of {planned(step)} | {len(failed)} |")
    return "\n".join(lines)


def planned(step: str) -> str:
    """How many runs a step's sweep has, '?' before it is written."""
    path = HERE / "leaderboard" / f"{step}.yaml"
    if not path.is_file():
        return "?"
    sweep = yaml.safe_load(path.read_text(encoding="utf-8"))
    settings = sum(len(own.get("trials", [{}])) for own in sweep["methods"].values())
    return str(settings * len(sweep["seeds"]) * len(sweep["sequences"]))

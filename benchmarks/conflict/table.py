"""The table of README.md, from the records of final.yaml (SLICE's notes among them)."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.records import record, records, spread

METRICS = ("average_accuracy", "learning_accuracy", "forgetting", "backward_transfer")


def noted(rows: list[dict[str, Any]], name: str) -> list[float]:
    """What SLICE noted under `name` at every task from the second on, over all runs."""
    return [stage[name] for row in rows for stage in row["notes"].values() if name in stage]


def table() -> str:
    """A row for each sequence and method."""
    rows, mined = records("conflict/final/records"), record("conflict/mined.json")
    which = {",".join(mined[name]["tasks"]): name for name in ("most", "least")}
    lines = [
        "| sequence | method | average accuracy | learning accuracy | forgetting | backward transfer | cosines | fired |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for order in which:
        for method in dict.fromkeys(row["method"] for row in rows):
            own = [row for row in rows if row["method"] == method and row["config"]["order"] == order]
            cells = [spread([row["scores"][metric] for row in own]) for metric in METRICS]
            cosines, fired = noted(own, "slice/cosine"), noted(own, "slice/fired")
            cells.append(f"{min(cosines):+.2f} to {max(cosines):+.2f}" if cosines else "")
            cells.append(f"{100 * statistics.mean(fired):.0f} %" if fired else "")
            lines.append(f"| {which[order]} conflict | {method} | {' | '.join(cells)} |")
    seeds = sorted({row["config"]["seed"] for row in rows})
    for order, name in which.items():
        mean = mined[name]["mean_cosine"]
        lines += [
            "",
            f"{name.capitalize()} conflict, mean cosine of the mined gradients {mean:+.3f}: {order.replace(',', ', ')}.",
        ]
    lines += ["", f"Points; mean ± standard deviation over {len(seeds)} seeds."]
    return "\n".join(lines)

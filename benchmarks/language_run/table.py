"""The table of README.md, from record.json."""

from __future__ import annotations

import math
import statistics
from typing import Any

from benchmarks.records import record, row, spread

WAYS = ("perdure", "script")


def table() -> str:
    """Markdown from the record: the seeds that both ways have, and the difference of their accuracies."""
    found = record("language_run/record.json")
    runs: dict[tuple[str, int], dict[str, Any]] = {(run["way"], run["seed"]): run for run in found["runs"]}
    seeds = sorted(seed for way, seed in runs if way == "perdure" and ("script", seed) in runs)
    head = [
        f"{found['tasks']} tasks of {found['train']} + {found['test']}, seeds: {len(seeds)}",
        "CPU s",
        "of the script's",
    ]
    asked = sum(runs["perdure", seeds[0]]["examples"].values())
    lines = [
        row([*head, "training and loading", "s an answer", f"accuracy at the end, of {asked}"]),
        "|---|---|---|---|---|---|",
    ]
    for way in WAYS:
        own = [runs[way, seed] for seed in seeds]
        whole = statistics.mean(run["seconds"]["all"] for run in own)
        share = statistics.mean(run["seconds"]["all"] / runs["script", run["seed"]]["seconds"]["all"] for run in own)
        rest = statistics.mean(run["seconds"]["the rest"] for run in own)
        each = statistics.mean(run["seconds"]["answering"] / run["answers"] for run in own)
        lines.append(
            row(
                [
                    way,
                    f"{whole:.0f}",
                    f"{share:.2f} x",
                    f"{rest:.0f}",
                    f"{each:.2f}",
                    spread([_mean(run) for run in own]),
                ]
            )
        )
    differences = [100 * (_mean(runs["perdure", seed]) - _mean(runs["script", seed])) for seed in seeds]
    return "\n".join([*lines, "", f"perdure - script: {_difference(differences)}"])


def _mean(run: dict[str, Any]) -> float:
    return statistics.mean(run["asked"].values())


def _difference(points: list[float]) -> str:
    """Mean over seeds, in points, and its standard error."""
    error = f" ± {statistics.stdev(points) / math.sqrt(len(points)):.1f} (standard error)" if len(points) > 1 else ""
    return f"{statistics.mean(points):+.1f}{error} points of accuracy."

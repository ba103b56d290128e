"""The limits stated in the protocol: test examples that tuning has read, and how often a test errs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from perdure.report.sweeps import over_orders
from perdure.report.text import markdown_table
from perdure.state.words import points
from perdure.sweeps.record import outcome_values

Record = Mapping[str, Any]
Overlap = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Suite -> task -> how many test examples it has and the positions of those that were read (overlap.py)."""


def overlap_table(found: Overlap, rows: Sequence[Record]) -> str:
    """The tasks concerned, and every method's average accuracy on the suites concerned, with and without these examples."""
    concerned = {suite: {task: own for task, own in tasks.items() if own["seen"]} for suite, tasks in found.items()}
    concerned = {suite: tasks for suite, tasks in concerned.items() if tasks}
    if not concerned:
        return "None."
    counts = [
        [suite, task, f"{len(own['seen'])} of {own['test']}"]
        for suite, tasks in concerned.items()
        for task, own in tasks.items()
    ]
    parts = markdown_table(["suite", "task", "test examples read before"], counts)
    lines = []
    for suite, tasks in concerned.items():
        own = [row for row in rows if row["config"]["suite"] == suite]
        for method in dict.fromkeys(row["method"] for row in own):
            mine = [row for row in own if row["method"] == method]
            every = over_orders(mine, lambda row: _average(row, {}))
            rest = over_orders(mine, lambda row, tasks=tasks: _average(row, tasks))
            lines.append([suite, method, points(every), points(rest)])
    if lines:
        parts += ["", *markdown_table(["suite", "method", "average accuracy", "without them"], lines)]
    return "\n".join(parts)


def _average(row: Record, without: Mapping[str, Mapping[str, Any]]) -> float:
    """A run's average accuracy, leaving out some test examples of some tasks."""
    return statistics.mean(
        float(np.delete(right, without.get(task, {}).get("seen", [])).mean())
        for task, right in outcome_values(row).items()
    )


def calibration_table(found: Mapping[str, Any]) -> str:
    """One row for each design, one column for each pair of noises."""
    noises = list(dict.fromkeys((row["training"], row["examples"]) for row in found["rows"]))
    lines: dict[tuple[int, int], list[str]] = {}
    for row in found["rows"]:
        lines.setdefault((row["orders"], row["seeds"]), []).append(f"{row['false_positives']:.1%}")
    head = ["orders x seeds", *(f"training {training:g}, examples {examples:g}" for training, examples in noises)]
    table = markdown_table(head, ([f"{orders} x {seeds}", *own] for (orders, seeds), own in lines.items()))
    about = f"{found['studies']} simulated studies each. Noise in points: of a run's training, of a cell's paired difference."
    return "\n".join([*table, "", about])

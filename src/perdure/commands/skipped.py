"""Rows of a task's files that were left out (`bad_rows: skip`): a file in the run's folder says which and why."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from perdure.files.durable import write_lines
from perdure.tasks.task import Task


def write_skipped(folder: Path, tasks: Iterable[Task]) -> None:
    """Write skipped/<task>.jsonl for each task with rows that were left out, one line a row."""
    for task in tasks:
        if task.skipped:
            write_lines(folder / "skipped" / f"{task.name}.jsonl", ({"problem": problem} for problem in task.skipped))

"""Six methods on one sequence, from the records of sweep.yaml."""

from __future__ import annotations

from benchmarks.by_task import by_task

ORDER = ("seq-lora", "inc-lora", "o-lora", "n-lora", "ps-lora", "slice")


def table() -> str:
    """Scores by task."""
    return by_task("vision", ORDER)

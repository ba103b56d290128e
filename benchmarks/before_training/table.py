"""The table of README.md, from record.json."""

from __future__ import annotations

from benchmarks.records import record, row


def table() -> str:
    """What is waited for, CPU seconds and the goal."""
    found = record("before_training/record.json")
    twelfth = found["twelfth"]
    lines = [row(["waiting for", "CPU s", "goal"]), "|---|---|---|"]
    cells = [
        (
            f"everything before training of {found['rows']:,} rows of a CSV, after imports",
            f"{found['before_training']:.1f}",
            "3",
        ),
        ("`perdure --help`", f"{found['help']:.2f}", ".2"),
        ("`perdure show`, a run of twelve tasks", f"{found['show']:.2f}", ".5"),
        (
            f"`add` of the twelfth task ({twelfth['training and scoring']:.1f} s of training and scoring in it)",
            f"{twelfth['add']:.1f}: {found['twelfth_ratio']:.2f} x",
            "1.3 x",
        ),
    ]
    return "\n".join([*lines, *(row(cell) for cell in cells)])

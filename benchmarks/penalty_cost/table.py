"""The table of README.md, from record.json."""

from __future__ import annotations

from benchmarks.records import record


def table() -> str:
    """The record as a Markdown table."""
    found = record("penalty_cost/record.json")
    lines = [
        "| shape | variant | seconds | time / naive (least, largest) | wall time / naive | extra MB | extra memory / naive |",
        "|---|---|---|---|---|---|---|",
    ]
    for shape, rows in found["results"].items():
        for name, row in rows.items():
            spread = f"{row['time_ratio']:.3f} ({row['time_ratio_min']:.3f}, {row['time_ratio_max']:.3f})"
            lines.append(
                f"| {shape} | {name} | {row['seconds']:.3f} | {spread} | {row['wall_ratio']:.3f} "
                f"| {row['extra_bytes'] / 1e6:.1f} | {row['memory_ratio']:.3f} |"
            )
    about = f"torch {found['torch']}, {found['device']}, {found['threads']} thread(s), {found['rounds']} rounds"
    return "\n".join([*lines, "", f"{about}, commit {found['commit']}."])

"""The table of README.md, from record.json."""

from __future__ import annotations

import statistics

from benchmarks.records import record, row


def table() -> str:
    """Markdown from the record: medians, and the median of the paired ratios."""
    found = record("resume/record.json")
    runs = found["runs"]
    lines = [row([f"{found['model']}, {len(runs)} pairs", "CPU s", "of the plain load", "MB"]), "|---|---|---|---|"]
    for way in runs[0]:
        seconds = statistics.median(run[way]["seconds"] for run in runs)
        ratio = statistics.median(run[way]["seconds"] / run["plain load"]["seconds"] for run in runs)
        memory = statistics.median(run[way]["MB"] for run in runs)
        lines.append(row([way, f"{seconds:.1f}", f"{ratio:.2f} x", f"{memory:.0f}"]))
    return "\n".join(lines)

"""The table of README.md, from record.json."""

from __future__ import annotations

from benchmarks.records import record, row


def table() -> str:
    """Markdown from the record: time and memory of both ways, and the ratios."""
    found = record("large_data/record.json")
    head = [f"{found['rows']:,} rows", "CPU s", "of `datasets`", "MB", "of `datasets`"]
    lines = [row(head), "|---|---|---|---|---|"]
    for way, run in found["runs"].items():
        other = found["runs"][way.replace("perdure", "datasets")]
        time, memory = run["seconds"], run["MB"]
        cells = [
            way,
            f"{time:.1f}",
            f"{time / other['seconds']:.2f} x",
            f"{memory:.0f}",
            f"{memory / other['MB']:.2f} x",
        ]
        lines.append(row(cells))
    return "\n".join(lines)

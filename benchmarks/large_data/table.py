"""The table of README.md, from record.json."""

from __future__ import annotations

from benchmarks.records import record, row


def table() -> str:
    """Markdown from the record."""
    found = record("large_data/record.json")
    runs = found["runs"]
    lines = [row([f"{found['rows']:,} rows", "CPU s", "MB", "of `datasets`"]), "|---|---|---|---|"]
    for name, run in runs.items():
        other = runs[name.replace("perdure", "datasets")]
        of = f"{run['seconds'] / other['seconds']:.2f} x, {run['MB'] / other['MB']:.2f} x" if run is not other else ""
        lines.append(row([name, f"{run['seconds']:.1f}", f"{run['MB']:.0f}", of]))
    return "\n".join(lines)

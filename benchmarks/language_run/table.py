"""The table of README.md, from record.json."""

from __future__ import annotations

import statistics

from benchmarks.records import record, row


def table() -> str:
    """Markdown from the record."""
    found = record("language_run/record.json")
    whole = found["runs"]["script"]["seconds"]["all"]
    head = [f"{len(found['tasks'])} tasks of {found['train']} + {found['test']}", "CPU s", "of the script's"]
    lines = [row([*head, "training and loading", "s an answer", "accuracy at the end"]), "|---|---|---|---|---|---|"]
    for name, run in found["runs"].items():
        seconds, score = run["seconds"], statistics.mean(run["scores"].values())
        cells = [name, f"{seconds['all']:.0f}", f"{seconds['all'] / whole:.2f} x", f"{seconds['the rest']:.0f}"]
        lines.append(row([*cells, f"{seconds['answering'] / found['answers']:.2f}", f"{100 * score:.1f}"]))
    return "\n".join(lines)

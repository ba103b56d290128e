"""The months of docs/own-data.md, from record.json."""

from __future__ import annotations

from benchmarks.records import record, row

from perdure.state.words import interval, points

MONTHS = {"airlines": "January", "medicines": "February", "questions": "March"}


def table() -> str:
    """One row a month."""
    found = record("months/record.json")
    head = ["month", "task", "learnt from", "scored on", "baseline", "when learnt", "now", "change, 95 % interval"]
    lines = [row(head), f"|{'---|' * len(head)}"]
    for task in found["standing"]:
        sizes, change = found["sizes"][task["task"]], points(task["change"])
        cells = [MONTHS[task["task"]], task["task"], str(sizes["train"]), str(sizes["test"])]
        cells += [points(task[key]) for key in ("baseline", "when_learnt", "now")]
        cells.append("just learnt" if task["change"] is None else f"{change} ({interval(task['interval'])})")
        lines.append(row(cells))
    return "\n".join(lines)


def noticed() -> str:
    """What was odd about the files, a line each."""
    return "\n".join(f"- {line}" for line in record("months/record.json")["noticed"] if "no validation" not in line)

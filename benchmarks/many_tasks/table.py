"""The tables of README.md, from record.json and, for before, before.json."""

from __future__ import annotations

from typing import Any

from benchmarks.records import record, row

NAMES = ("show", "scores", "predict", "report", "add", "resume")


def table() -> str:
    """Files, bytes and the commands, at 3 tasks and at 100: before these changes and now."""
    before, now = record("many_tasks/before.json")["commands"], record("many_tasks/record.json")["commands"]
    few, many = now
    found = [(which, count) for which in (before, now) for count in (few, many)]
    head = [f"{words}, {count} tasks" for words in ("before", "now") for count in (few, many)]
    lines = [row(["", *head]), row(["---"] * 5)]
    files = [f"{which[count]['files'] / (int(count) + 1):.1f}" for which, count in found]
    lines.append(row(["files a stage", *files]))
    for name, key in (("manifest.json, KB", "manifest"), ("all that was written to it, KB", "manifest_written")):
        lines.append(row([name, *(f"{which[count][key] / 1e3:.0f}" for which, count in found)]))
    lines.append(
        row(["report.html, MB", *(f"{which[count]['report_bytes']['html'] / 1e6:.2f}" for which, count in found)])
    )
    lines += [row([f"`{name}`, s", *(f"{which[count][name]:.2f}" for which, count in found)]) for name in NAMES]
    return "\n".join(lines)


def stages() -> str:
    """Every preset: CPU seconds of an early and a late stage, and the bytes of its state."""
    found = record("many_tasks/record.json")
    tasks = found["tasks"]
    head = ["preset", "stage, early", f"at {tasks} tasks", "ratio", "state at 3, KB", f"at {tasks}, KB"]
    return "\n".join([row(head), row(["---"] * 6), *(_preset(name, cell) for name, cell in found["presets"].items())])


def _preset(name: str, cell: dict[str, Any]) -> str:
    early, late = cell["early"], cell["late"]
    sizes = [f"{size / 1e3:.0f}" for size in cell["state"]]
    return row([f"`{name}`", f"{early:.3f}", f"{late:.3f}", f"{late / early:.2f}", *sizes])

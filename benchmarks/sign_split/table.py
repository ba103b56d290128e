"""The table of README.md, from record.json: means over the tasks from the second on."""

from __future__ import annotations

import statistics

from benchmarks.records import record


def table() -> str:
    """A row for each part of an update: its energy, and what old tasks and the new one score with it alone."""
    found = record("sign_split/record.json")["rows"]
    lines = ["| part of the update | smallest, share | energy | old tasks | new task |", "|---|---|---|---|---|"]
    for part, share in dict.fromkeys((row["part"], row["share"]) for row in found):
        own = [row for row in found if (row["part"], row["share"]) == (part, share)]
        energy, old, new = (statistics.mean(row[key] for row in own) for key in ("energy", "old", "new"))
        lines.append(f"| {part} | {share:.0%} | {energy:.1%} | {100 * old:.1f} | {100 * new:.1f} |")
    return "\n".join(
        [*lines, "", f"Points; means over {len({row['stage'] for row in found})} tasks, 100 test examples each."]
    )

"""Candidates and bounds on each tuning sequence."""

from __future__ import annotations

from benchmarks.records import records

METRICS = ("average_accuracy", "learning_accuracy", "forgetting")


def table() -> str:
    return candidates("recipe/records")


def candidates(folder: str) -> str:
    """One row a candidate of the records in `folder`, best first on standard-cl."""
    rows = records(folder)
    found = {(row["method"], row["config"]["suite"]): row for row in rows}
    suites = ("standard-cl", "quickstart")
    names = list(dict.fromkeys(row["method"] for row in rows))
    names.sort(
        key=lambda name: -found[name, suites[0]]["scores"]["average_accuracy"] if (name, suites[0]) in found else 0
    )
    lines = [
        "| candidate | " + " | ".join(f"{s}: average | learning | forgetting" for s in suites) + " | CPU s |",
        "|---" * (2 + 3 * len(suites)) + "|",
    ]
    for name in names:
        own = [found.get((name, suite)) for suite in suites]
        cells = [shown(row["scores"][metric] if row else None) for row in own for metric in METRICS]
        seconds = [row["processor_seconds"] for row in own if row and "processor_seconds" in row]
        lines.append(f"| {name} | {' | '.join(cells)} | {f'{sum(seconds) / len(seconds):.0f}' if seconds else '-'} |")
    return "\n".join(lines)


def shown(value: float | None) -> str:
    """Points, or '-' where it was not measured."""
    return "-" if value is None else f"{100 * value:.1f}"

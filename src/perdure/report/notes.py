"""Numbers that the parts of a method noted about a stage (`ctx.note`), as a table; those of single modules as their range."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

from perdure.files.durable import finite_or_none
from perdure.report.html import Table
from perdure.report.runs import Run


def table_of(run: Run) -> Table | None:
    """One row a stage, one column a note; None if nothing was noted."""
    stages = [summary(notes) for notes in run.notes]
    names = sorted({name for notes in stages for name in notes})
    body = [
        [stage, *(notes.get(n, "-") for n in names)] for stage, notes in zip(run.scores.stages, stages, strict=True)
    ]
    return Table(f"{run.name}: numbers its parts noted in each stage", ["Stage", *names], body) if names else None


def summary(notes: Mapping[str, float]) -> dict[str, str]:
    """`part/number` as it is; `part/number/<module>` as the median and range over the modules."""
    summaries: dict[str, str] = {}
    by_module: dict[str, list[float]] = {}
    for name, value in notes.items():
        part, _, rest = name.partition("/")
        number, _, module = rest.partition("/")
        if finite_or_none(value) is None:
            continue
        if module:
            by_module.setdefault(f"{part}/{number} of modules", []).append(value)
        else:
            summaries[name] = f"{value:.3g}"
    for name, values in by_module.items():
        summaries[name] = f"{median(values):.3g} ({min(values):.3g} to {max(values):.3g})"
    return summaries

"""Numbers the parts of a method noted about a stage (`ctx.note`), as a table; those of single modules as their range."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

from perdure.files.durable import finite_or_none
from perdure.report.html import Html, table
from perdure.report.runs import Run


def table_of(run: Run) -> Html | None:
    """One row a stage, one column a note; None if nothing was noted."""
    stages = [summary(notes) for notes in run.notes]
    names = sorted({name for notes in stages for name in notes})
    if not names:
        return None
    body = (
        [stage, *(notes.get(n, "-") for n in names)] for stage, notes in zip(run.scores.stages, stages, strict=True)
    )
    return table(f"{run.name}: numbers its parts noted in each stage", ["Stage", *names], body)


def summary(notes: Mapping[str, float]) -> dict[str, str]:
    """`part/number` as it is; `part/number/<module>` as median and range over the modules."""
    found: dict[str, str] = {}
    modules: dict[str, list[float]] = {}
    for name, value in notes.items():
        part, _, rest = name.partition("/")
        number, _, module = rest.partition("/")
        if finite_or_none(value) is None:
            continue
        if module:
            modules.setdefault(f"{part}/{number} of modules", []).append(value)
        else:
            found[name] = f"{value:.3g}"
    for name, values in modules.items():
        found[name] = f"{median(values):.3g} ({min(values):.3g} to {max(values):.3g})"
    return found

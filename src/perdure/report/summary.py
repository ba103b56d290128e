"""The report as Markdown: the content of the page without its charts."""

from __future__ import annotations

from collections.abc import Sequence

from perdure.report import settings
from perdure.report.changes import change_table, confusion_table
from perdure.report.runs import Run
from perdure.report.tasks import standing_of
from perdure.report.text import escaped, markdown, markdown_table


def summary(runs: Sequence[Run]) -> str:
    """Warnings, scores with the legend, changed answers, and what was run."""
    title, scores = markdown([run.scores for run in runs]).split("\n", 1)
    warnings = [line for text in settings.warnings(runs) for line in ("", f"> {escaped(text)}")]
    standing = _standing(runs[0]) if len(runs) == 1 else []
    changed = [line for run in runs for line in _changed(run)]
    return "\n".join([title, *warnings, *standing, scores.rstrip("\n"), *changed, *_what_was_run(runs)]) + "\n"


def _standing(run: Run) -> list[str]:
    found = standing_of(run)
    lines = ["", "## Tasks", "", escaped(found["state"]), ""]
    if table := found["table"]:
        lines += [*markdown_table(table.header, table.rows), "", escaped(table.caption), ""]
    if found["steps"]:
        lines += ["What to do:", "", *(f"- {escaped(step)}" for step in found["steps"]), ""]
    for texts in found["texts"]:
        lines += [escaped(f"{texts.caption}:"), "", *markdown_table(texts.header, texts.rows), ""]
    if found["aside"]:
        lines += ["Not part of the run:", "", *(f"- {escaped(line)}" for line in found["aside"]), ""]
    return [*lines, "## Metrics"]


def _changed(run: Run) -> list[str]:
    if not run.changes:
        return []
    lines = ["", f"## Right, then wrong: {escaped(run.name)}", "", *markdown_table(*change_table(run.changes))]
    head, lost = confusion_table(run.changes)
    return [*lines, "", *markdown_table(head, lost)] if lost else lines


def _what_was_run(runs: Sequence[Run]) -> list[str]:
    differ, same = settings.compared(runs)
    lines = ["", "## What was run", ""]
    if differ:
        lines += [*markdown_table(["Setting", *(run.name for run in runs)], [[k, *v] for k, v in differ.items()]), ""]
    lines += (f"- **{key}**: {escaped(value)}" for key, value in same.items())
    if warnings := [f"- {escaped(f'{run.name}: {text}')}" for run in runs for text in run.data_warnings]:
        lines += ["", "## Warnings about the data", "", *warnings]
    return lines

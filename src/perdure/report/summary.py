"""The report as Markdown: what the page says, without charts."""

from __future__ import annotations

from collections.abc import Sequence

from perdure.report import settings
from perdure.report.runs import Run
from perdure.report.text import escaped, markdown, markdown_table


def summary(runs: Sequence[Run]) -> str:
    """What does not compare, scores with the legend, changed answers, and what was run."""
    title, scores = markdown([run.scores for run in runs]).split("\n", 1)
    notices = [line for text in settings.warnings(runs) for line in ("", f"> {escaped(text)}")]
    changed = [line for run in runs for line in _changed(run)]
    return "\n".join([title, *notices, scores.rstrip("\n"), *changed, *_what(runs)]) + "\n"


def _changed(run: Run) -> list[str]:
    if not run.changes:
        return []
    head = ["Task", "Examples", "Still right", "Became wrong", "Became right", "Still wrong"]
    body = [
        [c.task, *map(str, (c.examples, c.still_right, c.became_wrong, c.became_right, c.still_wrong))]
        for c in run.changes
    ]
    lines = ["", f"## Right, then wrong: {escaped(run.name)}", "", *markdown_table(head, body)]
    lost = [[c.task, x.label, x.predicted, str(x.count)] for c in run.changes for x in c.confusions]
    if lost:
        lost.sort(key=lambda row: -int(row[-1]))
        lines += ["", *markdown_table(["Task", "Right label", "Answer at the end", "Examples"], lost)]
    return lines


def _what(runs: Sequence[Run]) -> list[str]:
    differ, same = settings.compared(runs)
    lines = ["", "## What was run", ""]
    if differ:
        lines += [*markdown_table(["Setting", *(run.name for run in runs)], ([k, *v] for k, v in differ.items())), ""]
    lines += (f"- **{key}**: {escaped(value)}" for key, value in same.items())
    noticed = [(run.name, text) for run in runs for text in settings.noticed(run)]
    if not noticed:
        return lines
    return [*lines, "", "## Noticed about the data", "", *(f"- {escaped(f'{name}: {text}')}" for name, text in noticed)]

"""What the page shows, section by section: texts, tables, and charts with their numbers as a table (see report.html)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from perdure.report import charts, notes, settings, steps
from perdure.report.changes import change_table, confusion_table
from perdure.report.charts import Chart
from perdure.report.html import Table
from perdure.report.runs import Run
from perdure.report.words import AFTER, MANY, headings, rows
from perdure.state.words import points

CONFUSIONS = 12
"""How many confusions of a run are listed; the rest is counted."""


class Figure(NamedTuple):
    """A chart in the element `id`, and its numbers to unfold."""

    id: str
    chart: Chart
    numbers: Table | None


class Figures(list[Figure]):
    """The figures of a page, in their order."""

    def add(self, chart: Chart, numbers: Table | None = None) -> Figure:
        """The chart as the page's next figure."""
        self.append(Figure(f"chart-{len(self) + 1}", chart, numbers))
        return self[-1]

    def by_id(self) -> dict[str, dict[str, Any]]:
        """What page.js draws in each element."""
        return {f.id: {"data": f.chart.data, "layout": f.chart.layout, "height": f.chart.height} for f in self}


def comparison(runs: Sequence[Run], figures: Figures) -> dict[str, Any]:
    """The metrics of all runs: side by side as a table and bars, or as the `tiles` of a single run."""
    titles = headings([run.scores for run in runs])
    body = [[run.name, *(points(getattr(run.scores, metric)) for metric in titles)] for run in runs]
    caption = "Metrics in points (100 x the fraction). Less forgetting is better; of all others, more."
    shown = [m for m in ("average_accuracy", "forgetting") if any(getattr(r.scores, m) is not None for r in runs)]
    several = len(runs) > 1
    return {
        "warnings": settings.warnings(runs),
        "metrics": Table(caption, ["Run", *titles.values()], body) if several else None,
        "tiles": list(zip(titles.values(), body[0][1:], strict=True)),
        "bars": [figures.add(charts.metric_bars(runs, m, titles[m])) for m in shown if several],
    }


def over_the_sequence(runs: Sequence[Run], figures: Figures) -> list[Figure]:
    """Average accuracy and forgetting while tasks are learnt; empty if no run learnt one task after another."""
    curves = [(run.name, run.over_stages()) for run in runs]
    longest = max(len(curve) for _, curve in curves)
    if longest < 2:
        return []
    head = ["Run", *(f"{s + 1} learnt" for s in range(longest))]
    drawn = []
    titles = headings([run.scores for run in runs])
    for which, metric in enumerate((titles["average_accuracy"], titles["forgetting"])):
        if all(pair[which] is None for _, curve in curves for pair in curve):
            continue  # scored after the last stage only: forgetting is unknown
        title = f"{metric} over the tasks learnt so far"
        body = [
            [name, *(points(curve[s][which]) if s < len(curve) else "-" for s in range(longest))]
            for name, curve in curves
        ]
        if which == 0 and len(runs) == 1:
            body.append(["when learnt", *map(points, runs[0].when_learnt())])
        drawn.append(figures.add(charts.over_stages(runs, which, title), Table(f"{title}, in points", head, body)))
    return drawn


def one_run(run: Run, score_range: tuple[float, float], figures: Figures) -> dict[str, Any]:
    """Everything about one run: score matrix, tasks over the stages, training, changed answers, notes."""
    name, scores = run.name, run.scores
    many = len(scores.tasks) > MANY
    matrix = Table(
        f"{name}: {scores.split} score of each task after each stage, in points; the last row is the result",
        [AFTER, *scores.tasks],
        [[stage, *map(points, row)] for stage, row in rows(scores)],
        bold_last=True,
    )
    changes = Table(
        f"{name}: {scores.split} examples, right after their task was learnt and at the end", *change_table(run.changes)
    )
    head, lost = confusion_table(run.changes)
    confusions = f"{name}: answers that were right when learnt and are wrong at the end"
    unlisted = lost[CONFUSIONS:]
    tasks_of = {
        why: [t for t, reason in run.without_changes.items() if reason == why] for why in run.without_changes.values()
    }
    return {
        "name": name,
        "matrix": figures.add(charts.score_heat_map(run, *score_range), None if many else matrix),
        "many": many,
        "lines": figures.add(charts.task_lines(run)) if len(scores.stages) > 1 and not many else None,
        "training": [figures.add(chart) for chart in steps.step_charts(run)] if any(run.logs) else [],
        "steps": Table(f"{name}: training by stage", *steps.step_table(run)) if any(run.logs) else None,
        "bin_size": steps.bin_size(run),
        "changes": figures.add(charts.changed_answers(run), changes) if run.changes else None,
        "confusions": Table(confusions, head, lost[:CONFUSIONS], text_columns=3) if lost else None,
        "more_confusions": f"{sum(int(row[-1]) for row in unlisted)} more examples in {len(unlisted)} other pairs; "
        "all are in report.json."
        if unlisted
        else None,
        "not_compared": "; ".join(f"{', '.join(tasks)} ({why})" for why, tasks in tasks_of.items()),
        "notes": notes.table_of(run),
    }


def what_was_run(runs: Sequence[Run]) -> dict[str, Any]:
    """Settings in which the runs differ, then those they share; sizes of the data, and what was odd about them."""
    differ, same = settings.compared(runs)
    head = ["Setting", *(run.name for run in runs)]
    caption = "Settings all runs share" if len(runs) > 1 else "Settings"
    tables = [Table(caption, ["Setting", "Value"], list(same.items()), text_columns=2)]
    if differ:
        body = [[key, *values] for key, values in differ.items()]
        tables.insert(0, Table("Settings in which the runs differ", head, body, text_columns=len(head)))
    data = []
    for run in runs:
        sizes, odd = settings.size_rows(run), run.data_warnings
        known = run is not runs[0] and sizes == settings.size_rows(runs[0])
        header = ["Task", "Train", "Validation", "Test"]
        table = None if known else Table(f"Examples of each task ({run.name})", header, sizes)
        if table or odd:
            data.append((run.name, table, odd))
    return {"settings": tables, "data": data}

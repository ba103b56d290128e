"""The sections of the page: from runs to HTML, every chart with its numbers as a table next to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from perdure.report import charts, notes, settings, steps
from perdure.report.changes import change_table, confusion_table
from perdure.report.charts import Chart
from perdure.report.html import Html, join, table, tag
from perdure.report.runs import Run
from perdure.report.words import AFTER, METRICS, points, rows
from perdure.training.metrics import FORMULAS

CONFUSIONS = 12
"""So many confusions of a run are listed; the rest is counted."""


@dataclass
class Figures:
    """The plotly figures of a page, by the id of the element each is drawn in."""

    drawn: dict[str, dict[str, Any]] = field(default_factory=dict)

    def figure(self, chart: Chart, numbers: Html | None = None) -> Html:
        """A chart with its title, its words for who cannot see it, and its numbers to unfold."""
        number = len(self.drawn) + 1
        self.drawn[f"chart-{number}"] = {"data": chart.data, "layout": chart.layout, "height": chart.height}
        size = f"height: {chart.height}px" + (f"; min-width: {chart.min_width}px" if chart.min_width else "")
        drawing = tag(
            "div",
            id=f"chart-{number}",
            class_="chart",
            role="img",
            style=size,
            aria_label=f"{chart.title}. {chart.summary}",
        )
        if chart.min_width:
            drawing = tag("div", drawing, class_="scroll", role="region", tabindex=0, aria_label=chart.title)
        return tag("figure", tag("figcaption", chart.title), drawing, folded("Numbers as a table", numbers))


def comparison(runs: Sequence[Run], figures: Figures) -> Html:
    """The metrics of all runs side by side, as table and bars."""
    body = [[run.name, *(points(getattr(run.scores, metric)) for metric in METRICS)] for run in runs]
    caption = "Metrics in points (100 x the fraction). Less forgetting is better; of all others, more."
    parts: list[Html] = [*(tag("p", text, class_="warning") for text in settings.warnings(runs))]
    if len(runs) == 1:
        tiles = (tag("div", tag("dt", METRICS[m]), tag("dd", points(getattr(runs[0].scores, m)))) for m in METRICS)
        parts.append(tag("dl", join(tiles), class_="tiles"))
    else:
        parts.append(table(caption, ["Run", *METRICS.values()], body))
        shown = [m for m in ("average_accuracy", "forgetting") if any(getattr(r.scores, m) is not None for r in runs)]
        bars = [figures.figure(charts.metric_bars(runs, m, METRICS[m])) for m in shown]
        parts.append(tag("div", join(bars), class_="charts"))
    parts.append(tag("p", "What each number means: ", tag("a", "legend", href="#legend"), ".", class_="note"))
    return _section("Scores", "scores", *parts)


def what_was_run(runs: Sequence[Run]) -> Html:
    """Settings in which the runs differ, then those they share, then sizes of the data."""
    differ, same = settings.compared(runs)
    parts = []
    if differ:
        caption = "Settings in which the runs differ"
        head = ["Setting", *(run.name for run in runs)]
        body = ([key, *values] for key, values in differ.items())
        parts.append(tag("div", table(caption, head, body, text_columns=len(head)), class_="settings"))
    caption = "Settings all runs share" if len(runs) > 1 else "Settings"
    parts.append(tag("div", table(caption, ["Setting", "Value"], same.items(), text_columns=2), class_="settings"))
    for run in runs:
        told = _data(run, settings.size_rows(run), None if run is runs[0] else settings.size_rows(runs[0]))
        parts += [tag("h3", f"The data ({run.name})"), *told] if told else []
    return _section("What was run", "what", *parts)


def _data(run: Run, sizes: list[list[str]], known: list[list[str]] | None) -> list[Html]:
    """The sizes of a run's tasks, unless they are `known`, and what was odd about the data."""
    head = ["Task", "Train", "Validation", "Test"]
    shown = [] if sizes == known else [table(f"Examples of each task ({run.name})", head, sizes, text_columns=1)]
    odd = settings.noticed(run)
    return [*shown, tag("ul", join(tag("li", text) for text in odd))] if odd else shown


def over_the_sequence(runs: Sequence[Run], figures: Figures) -> Html | None:
    """Average accuracy and forgetting while tasks are learnt; nothing if no run learnt one task after another."""
    curves = [(run.name, run.over_stages()) for run in runs]
    longest = max(len(curve) for _, curve in curves)
    if longest < 2:
        return None
    drawn = []
    for which, title in enumerate(
        ("Average accuracy over the tasks learnt so far", "Forgetting over the tasks learnt so far")
    ):
        if all(pair[which] is None for _, curve in curves for pair in curve):
            continue  # scored after the last stage only: nothing can be seen to be forgotten
        body = [
            [name, *(points(curve[s][which]) if s < len(curve) else "-" for s in range(longest))]
            for name, curve in curves
        ]
        head = ["Run", *(f"{s + 1} learnt" for s in range(longest))]
        drawn.append(figures.figure(charts.over_stages(runs, which, title), table(f"{title}, in points", head, body)))
    return _section("Over the sequence", "sequence", tag("div", join(drawn), class_="charts"))


def one_run(run: Run, number: int, scale: tuple[float, float], figures: Figures) -> Html:
    """Everything about one run: score matrix, tasks over stages, training, changed answers, notes."""
    matrix = [[name, *map(points, row)] for name, row in rows(run.scores)]
    caption = (
        f"{run.name}: {run.scores.split} score of each task after each stage, in points; the last row is the result"
    )
    heat = figures.figure(
        charts.score_heat_map(run, *scale), table(caption, [AFTER, *run.scores.tasks], matrix, bold_last=True)
    )
    note = "Outlined cells: the stage that learnt the task. Above them the task was not learnt yet, below them it was."
    parts: list[Html | None] = [tag("h3", "Score matrix"), heat, tag("p", note, class_="note")]
    if len(run.scores.stages) > 1:
        parts += [
            tag("h3", "Tasks over the stages"),
            figures.figure(charts.task_lines(run)),
            tag("p", "The larger marker is the stage that learnt the task.", class_="note"),
        ]
    parts += [tag("h3", "Training"), *_training(run, figures), tag("h3", "Right, then wrong"), *_changed(run, figures)]
    if noted := notes.table_of(run):
        parts += [tag("h3", "Numbers the method noted"), noted]
    return _section(f"Run: {run.name}", f"run-{number}", *parts)


def legend() -> Html:
    """Each metric's one formula."""
    entries = (join([tag("dt", title), tag("dd", FORMULAS[metric])]) for metric, title in METRICS.items())
    intro = (
        "a[s,t] is the score on task t after stage s, a fraction of 1 written in points; T is the last stage and the "
        "number of tasks. A dash stands where a number has no meaning. Curves over the sequence are the same formulas "
        "over the tasks learnt so far."
    )
    return _section("Legend", "legend", tag("p", intro), tag("dl", join(entries), class_="legend"))


def folded(title: str, content: Html | None) -> Html | None:
    """Content to unfold; None for None."""
    return None if content is None else tag("details", tag("summary", title), content)


def _training(run: Run, figures: Figures) -> list[Html]:
    if not any(run.logs):
        return [tag("p", "No optimiser steps were logged.")]
    numbers = table(f"{run.name}: training by stage", steps.step_header(run), steps.step_rows(run))
    drawn = [figures.figure(chart) for chart in steps.step_charts(run)]
    size = steps.bin_size(run)
    parts = [tag("div", join(drawn), class_="charts")]
    if size > 1:
        parts.append(tag("p", f"Each point is the mean of up to {size} neighbouring steps.", class_="note"))
    return [*parts, tag("details", tag("summary", "Numbers by stage as a table"), numbers)]


def _changed(run: Run, figures: Figures) -> list[Html]:
    parts: list[Html] = []
    if run.changes:
        caption = f"{run.name}: {run.scores.split} examples, right after their task was learnt and at the end"
        parts += [
            figures.figure(charts.changed_answers(run), table(caption, *change_table(run.changes))),
            *_confusions(run),
        ]
    if run.without_changes:
        why: dict[str, list[str]] = {}
        for task, reason in run.without_changes.items():
            why.setdefault(reason, []).append(task)
        text = "; ".join(f"{', '.join(tasks)} ({reason})" for reason, tasks in why.items())
        parts.append(tag("p", f"Not compared: {text}.", class_="note"))
    return parts


def _confusions(run: Run) -> list[Html]:
    head, lost = confusion_table(run.changes)
    if not lost:
        return [tag("p", "No answer that was right became wrong.")]
    rest = sum(int(row[-1]) for row in lost[CONFUSIONS:])
    caption = f"{run.name}: answers that were right when learnt and are wrong at the end"
    numbers = table(caption, head, lost[:CONFUSIONS], text_columns=3)
    more = tag(
        "p", f"{rest} more examples in {len(lost) - CONFUSIONS} other pairs; all are in report.json.", class_="note"
    )
    return [numbers, more] if rest else [numbers]


def _section(title: str, name: str, *children: Html | None) -> Html:
    return tag("section", tag("h2", title, id=f"{name}-title"), *children, id=name, aria_labelledby=f"{name}-title")

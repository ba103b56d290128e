"""The report's charts, as plotly figures in plain values.

A colour is written `var(--name)`: the page's script puts the theme's colour in its place (page.js), so that one figure
serves light and dark. Axes are numeric with names as tick texts: a task called '2024' or '1e5' stays a name. Colour is
never alone: lines differ in marker and dash, bars in pattern, and every cell and bar carries its number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from perdure.report.runs import Run
from perdure.report.words import plain, points, rows

SERIES = [f"var(--series-{i})" for i in range(8)]
MARKERS = ["circle", "square", "diamond", "triangle-up", "x", "triangle-down", "star"]
DASHES = ["solid", "dash", "dot", "dashdot", "longdash"]
HEAT = [[i / 3, f"var(--heat-{i})"] for i in range(4)]
NAME = 22
"""Names longer than this are shortened inside charts; the tables have them whole."""


@dataclass(frozen=True)
class Chart:
    """One figure of the page.

    Args:
        title: what is shown.
        summary: the chart in words, for who cannot see it.
        data, layout: plotly's.
        height: in pixels.
        min_width: in pixels; a narrower window scrolls the chart sideways.
    """

    title: str
    summary: str
    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    height: int = 320
    min_width: int = 0


def shown(name: str) -> str:
    """A name as plotly shows it: plain text, shortened; plotly reads a little HTML, so that is escaped.

    What is left out is in the middle: names of runs of one method differ at their ends.
    """
    text = plain(name)
    return escape(text if len(text) <= NAME else f"{text[:8]}…{text[8 + 1 - NAME :]}", quote=False)


def metric_bars(runs: Sequence[Run], metric: str, title: str) -> Chart:
    """One metric, a bar a run that has it, the first run on top."""
    known = [run for run in runs if getattr(run.scores, metric) is not None]
    values = [getattr(run.scores, metric) for run in known]
    names = [run.name for run in known]
    bars = {
        "type": "bar",
        "orientation": "h",
        "y": list(range(len(known))),
        "x": [100 * v for v in values],
        "text": [points(v) for v in values],
        "textposition": "outside",
        "cliponaxis": False,
        "hoverinfo": "skip",
        "marker": {"color": "var(--series-0)"},
        "width": 0.62,
    }
    layout = {
        "xaxis": _axis("points", rangemode="tozero"),
        "yaxis": {**_ticks(names), "autorange": "reversed", "showgrid": False},
        "showlegend": False,
        "bargap": 0.3,
        "margin": {"l": 8, "r": 48, "t": 16, "b": 8},
    }
    said = "; ".join(f"{name} {points(v)}" for name, v in zip(names, values, strict=True))
    return Chart(title, f"Bar chart, in points: {said}.", [bars], layout, height=90 + 34 * len(known))


def over_stages(runs: Sequence[Run], which: int, title: str) -> Chart:
    """Average accuracy (`which` 0) or forgetting (1) over the tasks learnt so far, a line a run; joint training is level."""
    lines, said = [], []
    stages = max((len(run.scores.stages) for run in runs), default=1)
    for number, run in enumerate(runs):
        values = [pair[which] for pair in run.over_stages()]
        joint = run.scores.average_accuracy if not values and which == 0 else None
        if joint is not None:
            xs, values = [1.0, float(stages)], [joint, joint]
        else:
            xs = [float(s + 1) for s in range(len(values))]
        if not any(v is not None for v in values):
            continue
        hover = [f"{shown(run.name)}: {points(v)} after stage {x:.0f}" for x, v in zip(xs, values, strict=True)]
        lines.append(_line(number, run.name, xs, [None if v is None else 100 * v for v in values], hover))
        known = [v for v in values if v is not None]
        said.append(f"{run.name} from {points(known[0])} to {points(known[-1])}")
    layout = {
        "xaxis": _axis("tasks learnt", dtick=math.ceil(stages / 8), tick0=1, range=[0.7, stages + 0.3]),
        "yaxis": _axis("points", rangemode="tozero" if which == 1 else "normal"),
        **(LEGEND if len(lines) > 1 else {"showlegend": False}),
    }
    height = 340 + 20 * max(0, len(lines) - 4)  # the legend has a line a run in a narrow window
    return Chart(title, f"Line chart, in points: {'; '.join(said)}.", lines, layout, height)


def score_heat_map(run: Run, low: float, high: float) -> Chart:
    """The score matrix; the cells of the stage that learnt a task are outlined. `low` and `high`: the colour scale's ends."""
    scores, matrix = run.scores, rows(run.scores)
    heat = {
        "type": "heatmap",
        "z": [[None if v is None else 100 * v for v in row] for _, row in matrix],
        "text": [["" if v is None else points(v) for v in row] for _, row in matrix],
        "texttemplate": "%{text}",
        "textfont": {"color": "var(--ink)"},
        "hovertext": [
            [f"{shown(task)} after {shown(name)}: {points(v)}" for task, v in zip(scores.tasks, row, strict=True)]
            for name, row in matrix
        ],
        "hoverinfo": "text",
        "hoverongaps": False,
        "zmin": 100 * low,
        "zmax": 100 * high,
        "colorscale": HEAT,
        "xgap": 2,
        "ygap": 2,
        "colorbar": {"title": {"text": "points", "font": {"size": 12}}, "thickness": 10, "outlinewidth": 0, "len": 1},
    }
    outlines = [
        {
            "type": "rect",
            "x0": t - 0.47,
            "x1": t + 0.47,
            "y0": s + 0.53,
            "y1": s + 1.47,
            "line": {"color": "var(--ink)", "width": 2},
        }
        for s, stage in enumerate(scores.stages)
        for t, task in enumerate(scores.tasks)
        if task == stage
    ]
    layout = {
        "xaxis": {**_ticks(scores.tasks), "side": "top", "showgrid": False, "autotickangles": [0, 35, 90]},
        "yaxis": {
            **_ticks([name for name, _ in matrix]),
            "autorange": "reversed",
            "showgrid": False,
            "zeroline": False,
        },
        "shapes": outlines,
    }
    final = "; ".join(f"{task} {points(v)}" for task, v in zip(scores.tasks, matrix[-1][1], strict=True))
    return Chart(
        "Score of each task (columns) after each stage (rows)",
        f"Heat map of {len(matrix)} rows and {len(scores.tasks)} columns, in points. Final row: {final}.",
        [heat],
        layout,
        height=120 + 36 * len(matrix),
        min_width=190 + 52 * len(scores.tasks),
    )


def task_lines(run: Run) -> Chart:
    """The score of each task over the stages, from untrained on; a ring marks the stage that learnt it."""
    matrix = rows(run.scores)
    names = [name for name, _ in matrix]
    lines: list[dict[str, Any]] = []
    for t, task in enumerate(run.scores.tasks):
        values = [row[t] for _, row in matrix]
        hover = [f"{shown(task)} after {shown(name)}: {points(v)}" for name, v in zip(names, values, strict=True)]
        line = _line(t, task, list(range(len(values))), [None if v is None else 100 * v for v in values], hover)
        size = [13 if name == task else 7 for name in names]
        lines.append({**line, "marker": {**line["marker"], "size": size, "opacity": 1, "line": {"width": 0}}})
    said = "; ".join(
        f"{task} from {points(matrix[0][1][t])} untrained to {points(matrix[-1][1][t])}"
        for t, task in enumerate(run.scores.tasks)
    )
    layout = {"xaxis": {**_ticks(names), "showgrid": True}, "yaxis": _axis("points"), **LEGEND}
    wide = 160 + 52 * len(lines) if len(lines) > 6 else 0
    return Chart("Score of each task over the stages", f"Line chart, in points: {said}.", lines, layout, 420, wide)


def changed_answers(run: Run) -> Chart:
    """Per task, how many examples stayed right, became wrong, became right, stayed wrong."""
    kinds = {
        "still right": ("still_right", "var(--series-0)", ""),
        "became wrong": ("became_wrong", "var(--series-1)", "/"),
        "became right": ("became_right", "var(--series-2)", "."),
        "still wrong": ("still_wrong", "var(--series-7)", "x"),
    }
    bars = []
    for name, (field, color, pattern) in kinds.items():
        values = [getattr(change, field) for change in run.changes]
        marker = {
            "color": color,
            "pattern": {"shape": pattern, "fillmode": "overlay", "fgcolor": "var(--paper)", "size": 7, "solidity": 0.3},
        }
        bars.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": name,
                "y": list(range(len(values))),
                "x": values,
                "hovertext": [
                    f"{shown(c.task)}: {v} of {c.examples} {name}" for c, v in zip(run.changes, values, strict=True)
                ],
                "hoverinfo": "text",
                "marker": marker,
            }
        )
    layout = {
        "barmode": "stack",
        "xaxis": _axis(f"{run.scores.split} examples"),
        "yaxis": {**_ticks([c.task for c in run.changes]), "autorange": "reversed", "showgrid": False},
        "bargap": 0.35,
        **LEGEND,
    }
    said = "; ".join(
        f"{c.task}: {c.became_wrong} became wrong, {c.became_right} became right of {c.examples}" for c in run.changes
    )
    height = 150 + 36 * len(run.changes)
    return Chart("Right when learnt, and at the end", f"Stacked bar chart. {said}.", bars, layout, height=height)


LEGEND: Mapping[str, Any] = {
    "showlegend": True,
    "legend": {
        "orientation": "h",
        "traceorder": "normal",
        "x": 0,
        "y": 1.02,
        "yanchor": "bottom",
        "itemclick": False,
        "itemdoubleclick": False,
    },
}
"""Above the plot, where no axis can meet it."""


def _line(
    number: int, name: str, x: Sequence[float], y: Sequence[float | None], hover: Sequence[str]
) -> dict[str, Any]:
    """A line that differs from its neighbours in colour, marker and dash."""
    color = SERIES[number % len(SERIES)]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "connectgaps": True,  # a stage at which a task was not scored (`evaluation.every_stage`) has no marker
        "name": shown(name),
        "x": list(x),
        "y": list(y),
        "hovertext": list(hover),
        "hoverinfo": "text",
        "line": {"color": color, "width": 2, "dash": DASHES[number % len(DASHES)]},
        "marker": {"color": color, "symbol": MARKERS[number % len(MARKERS)], "size": 8},
    }


def _ticks(names: Sequence[str]) -> dict[str, Any]:
    ticks = {"tickmode": "array", "tickvals": list(range(len(names))), "ticktext": [shown(n) for n in names]}
    return {**ticks, "zeroline": False}


def _axis(title: str, **more: Any) -> dict[str, Any]:
    return {"title": {"text": title}, "zeroline": False, **more}

"""The report's charts, as plotly figures in plain values.

A colour is written `var(--name)`: page.js replaces it by the theme's colour, so that one figure serves light and dark. Axes are
numeric with names as tick texts: a task called '2024' or '1e5' stays a name. Colour is never the only cue: lines differ in
marker and dash, bars in pattern, and every cell and bar shows its number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from perdure.report.runs import Run
from perdure.report.words import MANY, plain, rows
from perdure.state.words import points

SERIES = [f"var(--series-{i})" for i in range(8)]
MARKERS = ["circle", "square", "diamond", "triangle-up", "x", "triangle-down", "star"]
DASHES = ["solid", "dash", "dot", "dashdot", "longdash"]
HEAT = [[i / 3, f"var(--heat-{i})"] for i in range(4)]
SMALLEST_SPAN = 20.0
"""Points that an axis of scores shows at least."""
LONGEST_NAME = 22
"""Longer names are shortened inside charts; the tables show them whole."""


@dataclass(frozen=True)
class Chart:
    """One figure of the page.

    Args:
        title: what is shown.
        summary: the chart in words, for screen readers.
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
    """A name as plotly shows it: plain text, escaped (plotly reads some HTML), shortened in the middle.

    Names of runs of one method differ at their ends.
    """
    text = plain(name)
    return escape(text if len(text) <= LONGEST_NAME else f"{text[:8]}…{text[8 + 1 - LONGEST_NAME :]}", quote=False)


def metric_bars(runs: Sequence[Run], metric: str, title: str) -> Chart:
    """One metric, one bar for each run that has it, the first run on top."""
    known = [(run.name, value) for run in runs if (value := getattr(run.scores, metric)) is not None]
    bars = {
        **_bars([100 * v for _, v in known]),
        "text": [points(v) for _, v in known],
        "textposition": "outside",
        "cliponaxis": False,
        "hoverinfo": "skip",
        "marker": {"color": SERIES[0]},
        "width": 0.62,
    }
    layout = {
        "xaxis": axis("points", rangemode="tozero"),
        "yaxis": _names_down([name for name, _ in known]),
        "showlegend": False,
        "bargap": 0.3,
        "margin": {"l": 8, "r": 48, "t": 16, "b": 8},
    }
    values = "; ".join(f"{name} {points(v)}" for name, v in known)
    return Chart(title, f"Bar chart, in points: {values}.", [bars], layout, height=90 + 34 * len(known))


def over_stages(runs: Sequence[Run], which: int, title: str) -> Chart:
    """Average accuracy (`which` 0) or forgetting (1) over the tasks learnt so far, one line a run; joint training is level.

    A single run's average accuracy has a second line, what the same tasks scored when they were learnt: it falls too when a
    harder task joins, and only the gap between the two was lost.
    """
    lines, ends = [], []
    stages = max((len(run.scores.stages) for run in runs), default=1)
    for number, run in enumerate(runs):
        values = [pair[which] for pair in run.over_stages()]
        xs = [float(s + 1) for s in range(len(values))]
        if not values and which == 0:
            xs, values = [1.0, float(stages)], [run.scores.average_accuracy] * 2
        known = [v for v in values if v is not None]
        if not known:
            continue
        hover = [f"{shown(run.name)}: {points(v)} after stage {x:.0f}" for x, v in zip(xs, values, strict=True)]
        lines.append(_score_line(number, run.name, xs, values, hover))
        ends.append(f"{run.name} from {points(known[0])} to {points(known[-1])}")
    if which == 0 and len(runs) == 1:
        values = runs[0].when_learnt()
        xs = [float(s + 1) for s in range(len(values))]
        hover = [f"when learnt: {points(v)} over {x:.0f} tasks" for x, v in zip(xs, values, strict=True)]
        lines.append(_score_line(1, "when learnt", xs, values, hover))
        ends.append(f"when learnt from {points(values[0])} to {points(values[-1])}")
    layout = {
        "xaxis": axis("tasks learnt", dtick=math.ceil(stages / 8), tick0=1, range=[0.7, stages + 0.3]),
        "yaxis": axis("points", range=_span(lines, (-100.0 if which else 0.0, 100.0))),
        **legend(len(lines)),
    }
    height = 340 + 20 * max(0, len(lines) - 4)  # in a narrow window the legend has a line for each run
    return Chart(title, f"Line chart, in points: {'; '.join(ends)}.", lines, layout, height)


def score_heat_map(run: Run, low: float, high: float) -> Chart:
    """The score matrix on a colour scale from `low` to `high`; the cells of the stage that learnt a task are outlined."""
    scores, matrix = run.scores, rows(run.scores)
    many = len(scores.tasks) > MANY
    heat = {
        "type": "heatmap",
        "z": [[None if v is None else round(100 * v, 1) for v in row] for _, row in matrix],
        **({"hoverinfo": "z"} if many else _cell_texts(scores.tasks, matrix)),
        "hoverongaps": False,
        "zmin": 100 * low,
        "zmax": 100 * high,
        "colorscale": HEAT,
        "xgap": 0 if many else 2,
        "ygap": 0 if many else 2,
        "colorbar": {"title": {"text": "points", "font": {"size": 12}}, "thickness": 10, "outlinewidth": 0, "len": 1},
    }
    outline = {"type": "rect", "line": {"color": "var(--ink)", "width": 1 if many else 2}}
    across, down = names_axis(scores.tasks), _names_down([name for name, _ in matrix])
    if many:
        across, down = (_thinned(names) for names in (across, down))
    layout = {
        "xaxis": {**across, "side": "top", "showgrid": False, "autotickangles": [0, 35, 90]},
        "yaxis": down,
        "shapes": [
            {**outline, "x0": t - 0.47, "x1": t + 0.47, "y0": s + 0.53, "y1": s + 1.47}
            for s, stage in enumerate(scores.stages)
            for t, task in enumerate(scores.tasks)
            if task == stage
        ],
    }
    final = "; ".join(f"{task} {points(v)}" for task, v in zip(scores.tasks, matrix[-1][1], strict=True))
    return Chart(
        "Score of each task (columns) after each stage (rows)",
        f"Heat map of {len(matrix)} rows and {len(scores.tasks)} columns, in points. Final row: {final}.",
        [heat],
        layout,
        height=480 if many else 120 + 36 * len(matrix),
        min_width=0 if many else 190 + 52 * len(scores.tasks),
    )


def _cell_texts(tasks: Sequence[str], matrix: Sequence[tuple[str, Sequence[float | None]]]) -> dict[str, Any]:
    """Every cell's number in it, and its task and stage on hovering."""
    return {
        "text": [["" if v is None else points(v) for v in row] for _, row in matrix],
        "texttemplate": "%{text}",
        "textfont": {"color": "var(--ink)"},
        "hovertext": [
            [f"{shown(task)} after {shown(name)}: {points(v)}" for task, v in zip(tasks, row, strict=True)]
            for name, row in matrix
        ],
        "hoverinfo": "text",
    }


def _thinned(axis: Mapping[str, Any]) -> dict[str, Any]:
    """The axis with about ten of its names."""
    step = math.ceil(len(axis["tickvals"]) / 10)
    return {**axis, "tickvals": axis["tickvals"][::step], "ticktext": axis["ticktext"][::step]}


def task_lines(run: Run) -> Chart:
    """The score of each task over the stages, the untrained model first; a larger marker at the stage that learnt it."""
    matrix = rows(run.scores)
    names = [name for name, _ in matrix]
    lines, ends = [], []
    for t, task in enumerate(run.scores.tasks):
        values = [row[t] for _, row in matrix]
        hover = [f"{shown(task)} after {shown(name)}: {points(v)}" for name, v in zip(names, values, strict=True)]
        line = _score_line(t, task, list(range(len(values))), values, hover)
        line["marker"] |= {"size": [13 if name == task else 7 for name in names], "opacity": 1, "line": {"width": 0}}
        lines.append(line)
        ends.append(f"{task} from {points(values[0])} untrained to {points(values[-1])}")
    layout = {
        "xaxis": {**names_axis(names), "showgrid": True},
        "yaxis": axis("points", range=_span(lines)),
        **legend(),
    }
    wide = 160 + 52 * len(lines) if len(lines) > 6 else 0
    summary = f"Line chart, in points: {'; '.join(ends)}."
    return Chart("Score of each task over the stages", summary, lines, layout, 420, wide)


def changed_answers(run: Run) -> Chart:
    """Per task, how many examples stayed right, became wrong, became right, stayed wrong."""
    bars = []
    for name, color, pattern in (
        ("still right", SERIES[0], ""),
        ("became wrong", SERIES[1], "/"),
        ("became right", SERIES[2], "."),
        ("still wrong", SERIES[7], "x"),
    ):
        values = [getattr(change, name.replace(" ", "_")) for change in run.changes]
        hover = [f"{shown(c.task)}: {v} of {c.examples} {name}" for c, v in zip(run.changes, values, strict=True)]
        shape = {"shape": pattern, "fillmode": "overlay", "fgcolor": "var(--paper)", "size": 7, "solidity": 0.3}
        marker = {"color": color, "pattern": shape}
        bars.append({**_bars(values), "name": name, "hovertext": hover, "hoverinfo": "text", "marker": marker})
    layout = {
        "barmode": "stack",
        "xaxis": axis(f"{run.scores.split} examples"),
        "yaxis": _names_down([c.task for c in run.changes]),
        "bargap": 0.35,
        **legend(),
    }
    counts = "; ".join(
        f"{c.task}: {c.became_wrong} became wrong, {c.became_right} became right of {c.examples}" for c in run.changes
    )
    height = 150 + 36 * len(run.changes)
    return Chart("Right when learnt, and at the end", f"Stacked bar chart. {counts}.", bars, layout, height=height)


def legend(lines: int = 2) -> dict[str, Any]:
    """A legend above the plot, where no axis can meet it; none for a single line."""
    if lines < 2:
        return {"showlegend": False}
    place = {"orientation": "h", "traceorder": "normal", "x": 0, "y": 1.02, "yanchor": "bottom"}
    return {"showlegend": True, "legend": {**place, "itemclick": False, "itemdoubleclick": False}}


def line(number: int, name: str, x: Sequence[float], y: Sequence[float | None], hover: Sequence[str]) -> dict[str, Any]:
    """The `number`-th line of a chart, which differs from its neighbours in colour and dash."""
    style = {"color": SERIES[number % len(SERIES)], "width": 1.6, "dash": DASHES[number % len(DASHES)]}
    return {
        "type": "scatter",
        "mode": "lines",
        "name": shown(name),
        "x": list(x),
        "y": list(y),
        "hovertext": list(hover),
        "hoverinfo": "text",
        "line": style,
    }


def axis(title: str, **more: Any) -> dict[str, Any]:
    """A numeric axis without a line at zero."""
    return {"title": {"text": title}, "zeroline": False, **more}


def _span(lines: Sequence[Mapping[str, Any]], bounds: tuple[float, float] = (0.0, 100.0)) -> list[float]:
    """The range of an axis that holds all lines, never so narrow that one point looks like a cliff, within `bounds`."""
    known = [y for line in lines for y in line["y"] if y is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    margin = max(SMALLEST_SPAN - (high - low), 0.1 * (high - low)) / 2
    low, high = low - margin, high + margin
    least, most = bounds
    shift = max(least - low, 0.0) or min(most - high, 0.0)
    return [max(low + shift, least), min(high + shift, most)]


def names_axis(names: Sequence[str], places: Sequence[float] | None = None) -> dict[str, Any]:
    """Names along an axis, at 0, 1, ... or at `places`."""
    places = list(range(len(names)) if places is None else places)
    return {"tickmode": "array", "tickvals": places, "ticktext": [shown(n) for n in names], "zeroline": False}


def _names_down(names: Sequence[str]) -> dict[str, Any]:
    return {**names_axis(names), "autorange": "reversed", "showgrid": False}


def _bars(values: Sequence[float]) -> dict[str, Any]:
    return {"type": "bar", "orientation": "h", "y": list(range(len(values))), "x": list(values)}


def _score_line(
    number: int, name: str, x: Sequence[float], scores: Sequence[float | None], hover: Sequence[str]
) -> dict[str, Any]:
    """A line with markers, in points. A stage at which the task was not scored (`evaluation.every_stage`) has no marker."""
    drawn = line(number, name, x, _in_points(scores), hover)
    drawn["line"]["width"] = 2
    marker = {"color": drawn["line"]["color"], "symbol": MARKERS[number % len(MARKERS)], "size": 8}
    return {**drawn, "mode": "lines+markers", "connectgaps": True, "cliponaxis": False, "marker": marker}


def _in_points(scores: Sequence[float | None]) -> list[float | None]:
    return [None if v is None else 100 * v for v in scores]

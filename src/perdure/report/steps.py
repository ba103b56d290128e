"""Charts of what training logged: loss, weighted penalties and their share of the gradient, over all optimiser steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from perdure.files.durable import finite_or_none
from perdure.report.charts import DASHES, LEGEND, SERIES, Chart, shown
from perdure.report.runs import Run

POINTS = 1200
"""A line has about this many points at most; longer logs are drawn as means of neighbouring steps, and the page says so."""

Value = Callable[[Mapping[str, Any]], float | None]


def step_charts(run: Run) -> list[Chart]:
    """Loss; and where there are penalties, their weighted values and their shares of the gradient."""
    charts = [_chart(run, "Task loss", {"task loss": lambda step: step["loss"]}, "loss")]
    penalties = _names(run, "penalties")
    if penalties:
        title = "Weighted penalties" if len(penalties) > 1 else f"Weighted penalty {penalties[0]}"
        charts.append(_chart(run, title, {n: _entry("penalties", n) for n in penalties}, "added to the loss"))
    shares = _names(run, "shares")
    if shares:
        which = "weighted penalties" if len(shares) > 1 else f"weighted penalty {shares[0]}"
        title = f"Gradient of the {which}, relative to the gradient before weight penalties"
        charts.append(_chart(run, title, {n: _entry("shares", n) for n in shares}, "ratio of norms"))
    return charts


def step_rows(run: Run) -> list[list[str]]:
    """One row a stage: steps, first and last loss, and the last weighted value and mean share of each penalty."""
    penalties, shares = _names(run, "penalties"), _names(run, "shares")
    found = []
    for stage, log in zip(run.scores.stages, run.logs, strict=True):
        row = [stage, str(len(log)), *(_number(log[i]["loss"]) if log else "-" for i in (0, -1))]
        row += [_number(_entry("penalties", name)(log[-1])) if log else "-" for name in penalties]
        row += [_number(_mean([_entry("shares", name)(step) for step in log])) for name in shares]
        found.append(row)
    return found


def step_header(run: Run) -> list[str]:
    """The columns of `step_rows`."""
    last = [f"{name}, last" for name in _names(run, "penalties")]
    mean = [f"{name}, mean share" for name in _names(run, "shares")]
    return ["Stage", "Steps", "First loss", "Last loss", *last, *mean]


def bin_size(run: Run) -> int:
    """How many steps a drawn point stands for."""
    return math.ceil(sum(map(len, run.logs)) / POINTS) or 1


def _chart(run: Run, title: str, lines: Mapping[str, Value], unit: str) -> Chart:
    size, total = bin_size(run), sum(map(len, run.logs))
    data, said = [], []
    for number, (name, value) in enumerate(lines.items()):
        xs, ys = _binned(run, value, size)
        color = SERIES[number % len(SERIES)]
        dash = DASHES[number % len(DASHES)]
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": shown(name),
                "x": xs,
                "y": ys,
                "hovertext": [f"{shown(name)} {_number(y)}, step {x:g}" for x, y in zip(xs, ys, strict=True)],
                "hoverinfo": "text",
                "line": {"color": color, "width": 1.6, "dash": dash},
            }
        )
        known = [y for y in ys if y is not None]
        said.append(f"{name} from {_number(known[0])} to {_number(known[-1])}" if known else f"{name}: nothing logged")
    ends = [sum(map(len, run.logs[: i + 1])) for i in range(len(run.logs))]
    middles = [(end + begin) / 2 + 0.5 for begin, end in zip([0, *ends], ends, strict=False)]
    layout = {
        "xaxis": {
            "title": {"text": "stage, step by step"},
            "tickmode": "array",
            "tickvals": middles,
            "ticktext": [shown(stage) for stage in run.scores.stages],
            "showgrid": False,
            "zeroline": False,
            "range": [0.5, total + 0.5],
        },
        "yaxis": {"title": {"text": unit}, "rangemode": "tozero", "zeroline": False},
        "shapes": [_boundary(end + 0.5) for end in ends[:-1]],
        **(LEGEND if len(lines) > 1 else {"showlegend": False}),
    }
    return Chart(title, f"Line chart over {total} steps in {len(ends)} stages: {'; '.join(said)}.", data, layout, 340)


def _binned(run: Run, value: Value, size: int) -> tuple[list[float], list[float | None]]:
    """Means over `size` neighbouring steps of the same stage; a gap (None) between the stages."""
    xs: list[float] = []
    ys: list[float | None] = []
    before = 0
    for log in run.logs:
        for start in range(0, len(log), size):
            part = log[start : start + size]
            xs.append(before + start + (len(part) + 1) / 2)
            ys.append(_mean([value(step) for step in part]))
        before += len(log)
        xs.append(before + 0.5)
        ys.append(None)
    return xs, ys


def _names(run: Run, field: str) -> list[str]:
    return sorted({name for log in run.logs for step in log for name in step.get(field, {})})


def _entry(field: str, name: str) -> Value:
    return lambda step: step.get(field, {}).get(name)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in map(finite_or_none, values) if v is not None]
    return sum(known) / len(known) if known else None


def _number(value: float | None) -> str:
    return "-" if finite_or_none(value) is None else f"{value:.3g}"


def _boundary(x: float) -> dict[str, Any]:
    line = {"color": "var(--line)", "width": 1, "dash": "dot"}
    return {"type": "line", "x0": x, "x1": x, "yref": "paper", "y0": 0, "y1": 1, "line": line}

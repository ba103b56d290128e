"""Charts of the training log: loss, weighted penalties and their share of the gradient, over all optimiser steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from perdure.files.durable import finite_or_none
from perdure.report.charts import Chart, axis, legend, line, names_axis, shown
from perdure.report.runs import Run

POINTS = 1200
"""A line has about this many points at most; longer logs are drawn as means of neighbouring steps, and the page says so."""

Value = Callable[[Mapping[str, Any]], float | None]


def step_charts(run: Run) -> list[Chart]:
    """The loss; where there are penalties, also their weighted values and their shares of the gradient."""
    charts = [_chart(run, "Task loss", {"task loss": lambda step: step["loss"]}, "loss")]
    for field, unit, title in (
        ("penalties", "added to the loss", "Weighted {}"),
        ("shares", "ratio of norms", "Gradient of the weighted {}, relative to the gradient before weight penalties"),
    ):
        if names := _names(run, field):
            title = title.format("penalties" if len(names) > 1 else f"penalty {names[0]}")
            charts.append(_chart(run, title, {name: _entry(field, name) for name in names}, unit))
    return charts


def step_table(run: Run) -> tuple[list[str], list[list[str]]]:
    """Head and one row a stage: steps, first and last loss, the last weighted value and mean share of each penalty."""
    penalties, shares = _names(run, "penalties"), _names(run, "shares")
    head = ["Stage", "Steps", "First loss", "Last loss"]
    head += [f"{name}, last" for name in penalties] + [f"{name}, mean share" for name in shares]
    body = []
    for stage, log in zip(run.scores.stages, run.logs, strict=True):
        row = [stage, str(len(log)), *(_number(log[i]["loss"]) if log else "-" for i in (0, -1))]
        row += [_number(_entry("penalties", name)(log[-1])) if log else "-" for name in penalties]
        row += [_number(_mean([_entry("shares", name)(step) for step in log])) for name in shares]
        body.append(row)
    return head, body


def bin_size(run: Run) -> int:
    """How many steps a drawn point stands for."""
    return math.ceil(sum(map(len, run.logs)) / POINTS) or 1


def _chart(run: Run, title: str, lines: Mapping[str, Value], unit: str) -> Chart:
    data, ranges = [], []
    for number, (name, value) in enumerate(lines.items()):
        xs, ys = _binned(run, value, bin_size(run))
        hover = [f"{shown(name)} {_number(y)}, step {x:g}" for x, y in zip(xs, ys, strict=True)]
        data.append(line(number, name, xs, ys, hover))
        known = [y for y in ys if y is not None]
        ranges.append(
            f"{name} from {_number(known[0])} to {_number(known[-1])}" if known else f"{name}: nothing logged"
        )
    ends = list(accumulate(map(len, run.logs)))
    total = ends[-1] if ends else 0
    middles = [(end + begin) / 2 + 0.5 for begin, end in zip([0, *ends], ends, strict=False)]
    style = {"color": "var(--line)", "width": 1, "dash": "dot"}
    boundary = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "line": style}
    layout = {
        "xaxis": {
            **names_axis(run.scores.stages, middles),
            "title": {"text": "stage, step by step"},
            "showgrid": False,
            "range": [0.5, total + 0.5],
        },
        "yaxis": axis(unit, rangemode="tozero"),
        "shapes": [{**boundary, "x0": end + 0.5, "x1": end + 0.5} for end in ends[:-1]],
        **legend(len(lines)),
    }
    summary = f"Line chart over {total} steps in {len(ends)} stages: {'; '.join(ranges)}."
    return Chart(title, summary, data, layout, 340)


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

"""Where a method loses points: tasks learnt less well than by one adapter per task, or forgotten afterwards."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from perdure.report.sweeps import cell_of, over_orders
from perdure.report.text import markdown_table
from perdure.sweeps.comparison import OrderAndSeed

Record = Mapping[str, Any]
Matrix = Sequence[Sequence[float]]
BOUND = "per-task"
HEAD = ["method", "learnt: first task", "second", "later ones", "all", "lost afterwards", "in the end"]
ABOUT = (
    "Points relative to `per-task` on the same task, means over a sequence's tasks, then over sequences; the last task, which "
    "nothing follows, counts as lost by 0."
)


def as_table(rows: Sequence[Record]) -> str:
    """Every method with one stage per task, the highest in the end first."""
    bound = {cell_of(row): row["scores"]["score_matrix"] for row in rows if row["method"] == BOUND}
    if not bound:
        return f"Not available: no comparable run of {BOUND}."
    own = [
        row for row in rows if row["method"] != BOUND and len(row["scores"]["stages"]) == len(row["scores"]["tasks"])
    ]
    found = {name: _means([row for row in own if row["method"] == name], bound) for name in {r["method"] for r in own}}
    ranked = sorted(found.items(), key=lambda item: -item[1][-1])
    lines = ([name, *(f"{100 * value:+.1f}" for value in values)] for name, values in ranked)
    return "\n".join([*markdown_table(HEAD, lines), "", ABOUT])


def _means(rows: Sequence[Record], bound: Mapping[OrderAndSeed, Matrix]) -> list[float]:
    """The columns of a method, means over its runs, every order with the same weight."""

    def column(index: int) -> float:
        value = over_orders(rows, lambda row: columns(row["scores"]["score_matrix"], bound[cell_of(row)])[index])
        return 0.0 if value is None else value

    return [column(index) for index in range(len(HEAD) - 1)]


def columns(scores: Matrix, bound: Matrix) -> list[float]:
    """The columns after the name of one run, from score matrices [stage][task] of a method and of the bound."""
    tasks = range(len(scores))
    learnt = [scores[task][task] - bound[task][task] for task in tasks]
    lost = statistics.mean(scores[-1][task] - scores[task][task] for task in tasks)
    every = statistics.mean(learnt)
    return [learnt[0], learnt[1], statistics.mean(learnt[2:]), every, lost, every + lost]

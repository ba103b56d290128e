"""Where a method's points go: tasks learnt less well than by one adapter a task, or lost after they were learnt."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from perdure.report.sweeps import cell_of
from perdure.report.text import markdown_table

Record = Mapping[str, Any]
BOUND = "per-task"
HEAD = ["method", "learnt: first third", "middle", "last third", "all", "lost afterwards", "in the end"]
ABOUT = "Points, mean over tasks and cells, against what `per-task` reaches on the same task; thirds of a sequence."


def as_table(rows: Sequence[Record]) -> str:
    """Of every method with a stage a task, the one that ends highest first."""
    bound = {cell_of(row): row["scores"]["score_matrix"] for row in rows if row["method"] == BOUND}
    own = [
        row for row in rows if row["method"] != BOUND and len(row["scores"]["stages"]) == len(row["scores"]["tasks"])
    ]
    found = {
        name: columns([(row["scores"]["score_matrix"], bound[cell_of(row)]) for row in own if row["method"] == name])
        for name in {row["method"] for row in own}
    }
    ranked = sorted(found.items(), key=lambda item: -item[1][-1])
    lines = ([name, *(f"{100 * value:+.1f}" for value in values)] for name, values in ranked)
    return "\n".join([*markdown_table(HEAD, lines), "", ABOUT])


def columns(pairs: Sequence[tuple[Sequence[Sequence[float]], Sequence[Sequence[float]]]]) -> list[float]:
    """The columns after the name, from score matrices [stage][task] of a method and of the bound, cell by cell."""
    learnt: list[list[float]] = [[], [], []]
    lost = []
    for scores, bound in pairs:
        tasks = len(scores)
        for task in range(tasks):
            learnt[3 * task // tasks].append(scores[task][task] - bound[task][task])
            lost.append(scores[-1][task] - scores[task][task])
    every = statistics.mean(value for third in learnt for value in third)
    return [*(statistics.mean(third) for third in learnt), every, statistics.mean(lost), every + statistics.mean(lost)]

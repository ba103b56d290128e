"""The language leaderboard from its records: progress, what tuning showed and chose, the results, general ability."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.language_leaderboard import plan
from benchmarks.leaderboard import table as encoder
from benchmarks.records import HERE, records

from perdure.report.sweeps import interval, mean
from perdure.report.text import markdown_table
from perdure.state.words import points
from perdure.tasks.task import INVERSE_PERPLEXITY

Record = Mapping[str, Any]
BOARD = "language_leaderboard"


def progress() -> str:
    """Runs with a record, and failed ones, one row for each step."""
    return encoder.progress((*plan.STEPS, "labels", "texts"), BOARD)


def tuning() -> str:
    """Every method's best trial in either step, best first, and what was chosen."""
    by_step = {step: records(f"{BOARD}/{step}/records") for step in plan.STEPS}
    latest = [step for step, rows in by_step.items() if rows]
    if not latest:
        return "Tuning has no record yet."
    lines, later = [], plan.read("spaces.yaml")["later"]
    for method, own in plan.best_trials(by_step[latest[-1]]).items():
        cells = [_best(by_step[step], method) for step in plan.STEPS]
        told = "; ".join(f"{key.removeprefix('method.').removeprefix('training.')} {v}" for key, v in own[0].items())
        lines.append([f"{method} (later)" if method in later else method, *cells, told])
    missing = [line for step in latest for line in encoder.so_far(step, BOARD)]
    head = ["method", "first: best of its trials", "second: best", "settings of the best so far"]
    note = "Average accuracy after the last task, points on validation examples; a step's best is best by luck too."
    return "\n".join([*markdown_table(head, lines), "", " ".join([note, *missing])])


def _best(rows: Sequence[Record], method: str) -> str:
    scores = [row["scores"]["average_accuracy"] for row in rows if row["method"] == method]
    return f"{100 * max(scores):.1f} of {len(scores)}" if scores else "-"


def labels() -> str:
    """Finalists and bounds on standard-cl."""
    return _finals("labels")


def texts() -> str:
    """Finalists and bounds on free text."""
    return _finals("texts")


def _finals(step: str) -> str:
    rows, left_out = encoder.comparable(step, BOARD)
    if not rows:
        return f"The step `{step}` has no comparable records yet."
    return "\n\n".join([encoder.listing(rows), *left_out, *encoder.so_far(step, BOARD), encoder.compared(rows)])


def summary() -> str:
    """Accuracy, learning, forgetting and general ability at a glance, best first."""
    rows, left_out = encoder.comparable("labels", BOARD)
    if not rows:
        return "The finals have no comparable records yet."
    free = {row["method"]: row for row in encoder.comparable("texts", BOARD)[0]}
    intervals = encoder.studied(rows).intervals
    lines = []
    for name in sorted(intervals, key=lambda name: -intervals[name].mean):
        own = [row for row in rows if row["method"] == name]
        written = [row for row in encoder.comparable("texts", BOARD)[0] if row["method"] == name]
        texts_cell = points(statistics.mean(map(encoder.average_accuracy, written))) if name in free else "-"
        scores = (mean(own, metric) for metric in ("learning_accuracy", "forgetting"))
        lines.append([name, interval(intervals[name]), *scores, texts_cell, *_ability_cells(name)])
    head = [
        "method",
        "average accuracy",
        "learning",
        "forgetting",
        "free text",
        "ability",
        "with examples",
        "perplexity",
    ]
    return "\n".join([*markdown_table(head, lines), "", " ".join([*left_out, *encoder.so_far("labels", BOARD)])])


def ability() -> str:
    """General ability of the untouched model and after every method's runs, means over runs."""
    found = [*_abilities()]
    if not found:
        return "General ability has no record yet."
    methods = list(dict.fromkeys(row["method"] for row in found))
    untouched = _told(found, "before")
    lines = [["untouched", *untouched], *([method, *_ability_cells(method)] for method in methods)]
    head = ["method", "without examples", "with examples", "perplexity of news"]
    return "\n".join([*markdown_table(head, lines), "", f"{len(found)} runs; points, and perplexity."])


def _abilities() -> Iterator[Record]:
    for step in ("labels", "texts"):
        if (HERE / BOARD / step / "ability").is_dir():
            yield from records(f"{BOARD}/{step}/ability")


def _ability_cells(method: str) -> list[str]:
    own = [row for row in _abilities() if row["method"] == method]
    return _told(own, "after") if own else ["-", "-", "-"]


def _told(found: Sequence[Record], when: str) -> list[str]:
    """Means of the shares without and with examples, and of the perplexity."""
    asked = [row for each in found for row in each["rows"]]
    shares = [[row[when] for row in asked if row["is_share"] and bool(row["shots"]) == some] for some in (False, True)]
    texts = [1 / row[when] for row in asked if row["metric"] == INVERSE_PERPLEXITY]
    return [*(points(statistics.mean(each)) if each else "-" for each in shares), f"{statistics.mean(texts):.2f}"]

"""The leaderboard from its records: how far it is, what tuning chose, the screening, the results on the held-back sequences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from benchmarks.leaderboard.choosing import as_table as choosing_table
from benchmarks.leaderboard.gap import as_table as gap_table
from benchmarks.leaderboard.target import as_table as target_table
from benchmarks.records import HERE, in_common, records

from perdure.comparison import Study, study
from perdure.report.sweeps import METRICS, cost_cells, interval, mean, outcome, p_value
from perdure.report.text import markdown_table
from perdure.sweep import cells, load_sweep

Record = Mapping[str, Any]
STEPS = ("tune", "runoff", "screen", "finals", "long")
SCORES = ("average accuracy", "learning accuracy", "forgetting", "backward transfer")
COST = ("processor s", "kept, MB", "deployed, MB", "opposite signs", "collisions")
BEST = "perdure"
"""Whom the others are compared with, where it is among them; else the one with the best mean."""
ONE_SEED = "One seed: intervals and p do not contain the noise of training."


def progress() -> str:
    """Runs with a record, and failed ones, a step a row."""
    lines = ["| step | runs recorded | failed |", "|---|---|---|"]
    for step in STEPS:
        done = records(f"leaderboard/{step}/records")
        names = {row["id"] for row in done}
        failed = [row for row in records(f"leaderboard/{step}/failed") if row["id"] not in names]
        lines.append(f"| {step} | {len(done)} of {planned(step)} | {len(failed)} |")
    return "\n".join(lines)


def planned(step: str) -> str:
    """How many runs a step's sweep has, '?' before it is written."""
    path = HERE / "leaderboard" / f"{step}.yaml"
    if not path.is_file():
        return "?"
    sweep = yaml.safe_load(path.read_text(encoding="utf-8"))
    settings = sum(len(own.get("trials", [{}])) for own in sweep["methods"].values())
    return str(settings * len(sweep["seeds"]) * len(sweep["sequences"]))


def chosen() -> str:
    """Every preset's settings after tuning, and what they reached on the way."""
    path = HERE / "leaderboard" / "screen.yaml"
    if not path.is_file():
        return "Tuning is not complete."
    lines = ["| method | settings |", "|---|---|"]
    for method, settings in yaml.safe_load(path.read_text(encoding="utf-8"))["methods"].items():
        told = "; ".join(
            f"{key.removeprefix('method.').removeprefix('training.')} {value}" for key, value in settings.items()
        )
        lines.append(f"| {method} | {told} |")
    return "\n".join(lines)


def screening() -> str:
    """Every preset, best first, on validation examples."""
    rows, left_out = comparable("screen")
    return "\n\n".join([listing(rows), *left_out]) if rows else "The screening has no record yet."


def choosing() -> str:
    """Which method when, from the screening."""
    rows, _ = comparable("screen")
    return choosing_table(rows, studied(rows).intervals) if rows else "The screening has no record yet."


def finals() -> str:
    """Finalists and bounds on the held-back sequences, all suites together and each alone."""
    rows, left_out = comparable("finals")
    if not rows:
        return "The finals have no record yet."
    parts = [listing(rows), *left_out, compared(rows)]
    for suite in dict.fromkeys(row["config"]["suite"] for row in rows):
        own = [row for row in rows if row["config"]["suite"] == suite]
        parts += [f"**{suite}**", compared(own)]
    return "\n\n".join(parts)


def summary() -> str:
    """The finals and the long sequences at a glance: average accuracy by suite, best first."""
    rows, _ = comparable("finals")
    if not rows:
        return "The finals have no record yet."
    every = [*rows, *comparable("long")[0]]
    suites = list(dict.fromkeys(row["config"]["suite"] for row in every))
    intervals = studied(rows).intervals
    lines = []
    for name in sorted(intervals, key=lambda name: -intervals[name].mean):
        own = [row for row in every if row["method"] == name]
        by_suite = [[row for row in own if row["config"]["suite"] == suite] for suite in suites]
        averages = [mean(some, "average_accuracy") for some in by_suite]
        lines.append([name, interval(intervals[name]), *averages, mean(own, "forgetting")])
    told = markdown_table(["method", "average accuracy", *suites, "forgetting"], lines)
    about = "Points on test examples; average accuracy with its 95 % interval is that of the finals, without `long`."
    return "\n".join([*told, "", " ".join([about, *so_far("finals"), *so_far("long")])])


def target() -> str:
    """What the preset perdure was to reach, and what it reached."""
    rows, _ = comparable("finals")
    return "\n\n".join([target_table(rows), *so_far("finals")]) if rows else "The finals have no record yet."


def gap() -> str:
    """How much of what one adapter a task reaches each method does not learn, and how much it loses again."""
    rows, _ = comparable("finals")
    return gap_table(rows) if rows else "The finals have no record yet."


def long() -> str:
    """The same on sequences of 15 tasks."""
    rows, left_out = comparable("long")
    return "\n\n".join([listing(rows), *left_out, compared(rows)]) if rows else "The long sequences have no record yet."


def so_far(step: str) -> list[str]:
    """What is still to come of a step, in a sentence; nothing where every run has a record or failed."""
    runs = runs_of(step)
    done = {row["id"] for kind in ("records", "failed") for row in records(f"leaderboard/{step}/{kind}")}
    missing = len(runs.keys() - done)
    return [f"Not complete: {missing} of the {len(runs)} runs of `{step}` are still to come."] if missing else []


def comparable(step: str) -> tuple[list[Record], list[str]]:
    """The records of a step in the cells that every method has, without methods of which a run failed, and who these are.

    Nothing before every method of the sweep has a cell.
    """
    rows, runs = records(f"leaderboard/{step}/records"), runs_of(step)
    done = {row["id"] for row in rows}
    failed = Counter(runs[row["id"]] for row in records(f"leaderboard/{step}/failed") if row["id"] not in done)
    told = ", ".join(f"{method} ({count})" for method, count in sorted(failed.items()))
    note = [f"Left out, because runs failed: {told}."] if failed else []
    return in_common(rows, {*runs.values()} - failed.keys()), note


def runs_of(step: str) -> dict[str, str]:
    """Id -> method of every run a step is to have."""
    path = HERE / "leaderboard" / f"{step}.yaml"
    return {cell.id: cell.method for cell in cells(load_sweep(path))} if path.is_file() else {}


def listing(rows: Sequence[Record]) -> str:
    """Scores, interference and cost of every method, best first."""
    found = studied(rows)
    own = {name: [row for row in rows if row["method"] == name] for name in found.intervals}
    ranked = sorted(own, key=lambda name: -found.intervals[name].mean)
    lines = (
        [name, interval(found.intervals[name]), *(mean(own[name], m) for m in METRICS), *cost_cells(own[name])]
        for name in ranked
    )
    states = len({row["code"] for row in rows})
    about = f"{len(found.cells)} cells (order and seed) that every method has, {len(rows)} runs"
    note = f"{about}, by {states} state{'s' * (states > 1)} of the source; points, 95 % intervals."
    return "\n".join([*markdown_table(["method", *SCORES, *COST], lines), "", note])


def compared(rows: Sequence[Record]) -> str:
    """Every method against the first of them: paired differences, corrected after Holm."""
    found = studied(rows)
    first = found.comparisons[0].first
    lines = (
        [c.second, interval(found.intervals[c.second]), interval(c.difference), p_value(c.p_corrected)]
        for c in sorted(found.comparisons, key=lambda c: c.difference.mean)
    )
    head = [first, interval(found.intervals[first]), "", ""]
    columns = ["method", "average accuracy", f"{first} is ahead by", "p (Holm)"]
    few = [] if len({seed for _, seed in found.cells}) > 1 else ["", ONE_SEED]
    return "\n".join([*markdown_table(columns, [head, *lines]), *few])


def studied(rows: Sequence[Record]) -> Study:
    """The comparison with `BEST`; a tuned method is one row, whatever its settings."""
    outcomes = [outcome({**row, "varied": {}}) for row in rows]
    return study(outcomes, BEST if any(o.method == BEST for o in outcomes) else None)

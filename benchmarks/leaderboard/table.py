"""The leaderboard from its records: progress, what tuning chose, the screening, the results on the held-back sequences."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from benchmarks.leaderboard.choosing import as_table as choosing_table
from benchmarks.leaderboard.gap import as_table as gap_table
from benchmarks.leaderboard.honesty import calibration_table, overlap_table
from benchmarks.leaderboard.target import as_table as target_table
from benchmarks.records import HERE, in_common, record, records

from perdure.report.sweeps import METRICS, cell_of, cost_cells, interval, mean, outcome, over_orders, p_value
from perdure.report.text import markdown_table
from perdure.state.words import points
from perdure.sweeps.comparison import Compared, compare
from perdure.sweeps.plan import cells, load_sweep

Record = Mapping[str, Any]
STEPS = ("tune", "runoff", "screen", "finals", "long", "later")
BOARD = "leaderboard"
"""The folder of records; the language leaderboard's tables are made by the same functions."""
SCORES = ("average accuracy", "learning accuracy", "forgetting", "backward transfer")
COST = ("CPU s", "kept, MB", "deployed, MB", "opposite signs", "collisions")
BEST = "perdure"
"""The method that others are compared with, if it is among them; otherwise the one with the best mean."""
ONE_SEED = "One seed: intervals and p do not include training noise."
SOME_ONE_SEED = "Some sequences have one seed; there intervals and p do not include training noise"
ABOUT_SUMMARY = (
    "Points on test examples. Average accuracy and forgetting are those of the finals, without `long`. The 95 % interval is "
    "wide because the suites are not equally hard, for every method alike: paired differences tell methods apart."
)


def progress(steps: Sequence[str] = STEPS, board: str = BOARD) -> str:
    """Runs with a record, and failed ones, one row for each step."""
    lines = ["| step | runs recorded | failed |", "|---|---|---|"]
    for step in steps:
        runs = runs_of(step, board)
        done, failed = ended(step, runs, board)
        lines.append(f"| {step} | {len(done)} of {len(runs) or '?'} | {len(failed)} |")
    return "\n".join(lines)


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
    """Which method when, from the screening, with the finals' results for those that fit."""
    rows, left_out = comparable("screen")
    if not rows:
        return "The screening has no record yet."
    held_back, _ = comparable("finals")
    confirmed = {name: interval.mean for name, interval in studied(held_back).intervals.items()} if held_back else {}
    return "\n\n".join([choosing_table(rows, studied(rows).intervals, confirmed), *left_out])


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


def later() -> str:
    """Rows added after the finals beside them, in the cells that all have so far."""
    known, _ = comparable("finals")
    added, failed = ended("later", runs_of("later"))
    names = {row["method"] for row in added}
    if not known or names != {*runs_of("later").values()}:
        return "The later rows have no record yet."
    rows = in_common([*known, *added], {row["method"] for row in known} | names)
    left = [f"Left out because runs failed: {', '.join(sorted({row['id'] for row in failed}))}."] if failed else []
    return "\n\n".join([listing(rows), compared(rows), *left, *so_far("later")]) if rows else "No cell is complete yet."


def summary() -> str:
    """The finals and the long sequences at a glance: average accuracy by suite, best first."""
    rows, left_out = comparable("finals")
    if not rows:
        return "The finals have no record yet."
    every = [*rows, *comparable("long")[0]]
    suites = list(dict.fromkeys(row["config"]["suite"] for row in every))
    intervals = studied(rows).intervals
    lines = []
    for name in sorted(intervals, key=lambda name: -intervals[name].mean):
        own = [row for row in every if row["method"] == name]
        by_suite = [[row for row in own if row["config"]["suite"] == suite] for suite in suites]
        averages = [points(over_orders(some, average_accuracy)) for some in by_suite]
        forgetting = mean([row for row in rows if row["method"] == name], "forgetting")
        lines.append([name, interval(intervals[name]), *averages, forgetting])
    told = markdown_table(["method", "average accuracy", *suites, "forgetting"], lines)
    return "\n".join([*told, "", " ".join([ABOUT_SUMMARY, *left_out, *so_far("finals"), *so_far("long")])])


def target() -> str:
    """The target of the preset perdure, and what it reached."""
    rows, left_out = comparable("finals")
    return "\n\n".join([target_table(rows), *left_out, *so_far("finals")]) if rows else "The finals have no record yet."


def gap() -> str:
    """What each method does not learn of what one adapter per task reaches, and what it loses again."""
    rows, left_out = comparable("finals")
    return "\n\n".join([gap_table(rows), *left_out]) if rows else "The finals have no record yet."


def long() -> str:
    """The same on sequences of 15 tasks."""
    rows, left_out = comparable("long")
    return "\n\n".join([listing(rows), *left_out, compared(rows)]) if rows else "The long sequences have no record yet."


def overlap() -> str:
    """Test examples of the finals that tuning has read, and what the results are without them."""
    return overlap_table(record("leaderboard/overlap.json"), comparable("finals")[0])


def calibration() -> str:
    """How often the comparison finds a difference where there is none, by design and noise."""
    return calibration_table(record("leaderboard/calibration.json"))


def so_far(step: str, board: str = BOARD) -> list[str]:
    """What is missing of a step, in a sentence; nothing if every run has a record or failed."""
    runs = runs_of(step, board)
    missing = len(runs) - sum(map(len, ended(step, runs, board)))
    if not missing:
        return []
    rows, _ = comparable(step, board)
    orders = {seed: len({cell_of(row)[0] for row in rows if cell_of(row)[1] == seed}) for _, seed in map(cell_of, rows)}
    counted = "; ".join(f"seed {seed}: {count} sequences" for seed, count in sorted(orders.items()))
    told = f" Counted so far: {counted}." if counted else ""
    return [f"Incomplete: {missing} of the {len(runs)} runs of `{step}` are missing.{told}"]


def comparable(step: str, board: str = BOARD) -> tuple[list[Record], list[str]]:
    """The records of a step in the cells that every method has, without methods with a failed run; and a note on these.

    Empty until every method of the sweep has a cell.
    """
    runs = runs_of(step, board)
    rows, without = ended(step, runs, board)
    failed = Counter(runs[row["id"]] for row in without)
    told = ", ".join(f"{method} ({count})" for method, count in sorted(failed.items()))
    note = [f"Left out because runs failed: {told}."] if failed else []
    return in_common(rows, {*runs.values()} - failed.keys()), note


def ended(step: str, runs: Mapping[str, str], board: str = BOARD) -> tuple[list[Record], list[Record]]:
    """The records of a step's planned runs, and the failures; those of an earlier plan do not count."""
    done = {row["id"]: row for row in records(f"{board}/{step}/records") if row["id"] in runs}
    failed = [row for row in records(f"{board}/{step}/failed") if row["id"] in runs.keys() - done.keys()]
    return [*done.values()], failed


def runs_of(step: str, board: str = BOARD) -> dict[str, str]:
    """Id -> method of every planned run of a step."""
    path = HERE / board / f"{step}.yaml"
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
    note = f"{about}, by {states} version{'s' * (states > 1)} of the source; points, 95 % intervals."
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
    seeds = Counter(order for order, _ in found.cells)
    alone = sum(count == 1 for count in seeds.values())
    few = ["", ONE_SEED if alone == len(seeds) else f"{SOME_ONE_SEED} ({alone} of {len(seeds)})."] if alone else []
    return "\n".join([*markdown_table(columns, [head, *lines]), *few])


def average_accuracy(row: Record) -> float:
    """A run's average accuracy, from the answers that the comparison uses, so that both round alike."""
    return statistics.mean(float(right.mean()) for right in outcome(row).right.values())


def studied(rows: Sequence[Record]) -> Compared:
    """The comparison with `BEST`; a tuned method is one row, whatever its settings."""
    outcomes = [outcome({**row, "varied": {}}) for row in rows]
    return compare(outcomes, BEST if any(o.method == BEST for o in outcomes) else None)

"""The report of a sweep, from its records: means, intervals, paired comparisons, cost, and what failed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from perdure.errors import StoreError
from perdure.files.durable import read_json, write_json, write_text
from perdure.report.text import escaped, markdown_table
from perdure.report.words import points
from perdure.sweeps.comparison import Compared, Comparison, Interval, OrderAndSeed, Outcome, compare
from perdure.sweeps.record import outcome_values

Record = Mapping[str, Any]
METRICS = ("learning_accuracy", "forgetting", "backward_transfer")
ABOUT_PAIRED = "In points; bootstrap over orders, seeds and test examples, the same draws for both."


def is_sweep(folder: Path) -> bool:
    """Whether `folder` is what `perdure sweep --out` wrote."""
    return (folder / "records").is_dir() or (folder / "failed").is_dir()


def write_sweep_report(folder: Path, out: Path, reference: str | None = None) -> dict[str, Path]:
    """Write report.md and report.json about the sweep in `folder`; returns their paths by kind.

    Raises:
        StoreError: it has no record yet.
        DataError: nothing to compare: no order and seed that every method has.
    """
    records, failed = read_records(folder), read_failures(folder)
    found = compare([outcome(record) for record in records], reference)
    paths = {"md": out / "report.md", "json": out / "report.json"}
    write_text(paths["md"], as_markdown(records, failed, found))
    (out / "report.html").unlink(missing_ok=True)  # a page about runs, beside numbers it is not about
    write_json(
        paths["json"],
        {
            "cells": [list(cell) for cell in found.cells],
            "methods": {name: asdict(interval) for name, interval in found.intervals.items()},
            "comparisons": [asdict(comparison) for comparison in found.comparisons],
            "failed": failed,
        },
    )
    return paths


def read_records(folder: Path) -> list[Record]:
    """Every record of a sweep, in a fixed order."""
    records = [read_json(path) for path in sorted((folder / "records").glob("*.json"))]
    if not records:
        failed = "".join(f"\n{name} failed: {error}" for name, error in read_failures(folder).items())
        raise StoreError(f"'{folder}' has no finished run yet; go on with `perdure sweep FILE --out {folder}`.{failed}")
    return records


def read_failures(folder: Path) -> dict[str, str]:
    """Id -> error of the runs that failed and have no record since."""
    failures = [read_json(path) for path in sorted((folder / "failed").glob("*.json"))]
    return {row["id"]: row["error"] for row in failures if not (folder / "records" / f"{row['id']}.json").is_file()}


def outcome(record: Record) -> Outcome:
    """A record as the comparison wants it. A task's examples are those of its suite: two suites may draw others of one name."""
    suite = record["config"].get("suite") or "own"
    values = {f"{suite} {task}": right for task, right in outcome_values(record).items()}
    return Outcome(row_name(record), cell_of(record), values)


def cell_of(record: Record) -> OrderAndSeed:
    """The record's order, with its suite and whatever else its sequence sets, and its seed."""
    config = record["config"]
    if config.get("suite"):
        order = f"{config['suite']} {config.get('order') or 'default'}"
    else:
        order = f"own {','.join(record['scores']['tasks'])}"
    others = (f"{key} {value}" for key, value in record.get("sequence", {}).items())
    return ", ".join([order, *others]), config["seed"]


def row_name(record: Record) -> str:
    """The method and what the sweep varied for it."""
    varied = ", ".join(f"{_short(key)} {value}" for key, value in record["varied"].items())
    return f"{record['method']} ({varied})" if varied else record["method"]


def _short(key: str) -> str:
    """A setting's name without the groups that need no telling apart; `weight` alone could be any penalty's."""
    return key.removeprefix("method.").removeprefix("penalties.").removeprefix("training.")


def as_markdown(records: Sequence[Record], failed: Mapping[str, str], found: Compared) -> str:
    """Scores with intervals, paired differences, cost, failures; every column is of the cells that every method has."""
    cells, rows = {*found.cells}, dict[str, list[Record]]()
    for record in records:
        if cell_of(record) in cells:
            rows.setdefault(row_name(record), []).append(record)
    ranked = sorted(found.intervals, key=lambda name: -found.intervals[name].mean)
    lines = [
        "# Sweep",
        "",
        f"{len(records)} runs; {len(found.cells)} cells (order and seed) that every method has.",
        "",
    ]
    lines += markdown_table(
        ["Method", "Average accuracy [95 %]", "Learning accuracy", "Forgetting", "Backward transfer"],
        ([n, interval(found.intervals[n]), *(mean(rows[n], m) for m in METRICS)] for n in ranked),
    )
    if found.comparisons:
        lines += ["", "## Paired differences", "", ABOUT_PAIRED, ""]
        lines += markdown_table(
            ["Comparison", "Difference [95 %]", "p", "p, corrected (Holm)"], map(comparison_cells, found.comparisons)
        )
    lines += ["", "## Cost and interference", ""]
    lines += markdown_table(
        ["Method", "Processor seconds", "Kept for the next task, MB", "Deployed, MB", "Opposite signs", "Collisions"],
        ([n, *cost_cells(rows[n])] for n in ranked),
    )
    if failed:
        lines += ["", "## Failed", "", *(f"- {escaped(name)}: {escaped(error)}" for name, error in failed.items())]
    return "\n".join(lines) + "\n"


def interval(value: Interval) -> str:
    """Points, with the interval."""
    return f"{points(value.mean)} [{points(value.low)}, {points(value.high)}]"


def mean(records: Sequence[Record], metric: str) -> str:
    """A metric's mean, every order counted alike, in points; '-' where it has no meaning."""
    return points(over_orders(records, lambda record: record["scores"][metric]))


def over_orders(records: Sequence[Record], value: Callable[[Record], float | None]) -> float | None:
    """The mean over orders of the mean over an order's runs: one with more seeds counts like the others; None without values."""
    by_order: dict[str, list[float]] = {}
    for record in records:
        if (found := value(record)) is not None:
            by_order.setdefault(cell_of(record)[0], []).append(found)
    return statistics.mean(map(statistics.mean, by_order.values())) if by_order else None


def comparison_cells(comparison: Comparison) -> list[str]:
    """A row of the table of differences."""
    return [
        f"{comparison.first} - {comparison.second}",
        interval(comparison.difference),
        p_value(comparison.p),
        p_value(comparison.p_corrected),
    ]


def p_value(p: float) -> str:
    """Three decimals; never "0.000", which no bootstrap shows."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def cost_cells(records: Sequence[Record]) -> list[str]:
    """Means over runs of seconds, bytes and interference; '-' in records that lack them."""

    def cell(group: str, name: str, shape: str, factor: float = 1.0) -> str:
        known = [r[group][name] for r in records if r.get(group, {}).get(name) is not None]
        return format(factor * statistics.mean(known), shape) if known else "-"

    seconds = [record["processor_seconds"] for record in records if "processor_seconds" in record]
    return [
        f"{statistics.mean(seconds):.0f}" if seconds else "-",
        cell("bytes", "state", ".2f", 1e-6),
        cell("bytes", "deployed", ".2f", 1e-6),
        cell("diagnostics", "opposite_signs", ".1%"),
        cell("diagnostics", "collision_rate", ".1%"),
    ]

"""The report of a sweep, from its records: means, intervals, paired comparisons, cost, and failures."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from perdure.errors import StoreError
from perdure.files.durable import write_json, write_text
from perdure.files.names import stored_name
from perdure.report.own import check_own
from perdure.report.text import escaped, markdown_table
from perdure.state.shapes import read_shaped
from perdure.state.words import points
from perdure.sweeps.comparison import Compared, Interval, OrderAndSeed, Outcome, compare
from perdure.sweeps.record import FailureShape, RecordShape, outcome_values
from perdure.training.metrics import averaged

Record = Mapping[str, Any]
METRICS = ("learning_accuracy", "forgetting", "backward_transfer")


def is_sweep(folder: Path) -> bool:
    """Whether `folder` is what `perdure sweep --out` wrote."""
    return (folder / "records").is_dir() or (folder / "failed").is_dir()


def write_sweep_report(folder: Path, out: Path, reference: str | None = None) -> dict[str, Path]:
    """Write report.md and report.json about the sweep in `folder`; returns their paths by 'md', 'json'.

    Raises:
        StoreError: the sweep has no record yet, or `out` holds a file that no report wrote.
        DataError: no order and seed that every method has.
    """
    check_own(out)
    records, failed = read_records(folder), read_failures(folder)
    compared = compare([outcome(record) for record in records], reference)
    paths = {kind: out / f"report.{kind}" for kind in ("md", "json")}
    write_text(paths["md"], as_markdown(records, failed, compared))
    (out / "report.html").unlink(missing_ok=True)  # left by a report of runs
    write_json(
        paths["json"],
        {
            "cells": [list(cell) for cell in compared.cells],
            "methods": {name: asdict(interval) for name, interval in compared.intervals.items()},
            "comparisons": [asdict(comparison) for comparison in compared.comparisons],
            "failed": failed,
        },
    )
    return paths


def read_records(folder: Path) -> list[Record]:
    """Every record of a sweep, in a fixed order."""
    records = [read_shaped(path, RecordShape) for path in sorted((folder / "records").glob("*.json"))]
    if not records:
        failed = "".join(f"\n{name} failed: {error}" for name, error in read_failures(folder).items())
        raise StoreError(
            f"'{folder}' has no finished run yet; continue with `perdure sweep FILE --out {folder}`.{failed}"
        )
    return records


def read_failures(folder: Path) -> dict[str, str]:
    """Id -> error of the runs that failed and have no record since."""
    failures = {path: read_shaped(path, FailureShape) for path in sorted((folder / "failed").glob("*.json"))}
    named = [(stored_name(row["id"], path, "id"), row["error"]) for path, row in failures.items()]
    return {name: error for name, error in named if not (folder / "records" / f"{name}.json").is_file()}


def outcome(record: Record) -> Outcome:
    """A record for the comparison. Tasks are named with their suite: another suite may draw other examples for a name."""
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
    """The method and what the sweep varied for it: settings without their group, but with the penalty they belong to."""
    group = re.compile(r"^(method[.])?(penalties[.])?(training[.])?")
    varied = ", ".join(f"{group.sub('', key)} {value}" for key, value in record["varied"].items())
    return f"{record['method']} ({varied})" if varied else record["method"]


def as_markdown(records: Sequence[Record], failed: Mapping[str, str], compared: Compared) -> str:
    """Scores with intervals, paired differences, cost, failures; every column is over the cells that every method has."""
    rows = dict[str, list[Record]]()
    for record in records:
        if cell_of(record) in compared.cells:
            rows.setdefault(row_name(record), []).append(record)
    ranked = sorted(compared.intervals, key=lambda name: -compared.intervals[name].mean)
    count = f"{len(records)} runs; {len(compared.cells)} cells (order and seed) that every method has."
    lines = ["# Sweep", "", count, ""]
    score = averaged(metric for record in records for metric in record["scores"].get("metrics", ()))
    lines += markdown_table(
        ["Method", f"Average {score} [95 %]", f"Learning {score}", "Forgetting", "Backward transfer"],
        ([n, interval(compared.intervals[n]), *(mean(rows[n], m) for m in METRICS)] for n in ranked),
    )
    if compared.comparisons:
        how = "In points; bootstrap over orders, seeds and test examples, with the same draws for both methods."
        lines += ["", "## Paired differences", "", how, ""]
        lines += markdown_table(
            ["Comparison", "Difference [95 %]", "p", "p, corrected (Holm)"],
            (
                [f"{c.first} - {c.second}", interval(c.difference), p_value(c.p), p_value(c.p_corrected)]
                for c in compared.comparisons
            ),
        )
    lines += ["", "## Cost and interference", ""]
    lines += markdown_table(
        ["Method", "CPU seconds", "Kept for the next task, MB", "Deployed, MB", "Opposite signs", "Collisions"],
        ([n, *cost_cells(rows[n])] for n in ranked),
    )
    if failed:
        lines += ["", "## Failed", "", *(f"- {escaped(name)}: {escaped(error)}" for name, error in failed.items())]
    return "\n".join(lines) + "\n"


def interval(value: Interval) -> str:
    """A mean with its interval, in points."""
    return f"{points(value.mean)} [{points(value.low)}, {points(value.high)}]"


def mean(records: Sequence[Record], metric: str) -> str:
    """A metric's mean in points, every order with the same weight; '-' where it is not defined."""
    return points(over_orders(records, lambda record: record["scores"][metric]))


def over_orders(records: Sequence[Record], value: Callable[[Record], float | None]) -> float | None:
    """The mean over orders of the mean over an order's runs, however many seeds it has; None without values."""
    by_order: dict[str, list[float]] = {}
    for record in records:
        if (known := value(record)) is not None:
            by_order.setdefault(cell_of(record)[0], []).append(known)
    return statistics.mean(map(statistics.mean, by_order.values())) if by_order else None


def p_value(p: float) -> str:
    """Three decimals; never "0.000", which no bootstrap shows."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def cost_cells(records: Sequence[Record]) -> list[str]:
    """Means over runs of CPU seconds, megabytes and interference; '-' if no record has them."""

    def cell(name: str, shape: str, group: str | None = None, factor: float = 1.0) -> str:
        values = (record.get(group, {}).get(name) if group else record.get(name) for record in records)
        known = [value for value in values if value is not None]
        return format(factor * statistics.mean(known), shape) if known else "-"

    return [
        cell("processor_seconds", ".0f"),
        cell("state", ".2f", "bytes", 1e-6),
        cell("deployed", ".2f", "bytes", 1e-6),
        cell("opposite_signs", ".1%", "diagnostics"),
        cell("collision_rate", ".1%", "diagnostics"),
    ]

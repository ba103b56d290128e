"""Reading committed records, for the tables made from them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any

from perdure.report.sweeps import cell_of
from perdure.sweeps.comparison import OrderAndSeed

HERE = Path(__file__).parent


def records(folder: str) -> list[dict[str, Any]]:
    """Every record in a folder below benchmarks/, in a fixed order."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((HERE / folder).glob("*.json"))]


def in_common(rows: Iterable[Mapping[str, Any]], methods: Set[str]) -> list[Mapping[str, Any]]:
    """The rows of these methods, of a sweep's records, in the cells (order and seed) that each of them has."""
    own = [row for row in rows if row["method"] in methods]
    have: dict[OrderAndSeed, set[str]] = {}
    for row in own:
        have.setdefault(cell_of(row), set()).add(row["method"])
    return [row for row in own if have[cell_of(row)] == methods]


def record(file: str) -> dict[str, Any]:
    """One record below benchmarks/."""
    return json.loads((HERE / file).read_text(encoding="utf-8"))


def row(cells: Iterable[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def spread(values: list[float | None]) -> str:
    """Mean and standard deviation over seeds, in points; '-' where the metric has no meaning."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return "-"
    return f"{statistics.mean(known):.1f}" + (f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else "")

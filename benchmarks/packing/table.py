"""The table of README.md, from record.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.records import record


def table() -> str:
    """Target tokens a second, packed and padded, of every set and all together."""
    found = record("packing/record.json")["rows"]
    sizes = sorted({row["size"] for row in found})
    lines = [
        "| set | " + " | ".join(f"{size} examples: target tokens/s, padded | packed | ratio" for size in sizes) + " |",
        "|---|" + "---|" * 3 * len(sizes),
    ]
    for name in [*dict.fromkeys(row["task"] for row in found), "**all**"]:
        own = [[r for r in found if r["size"] == size and name in (r["task"], "**all**")] for size in sizes]
        lines.append(f"| {name} | " + " | ".join(cell for rows in own for cell in _cells(rows)) + " |")
    worst = max(row["off"] for row in found)
    return "\n".join([*lines, "", f"Gradients of the two ways differ by at most {worst:.1e} of their norm."])


def _cells(rows: Sequence[dict[str, Any]]) -> list[str]:
    padded, packed = (
        sum(r[way]["targets"] for r in rows) / sum(r[way]["seconds"] for r in rows) for way in ("padded", "packed")
    )
    return [f"{padded:.2f}", f"{packed:.2f}", f"{packed / padded:.2f} x"]

"""The target of the preset perdure, part by part, against the finals' records; written before them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from perdure.report.sweeps import outcome, over_orders
from perdure.report.text import markdown_table
from perdure.sweeps.comparison import compare

Record = Mapping[str, Any]
OURS, BOUNDS = "perdure", ("joint", "per-task", "seq-lora")
ABOUT = (
    "Forgetting is from right after learning. A sequence is one order with {seeds}; [the protocol](protocol.md#numbers) says "
    "how often such a comparison finds a difference where there is none."
)
LOST, LEARNT, SURE = 0.02, 0.97, 0.05


def as_table(rows: Sequence[Record]) -> str:
    """Each part of the target, what was reached, and whether it is met; then sequence by sequence."""
    without = [name for name in (OURS, *BOUNDS[:2]) if not any(row["method"] == name for row in rows)]
    if without:
        return f"Not available: no comparable run of {', '.join(without)}."
    average, lost = _mean(rows, OURS, "average_accuracy"), _mean(rows, OURS, "forgetting")
    reached = average / _mean(rows, "joint", "average_accuracy")
    learnt = _mean(rows, OURS, "learning_accuracy") / _mean(rows, "per-task", "learning_accuracy")
    by_sequence = {name: _sequence(own) for name, own in _sequences(rows).items()}
    ahead = sum(above == len(rivals) for above, rivals in by_sequence.values() if rivals)
    parts = [
        ("average accuracy of joint training, at least 100 %", f"{reached:.1%}", reached >= 1),
        ("forgetting, at most 2 points", f"{100 * lost:.1f}", lost <= LOST),
        ("learning accuracy of one adapter per task, at least 97 %", f"{learnt:.1%}", learnt >= LEARNT),
        (
            "significantly above every other finalist on most sequences",
            f"{ahead} of {len(by_sequence)}",
            2 * ahead > len(by_sequence),
        ),
    ]
    lines = markdown_table(["target of perdure", "reached", "met"], ([a, b, "yes" if c else "no"] for a, b, c in parts))
    counts = sorted({len({row["config"]["seed"] for row in own}) for own in _sequences(rows).values()})
    seeds = " or ".join(map(str, counts)) + (" seed" if counts == [1] else " seeds")
    return "\n".join([*lines, "", ABOUT.format(seeds=seeds), "", *_sequence_table(by_sequence)])


def _sequence_table(by_sequence: Mapping[str, tuple[int, Sequence[str]]]) -> list[str]:
    return markdown_table(
        ["sequence", "finalists it is significantly above", "and not above"],
        (
            [name, f"{ahead} of {len(rivals)}", ", ".join(rivals[ahead:]) or "-"]
            for name, (ahead, rivals) in by_sequence.items()
        ),
    )


def _sequence(rows: Sequence[Record]) -> tuple[int, list[str]]:
    """How many of the other finalists it is significantly above (after Holm), and all of them, these first."""
    own = [row for row in rows if row["method"] not in BOUNDS and not row["method"].startswith(f"{OURS},")]
    found = compare([outcome({**row, "varied": {}}) for row in own], OURS).comparisons
    above = {c.second for c in found if c.p_corrected < SURE and c.difference.mean > 0}
    rivals = sorted((c.second for c in found), key=lambda name: (name not in above, name))
    return len(above), rivals


def _sequences(rows: Sequence[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for row in rows:
        found.setdefault(f"{row['config']['suite']} {row['config']['order']}", []).append(row)
    return found


def _mean(rows: Sequence[Record], method: str, metric: str) -> float:
    return over_orders([row for row in rows if row["method"] == method], lambda row: row["scores"][metric]) or 0.0

"""Which preset works in which trainer, from record.json."""

from __future__ import annotations

from benchmarks.records import record


def table() -> str:
    """A row for all presets with the same outcomes; the reasons of refusals below."""
    cells = record("trainers/record.json")
    alike: dict[tuple[str, ...], list[str]] = {}
    for preset, found in cells.items():
        alike.setdefault(tuple(found.values()), []).append(preset)
    kinds = list(next(iter(cells.values())))
    reasons = list(dict.fromkeys(reason for outcomes in alike for reason in outcomes if reason))
    lines = [f"| presets | {' | '.join(kinds)} |", f"|---|{'---|' * len(kinds)}"]
    for outcomes, presets in alike.items():
        told = (f"no ({reasons.index(reason) + 1})" if reason else "yes" for reason in outcomes)
        lines.append(f"| {', '.join(f'`{preset}`' for preset in presets)} | {' | '.join(told)} |")
    return "\n".join([*lines, "", *(f"{i}. {reason}." for i, reason in enumerate(reasons, start=1))])

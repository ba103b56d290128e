"""Which preset works in which trainer, from record.json."""

from __future__ import annotations

import re

from benchmarks.records import record


def table() -> str:
    """A row for all presets with the same outcomes; the reasons of refusals below."""
    cells = record("trainers/record.json")
    alike: dict[tuple[str, ...], list[str]] = {}
    for preset, found in cells.items():
        alike.setdefault(tuple(told(preset, reason) for reason in found.values()), []).append(preset)
    kinds = list(next(iter(cells.values())))
    reasons = list(dict.fromkeys(reason for outcomes in alike for reason in outcomes if reason))
    lines = [f"| presets | {' | '.join(kinds)} |", f"|---|{'---|' * len(kinds)}"]
    for outcomes, presets in alike.items():
        answers = (f"no ({reasons.index(reason) + 1})" if reason else "yes" for reason in outcomes)
        lines.append(f"| {', '.join(f'`{preset}`' for preset in presets)} | {' | '.join(answers)} |")
    return "\n".join([*lines, "", *(f"{i}. {reason}." for i, reason in enumerate(reasons, start=1))])


def told(preset: str, reason: str) -> str:
    """The reason without the names of preset and trainer and what Python said, so that equal ones are one."""
    bare = re.sub(r" \([A-Z]\w*Error: .*\)$", "", reason.replace(f"Method '{preset}'", "The method"))
    bare = re.sub(r"The method: '[\w.]+' measures", "The method measures", bare)
    return re.sub(r"a \w+Trainer", "this trainer", bare).rstrip(".")

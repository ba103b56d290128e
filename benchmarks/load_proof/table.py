"""The tables of README.md, from record.json."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.records import record, row

MOST = {"minilm": 1.0, "smollm2-135m": 3.0}
"""CPU seconds that the proof may cost."""
PACKED_MOST = 1.3
"""Of one forward pass over the prompt, that ranking packed labels may cost."""


def table() -> str:
    """Markdown from the record: medians."""
    found = record("load_proof/record.json")
    lines = [
        row(["model", "verdict", "CPU s, no cache", "first time, and kept", "from the cache", "target"]),
        "|---|---|---|---|---|---|",
    ]
    for model, ways in found["models"].items():
        seconds = [statistics.median(_all(once) for once in ways[way]) for way in ("without", "first", "kept")]
        said = ways["kept"][0]["verdict"] or "padding changes nothing"
        lines.append(row([model, said, *(f"{s:.2f}" for s in seconds), f"{MOST[model]:.0f}"]))
    rank = {name: statistics.median(times) for name, times in found["ranking"].items()}
    lines += ["", "| 8 prompts of 128 tokens, 14 labels | CPU s | of one forward pass | target |", "|---|---|---|---|"]
    targets = {"ranking": f"{PACKED_MOST} x"}
    lines += [f"| {n} | {s:.2f} | {s / rank['prompt']:.2f} x | {targets.get(n, '')} |" for n, s in rank.items()]
    return "\n".join(lines)


def _all(once: dict[str, Any]) -> float:
    return sum(once["seconds"].values())

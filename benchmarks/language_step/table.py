"""The table of README.md, from record.json."""

from __future__ import annotations

import statistics

from benchmarks.records import record


def table() -> str:
    """Markdown from the record."""
    found = record("language_step/record.json")
    base = found["training"]["trainer fp32"]
    middle = statistics.median(base["seconds"][1:])
    end = statistics.mean(base["losses"][-10:])
    lines = [
        f"| {found['steps']} steps of 8 x 64 tokens | CPU s each | of the Trainer's | loss, last 10 | off by |",
        "|---|---|---|---|---|",
    ]
    for name, run in found["training"].items():
        seconds, loss = statistics.median(run["seconds"][1:]), statistics.mean(run["losses"][-10:])
        lines.append(f"| {name} | {seconds:.2f} | {seconds / middle:.2f} x | {loss:.4f} | {abs(loss / end - 1):.2%} |")
    rank = {name: statistics.median(times) for name, times in found["ranking"].items()}
    lines += ["", "| 8 prompts of 128 tokens | CPU s | of one forward pass |", "|---|---|---|"]
    lines += [f"| {name} | {s:.2f} | {s / rank['prompt']:.2f} x |" for name, s in rank.items()]
    return "\n".join(lines)

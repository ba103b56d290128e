"""The table of README.md, from record.json."""

from __future__ import annotations

import statistics

from benchmarks.records import record


def table() -> str:
    """Markdown from the record."""
    found = record("bf16_step/record.json")
    shape = " x ".join(map(str, found["shape"]))
    lines = [
        f"| a step of {shape} tokens | CPU s | of fp32's (least, largest) | gradient off fp32's by |",
        "|---|---|---|---|",
    ]
    base = found["seconds"]["fp32"]
    for way, seconds in found["seconds"].items():
        ratios = [one / other for one, other in zip(seconds, base, strict=True)]
        ratio = f"{statistics.median(ratios):.2f} x ({min(ratios):.2f}, {max(ratios):.2f})"
        lines.append(f"| {way} | {statistics.median(seconds):.2f} | {ratio} | {found['gradient_off_by'][way]:.2%} |")
    has = "has" if found["bf16_instructions"] else "has no"
    lines += ["", f"torch {found['torch']}, {found['machine']} ({has} fast bf16), {len(base)} rounds, one thread."]
    return "\n".join(lines)

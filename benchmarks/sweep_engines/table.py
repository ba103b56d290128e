"""The table of README.md, from record.json."""

from __future__ import annotations

import statistics

from benchmarks.records import HERE, record, row


def table() -> str:
    """Seconds by engine, pair by pair, and the median ratio."""
    if not (HERE / "sweep_engines/record.json").is_file():
        return "No record yet: both ways in turns on idle cores."
    found = record("sweep_engines/record.json")
    lines = [row(["pair", "local, s", "Ray, s", "Ray / local"]), "|---|---:|---:|---:|"]
    ratios = [pair["ray"] / pair["local"] for pair in found["pairs"]]
    for number, (pair, ratio) in enumerate(zip(found["pairs"], ratios, strict=True), start=1):
        lines.append(row([str(number), f"{pair['local']:.0f}", f"{pair['ray']:.0f}", f"{ratio:.2f}"]))
    about = f"{found['runs']} runs, {found['cores']} workers, ray {found['ray']}"
    return "\n".join([*lines, "", f"Median {statistics.median(ratios):.2f} x. {about}."])

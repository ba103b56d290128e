"""The table of README.md, from record.json."""

from __future__ import annotations

from benchmarks.records import record, row

TARGETS = {"average": 1.5, "max-magnitude": 1.5, "ties": 2.5}


def table() -> str:
    """The record as a Markdown table."""
    found = record("merge_dense/record.json")
    lines = [
        "| | wall seconds | of the copy's (median; least to most) | target | CPU seconds | extra memory |",
        "|---|---|---|---|---|---|",
    ]
    for name, case in found["results"].items():
        spread = f"{case['time_ratio']:.2f} ({case['time_ratio_min']:.2f} to {case['time_ratio_max']:.2f})"
        target = f"{TARGETS[name]}" if name in TARGETS else ""
        memory = f"{case['extra_bytes'] / 1e6:.0f} MB"
        cells = (name, f"{case['seconds']:.1f}", spread, target, f"{case['processor_seconds']:.1f}", memory)
        lines.append(row(cells))
    return "\n".join([*lines, "", about()])


def about() -> str:
    """What was measured, where."""
    found = record("merge_dense/record.json")
    return (
        f"{found['parameters'] / 1e9:.2f} billion parameters in bf16, largest dense tensor "
        f"{found['largest_tensor_bytes'] / 1e6:.0f} MB in fp32; torch {found['versions']['torch']}, "
        f"{found['machine']['processor']}, threads: {found['machine']['threads']}, rounds: {found['rounds']}, "
        f"load average of the machine {found['load_average']:.1f}, commit {found['commit']}."
    )

"""The table of README.md, from record.json."""

from __future__ import annotations

from benchmarks.records import record


def table() -> str:
    """The record as a Markdown table."""
    found = record("merge_sum/record.json")
    lines = ["| route | CPU seconds | wall seconds | largest relative error |", "|---|---|---|---|"]
    for name, title in (("factors", "through the factors"), ("dense", "dense SVD")):
        seconds = (found[kind][name] for kind in ("processor_seconds", "seconds"))
        error = found["largest_relative_error"][name]
        lines.append(f"| {title} | " + " | ".join(f"{value:.1f}" for value in seconds) + f" | {error:.1e} |")
    return "\n".join([*lines, "", about()])


def about() -> str:
    """The ratios, and what they are of."""
    found = record("merge_sum/record.json")
    return (
        f"Through the factors {found['times_faster_by_processor_time']:.0f} x faster by CPU time, "
        f"{found['times_faster']:.0f} x by wall time (target: 100 x). {found['parameters'] / 1e9:.2f} billion parameters; "
        f"torch {found['versions']['torch']}, {found['machine']['processor']}, threads: {found['machine']['threads']}, "
        f"rounds: {found['rounds']}, commit {found['commit']}."
    )

"""The table of README.md, from record.json."""

from __future__ import annotations

from benchmarks.records import record, row

TITLES = {
    "perdure": "perdure",
    "mergekit": "mergekit, models made before",
    "mergekit-adapters": "mergekit, from adapters",
}


def table() -> str:
    """The record as a Markdown table."""
    found = record("merge_mergekit/record.json")
    lines = [
        "| | wall seconds | of perdure's | CPU seconds | of perdure's | peak memory | weights that differ by 1e-5 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, case in found["results"].items():
        cells = (
            TITLES[name],
            f"{case['seconds']:.1f}",
            f"{case['time_ratio']:.2f}",
            f"{case['processor_seconds']:.1f}",
            f"{case['processor_time_ratio']:.2f}",
            f"{case['peak_bytes'] / 1e6:.0f} MB",
            f"{case['positions_that_differ_by_1e-5']}",
        )
        lines.append(row(cells))
    about = (
        f"{found['parameters'] / 1e6:.0f} million parameters in fp32; mergekit {found['versions']['mergekit']}, torch "
        f"{found['versions']['torch']}, {found['machine']['processor']}, {found['machine']['cpus']} cores, "
        f"rounds: {found['rounds']}, load average of the machine {found['load_average']:.1f}, commit {found['commit']}."
    )
    return "\n".join([*lines, "", about])

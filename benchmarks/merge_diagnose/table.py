"""The table of README.md, from record.json."""

from __future__ import annotations

from typing import Any

from benchmarks.records import record, row

SHARES = {"opposite": "opposite signs", "opposite_weighted": "by size", "flip": "flips", "collision": "collisions"}


def table() -> str:
    """The record as a Markdown table."""
    found = record("merge_diagnose/record.json")
    lines = [
        f"| | wall seconds | CPU seconds | extra memory | {' | '.join(SHARES.values())} |",
        "|---|---|---|---|" + "---|" * len(SHARES),
    ]
    titles = {"exact": "exact", "sampled": f"{100 * found['sampled_rows']:g} % of the rows"}
    for name, case in found["results"].items():
        cells = (
            titles[name],
            f"{case['seconds']:.0f}",
            f"{case['processor_seconds']:.0f}",
            f"{case['extra_bytes'] / 1e6:.0f} MB",
            *(_percent(case["shares"][share]) for share in SHARES),
        )
        lines.append(row(cells))
    about = (
        f"{found['positions'] / 1e9:.1f} billion positions, adapters of {found['adapter_bytes'] / 1e6:.0f} MB; torch "
        f"{found['versions']['torch']}, {found['machine']['processor']}, threads: {found['machine']['threads']}, load average "
        f"of the machine {found['load_average']:.1f}, commit {found['commit']}. Targets: 240 s, 60 s, 500 MB."
    )
    return "\n".join([*lines, "", about])


def _percent(share: dict[str, Any]) -> str:
    margin = f" ± {100 * share['half_width']:.3f}" if share["half_width"] else ""
    return f"{100 * share['value']:.3f}{margin} %"

"""The table of README.md, from record.json."""

from __future__ import annotations

from benchmarks.records import record


def table() -> str:
    """The record as a Markdown table."""
    found = record("penalty_step/record.json")
    columns = list(found["results"])
    names = list(dict.fromkeys(name for case in found["results"].values() for name in case["ratios"]))
    lines = ["| penalty | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name in names:
        cells = [found["results"][column]["ratios"].get(name) for column in columns]
        lines.append(
            f"| {name} | " + " | ".join(", ".join(f"{r:.3f}" for r in c.values()) if c else "-" for c in cells) + " |"
        )
    constant = [
        case for column in found["results"].values() for n, case in column["ratios"].items() if "overlap" not in n
    ]
    apart = max(abs(case["task 100"] / case["task 2"] - 1) for case in constant)
    steps = ", ".join(f"{c} {case['step_seconds'] * 1e3:.0f} ms" for c, case in found["results"].items())
    notes = f"Ratios at task 2, at task 100; they differ by at most {apart:.1%} but for `overlap`."
    about = f"torch {found['torch']}, {found['device']}, one thread, {found['rounds']} rounds, commit {found['commit']}"
    return "\n".join(
        [
            *lines,
            "",
            f"{notes} A step without penalty: {steps}. {about}.",
        ]
    )

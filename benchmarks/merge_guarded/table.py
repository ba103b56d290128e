"""The table of README.md, from records/*.json: one row a case."""

from __future__ import annotations

import statistics

from benchmarks.records import records


def table() -> str:
    """The records as a Markdown table."""
    found = records("merge_guarded/records")
    lines = [
        "| old task, new task | seed | old task's loss on test: guarded | plain sum | on validation | new task's gain kept |",
        "|---|---|---|---|---|---|",
    ]
    for case in found:
        losses = (case[f"old_loss_{kind}"] for kind in ("guarded", "unguarded", "guarded_validation"))
        kept = case["share_of_gain_kept"]
        cells = (
            case["pair"].replace(":", ", "),
            str(case["seed"]),
            *(f"{100 * loss:+.1f}" for loss in losses),
            "no gain" if kept is None else f"{100 * kept:.0f} %",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", about()])


def about() -> str:
    """How many cases held and what they kept."""
    found = records("merge_guarded/records")
    held = [case["old_loss_guarded"] <= case["tolerance"] for case in found]
    kept = [case["share_of_gain_kept"] for case in found if case["share_of_gain_kept"] is not None]
    first = found[0]
    return (
        f"Losses in points. Tolerance {100 * first['tolerance']:g} points, searched with a margin of {100 * first['margin']:g}; "
        f"{first['examples']['validation']} validation and {first['examples']['test']} test examples a task. Held on test in "
        f"{sum(held)} of {len(held)} cases; the new task's gain kept: median {100 * statistics.median(kept):.0f} %, least "
        f"{100 * min(kept):.0f} %."
    )

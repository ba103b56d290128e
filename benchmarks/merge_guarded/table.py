"""The tables of README.md: real pairs from records/*.json, and the simulation from simulation.json."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.records import record, records


def table() -> str:
    """The real pairs as a Markdown table, one row a case."""
    found = records("merge_guarded/records")
    lines = [
        "| old task, new task | tolerance | old task lost on test: guarded | plain sum | on validation | new task's gain kept |",
        "|---|---|---|---|---|---|",
        *(row(case) for case in found),
    ]
    return "\n".join([*lines, "", about(found)])


def row(case: dict[str, Any]) -> str:
    """One case; a loss with its standard error."""
    kept, taken = case["share_of_gain_kept"], any(case["scales"].values())
    cells = (
        case["pair"].replace(":", ", "),
        f"{100 * case['tolerance']:g}",
        f"{100 * case['old_loss_guarded']:+.1f} ± {100 * case['old_loss_guarded_error']:.1f}",
        f"{100 * case['old_loss_unguarded']:+.1f}",
        f"{100 * case['old_loss_guarded_validation']:+.1f} ± {100 * case['old_loss_guarded_validation_error']:.1f}",
        "no gain" if kept is None else f"{100 * kept:.0f} %" if taken else "nothing taken",
    )
    return "| " + " | ".join(cells) + " |"


def about(found: list[dict[str, Any]]) -> str:
    """How many cases held and what they kept."""
    held = [case["old_loss_guarded"] <= case["tolerance"] for case in found]
    kept = [case["share_of_gain_kept"] for case in found if case["share_of_gain_kept"] is not None]
    first = found[0]
    return (
        f"Losses in points, ± one standard error over paired examples. Confidence {first['confidence']:g}; up to "
        f"{first['examples']['validation']} validation and {first['examples']['test']} test examples a task. "
        f"Held on test in {sum(held)} of {len(held)} cases; the new task's gain kept: least {100 * min(kept):.0f} %, median "
        f"{100 * statistics.median(kept):.0f} %, most {100 * max(kept):.0f} %."
    )


def simulated() -> str:
    """The simulation as a Markdown table."""
    found = record("merge_guarded/simulation.json")
    lines = [
        "| world (plain sum loses) | validation examples | guard | beyond the tolerance | mean loss | new task's gain kept |",
        "|---|---|---|---|---|---|",
    ]
    for case in found["rows"]:
        cells = (
            f"{case['world']} ({100 * case['unguarded_loss']:.1f})",
            str(case["validation"]),
            case["guard"],
            f"{100 * case['lost_more_than_tolerance']:.0f} %",
            f"{100 * case['loss']:+.1f}",
            f"{100 * case['median_share_of_gain_kept']:.0f} %",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(
        [
            *lines,
            "",
            f"Tolerance {100 * found['tolerance']:g} points, {found['trials']} trials a row; losses in points.",
        ]
    )

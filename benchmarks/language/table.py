"""Six methods on one sequence, from the records of sweep.yaml; and general ability, from ability.json."""

from __future__ import annotations

from benchmarks.by_task import by_task
from benchmarks.records import record

ORDER = ("seq-lora", "inc-lora", "o-lora", "n-lora", "ps-lora", "slice")


def table() -> str:
    """Scores by task."""
    return by_task("language", ORDER)


def ability() -> str:
    """What the model could do before and after, in points; perplexity of texts."""
    found = record("language/ability.json")
    lines = ["| asked | examples in the prompt | before | after |", "|---|---|---|---|"]
    for row in found["rows"]:
        if row["metric"] == "inverse-perplexity":
            lines.append(f"| {row['task']}, perplexity | - | {1 / row['before']:.2f} | {1 / row['after']:.2f} |")
        else:
            before, after = (f"{100 * row[key]:.1f}" for key in ("before", "after"))
            lines.append(f"| {row['task']} | {row['shots']} | {before} | {after} |")
    for name in ("general_performance", "in_context_performance"):
        before, after = found[name]
        lines.append(f"| **{name.replace('_', ' ')}** | | {100 * before:.1f} | {100 * after:.1f} |")
    lines += [
        "",
        f"{found['method']} after {', '.join(found['stages'])}; {found['rows'][0]['examples']} examples each.",
    ]
    return "\n".join(lines)

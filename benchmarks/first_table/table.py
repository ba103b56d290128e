"""Scores and chosen settings of the first table, from the records of final.yaml."""

from __future__ import annotations

from benchmarks.records import records, spread

ORDER = ("joint", "per-task", "ps-lora", "l2", "inc-lora", "seq-lora")
METRICS = ("average_accuracy", "learning_accuracy", "forgetting", "backward_transfer", "forward_transfer")


def scores() -> str:
    """Methods x metrics on the quickstart suite."""
    rows = records("first_table/final/records")
    lines = [
        "| method | average accuracy | learning accuracy | forgetting | backward transfer | forward transfer |",
        "|---|---|---|---|---|---|",
    ]
    for method in ORDER:
        own = [row for row in rows if row["method"] == method]
        cells = [spread([row["scores"][metric] for row in own]) for metric in METRICS]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    sizes = rows[0]["sizes"]
    seeds = sorted({row["config"]["seed"] for row in rows})
    tests = ", ".join(f"{task} {split['test']}" for task, split in sizes.items())
    lines += ["", f"Points; mean ± standard deviation over {len(seeds)} seeds. Test examples: {tests}."]
    return "\n".join(lines)


def settings() -> str:
    """What was chosen for each method on validation examples."""
    lines = ["| method | settings (best of four trials on validation) |", "|---|---|"]
    rows = records("first_table/final/records")
    for method in ORDER:
        config = next(row for row in rows if row["method"] == method)["config"]
        training = config["training"]
        chosen = [
            f"learning rate {training['learning_rate']:g}",
            f"× {training['later_learning_rate_factor']:g} after task 1",
        ]
        for name, part in config["method"]["penalties"].items():
            chosen.append(f"{name}: " + ", ".join(f"{key} {value:g}" for key, value in part.items() if key != "kind"))
        lines.append(f"| {method} | {'; '.join(chosen)} |")
    return "\n".join(lines)

"""One seed of several methods on one sequence: each task right after it was learnt and at the end, and the metrics."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.records import records

METRICS = ("average_accuracy", "learning_accuracy", "forgetting")


def points(value: float | None) -> str:
    """A fraction of 1 in points."""
    return "-" if value is None else f"{100 * value:.1f}"


def by_task(folder: str, order: Sequence[str]) -> str:
    """Methods x tasks, for those methods of `order` that have a record below benchmarks/`folder`/records."""
    found = {row["method"]: row for row in records(f"{folder}/records")}
    rows = [found[method] for method in order if method in found]
    if not rows:
        return "Not run yet."
    tasks, first = rows[0]["scores"]["tasks"], rows[0]["scores"]
    lines = [
        f"| method | {' | '.join(tasks)} | average | learning | forgetting |",
        "|---|" + "---|" * (len(tasks) + len(METRICS)),
        f"| untrained | {' | '.join(map(points, first['untrained_scores']))} | - | - | - |",
    ]
    for row in rows:
        matrix = row["scores"]["score_matrix"]
        cells = [f"{points(matrix[t][t])} → {points(matrix[-1][t])}" for t in range(len(tasks))]
        lines.append(
            f"| {row['method']} | {' | '.join(cells)} | {' | '.join(points(row['scores'][m]) for m in METRICS)} |"
        )
    sizes = rows[0]["sizes"]
    examples = "; ".join(f"{task} {split['train']} / {split['test']}" for task, split in sizes.items())
    missing = [method for method in order if method not in found]
    lines += ["", f"Points, right after a task was learnt → at the end; one seed. Examples (train / test): {examples}."]
    if missing:
        lines[-1] += f" Not run yet: {', '.join(missing)}."
    return "\n".join(lines)

"""The table of README.md, from the records of `final.yaml`, and how often surgery fired, from its kept runs.

python benchmarks/conflict/table.py
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
METRICS = ("average_accuracy", "learning_accuracy", "forgetting", "backward_transfer")


def spread(values: list[float]) -> str:
    """Mean and standard deviation over seeds, in points."""
    points = [100 * value for value in values]
    return f"{statistics.mean(points):.1f}" + (f" ± {statistics.stdev(points):.1f}" if len(points) > 1 else "")


def firing(out: Path) -> dict[str, dict[str, list[float]]]:
    """Run -> SLICE's cosine and share fired, a number a task from the second on; kept beside the records."""
    found: dict[str, dict[str, list[float]]] = {}
    for run in sorted((out / "runs").glob("slice-*")):
        notes = [json.loads(path.read_text()) for path in sorted(run.glob("stages/*/notes.json"))]
        own = [note for note in notes if "slice/cosine" in note]
        found[run.name] = {name: [note[f"slice/{name}"] for note in own] for name in ("cosine", "fired")}
    return found


def table(rows: list[dict[str, Any]], fired: dict[str, dict[str, list[float]]]) -> str:
    """A row for each sequence and method."""
    lines = [
        "| sequence | method | average accuracy | learning accuracy | forgetting | backward transfer | cosines | fired |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for order in dict.fromkeys(row["config"]["order"] for row in rows):
        for method in dict.fromkeys(row["method"] for row in rows):
            own = [row for row in rows if row["method"] == method and row["config"]["order"] == order]
            cells = [spread([row["scores"][metric] for row in own]) for metric in METRICS]
            runs = [fired[row["id"]] for row in own if row["id"] in fired]
            cosines = [value for run in runs for value in run["cosine"]]
            shares = [value for run in runs for value in run["fired"]]
            cells.append(f"{min(cosines):+.2f} to {max(cosines):+.2f}" if cosines else "")
            cells.append(f"{100 * statistics.mean(shares):.0f} %" if shares else "")
            lines.append(f"| {order.replace(',', ' ')} | {method} | {' | '.join(cells)} |")
    seeds = sorted({row["config"]["seed"] for row in rows})
    lines += ["", f"Points; mean ± standard deviation over {len(seeds)} seeds."]
    return "\n".join(lines)


def main() -> None:
    out = HERE / "final"
    records = [json.loads(path.read_text()) for path in sorted((out / "records").glob("*.json"))]
    kept = HERE / "firing.json"
    if (out / "runs").is_dir():
        kept.write_text(json.dumps(firing(out), indent=1) + "\n")
    readme = HERE / "README.md"
    head, _, rest = readme.read_text().partition("<!-- table -->\n")
    tail = rest.partition("<!-- end -->")[2]
    made = table(records, json.loads(kept.read_text()))
    readme.write_text(f"{head}<!-- table -->\n{made}\n<!-- end -->{tail}")


if __name__ == "__main__":
    main()

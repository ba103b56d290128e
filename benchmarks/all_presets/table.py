"""The table of README.md: every preset of sweep.yaml, from the records."""

from __future__ import annotations

import yaml
from benchmarks.records import HERE, records, spread

METRICS = ("average_accuracy", "learning_accuracy", "forgetting", "backward_transfer")


def table() -> str:
    """Every preset of the sweep, with its scores or with what became of it; best average first."""
    wanted = yaml.safe_load((HERE / "all_presets/sweep.yaml").read_text())["methods"]
    done = {row["method"]: row for row in records("all_presets/records")}
    failed = {row["id"].split("-default-")[0]: row["error"] for row in records("all_presets/failed")}
    lines = [
        "| preset | average accuracy | learning accuracy | forgetting | backward transfer |",
        "|---|---|---|---|---|",
    ]
    for method in sorted(done, key=lambda name: -done[name]["scores"]["average_accuracy"]):
        cells = [spread([done[method]["scores"][metric]]) for metric in METRICS]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    lines += [
        f"| {name} | {f'failed: {failed[name]}' if name in failed else 'not run'} | | | |"
        for name in wanted
        if name not in done
    ]
    for row in list(done.values())[:1]:
        about = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
        lines += ["", f"Points; one seed, {row['precision']}, {row['threads']} thread; {about}."]
    return "\n".join(lines)

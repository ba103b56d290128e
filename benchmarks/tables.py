"""Generated tables: from the records to the Markdown between `<!-- table: NAME -->` and `<!-- end -->` in README and docs.

python benchmarks/tables.py            write them (make tables)
python benchmarks/tables.py --check    fail if a number in a page is not the records' (make check-tables)
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/results.md", "benchmarks/all_presets/README.md")
ORDER = ("joint", "per-task", "ps-lora", "l2", "inc-lora", "seq-lora")
METRICS = ("average_accuracy", "learning_accuracy", "forgetting", "backward_transfer", "forward_transfer")


def records(folder: str) -> list[dict[str, Any]]:
    """Every record below a folder of benchmarks/, in a fixed order."""
    return [json.loads(path.read_text()) for path in sorted((ROOT / "benchmarks" / folder).glob("*.json"))]


def spread(values: list[float | None]) -> str:
    """Mean and standard deviation over seeds, in points; '-' where the metric has no meaning."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return "-"
    return f"{statistics.mean(known):.1f}" + (f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else "")


def first_table() -> str:
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


def first_settings() -> str:
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


def all_presets() -> str:
    """Every preset of the sweep, with its scores or with what became of it; best average first."""
    folder = "all_presets"
    wanted = yaml.safe_load((ROOT / "benchmarks" / folder / "sweep.yaml").read_text())["methods"]
    done = {row["method"]: row for row in records(f"{folder}/records")}
    failed = {row["id"].split("-default-")[0]: row["error"] for row in records(f"{folder}/failed")}
    lines = [
        "| preset | average accuracy | learning accuracy | forgetting | backward transfer |",
        "|---|---|---|---|---|",
    ]
    for method in sorted(done, key=lambda name: -done[name]["scores"]["average_accuracy"]):
        cells = [spread([done[method]["scores"][metric]]) for metric in METRICS if metric != "forward_transfer"]
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


TABLES: dict[str, Callable[[], str]] = {
    "first-table": first_table,
    "first-settings": first_settings,
    "all-presets": all_presets,
}


def filled(text: str) -> str:
    """A page with every marked table replaced by what the records say."""

    def table(match: re.Match[str]) -> str:
        return f"<!-- table: {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- table: ([\w-]+) -->\n.*?<!-- end -->", table, text, flags=re.DOTALL)


def main() -> None:
    stale = []
    for page in PAGES:
        path = ROOT / page
        if not path.is_file():
            continue
        old = path.read_text(encoding="utf-8")
        new = filled(old)
        if new != old:
            stale.append(page)
            if "--check" not in sys.argv:
                path.write_text(new, encoding="utf-8")
    if stale:
        print(f"{'not what the records say' if '--check' in sys.argv else 'written'}: {', '.join(stale)}")
    if stale and "--check" in sys.argv:
        sys.exit(1)


if __name__ == "__main__":
    main()

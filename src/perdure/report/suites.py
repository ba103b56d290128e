"""What `perdure suites show` prints: a suite's tasks, labels, sizes and licences, and what is odd about its data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from perdure.tasks.assets import ASSETS
from perdure.tasks.packages import is_cached
from perdure.tasks.suites import describe, has_data, load_suite


def suite_lines(name: str, data: str | None = None) -> Iterator[str]:
    """Lines about the suite; with its data at hand also the real sizes and every warning. Nothing is fetched.

    Args:
        data: the folder of a suite that needs one.

    Raises:
        UnknownName: no such suite. DataError: its data cannot be read.
    """
    about = describe(name)
    assets = {entry["source"]["asset"] for entry in about["tasks"].values() if "asset" in entry.get("source", {})}
    missing = sorted(asset for asset in assets if not is_cached(asset))
    yield f"{about['name']}, version {about['version']}: {about['about']}"
    for order, tasks in about.get("orders", {}).items():
        yield f"  order {order}: {' '.join(map(str, tasks))}"
    suite = load_suite(name, data=data) if has_data(name, data) and not missing else None
    sizes = {task.name: task for task in suite.tasks} if suite else {}
    for task, entry in about["tasks"].items():
        yield f"{task}: {entry.get('about', '')}"
        yield f"  licence: {entry.get('licence', 'unknown')}"
        if labels := entry.get("labels"):
            yield f"  labels ({len(labels)}): {_labels(labels)}"
        if task in sizes:
            found = sizes[task]
            yield f"  examples: {len(found.train)} train, {len(found.validation)} validation, {len(found.test)} test"
    if missing:
        size = sum(ASSETS[asset].size for asset in missing) / 1e6
        yield f"Not in the cache yet: {', '.join(missing)} ({size:.0f} MB). Once a run has fetched them, sizes are told here."
    elif suite is None:
        yield f"Give --data (or ${about['data']['variable']}) for sizes and warnings. Layout: {about['data']['layout']}"
    else:
        yield from (f"note: {warning}" for warning in suite.warnings)


def _labels(labels: Any) -> str:
    if isinstance(labels, dict):
        return ", ".join(f"{label} ({text})" if text != label else label for label, text in labels.items())
    return ", ".join(map(str, labels))

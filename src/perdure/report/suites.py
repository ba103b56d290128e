"""What `perdure suites show` prints: a suite's tasks, labels, sizes and licences, and warnings about its data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from perdure.tasks.protocols import protocols
from perdure.tasks.sources.assets import ASSETS
from perdure.tasks.suites import Missing, describe, has_data, load_suite, missing


def suite_lines(name: str, data: str | None = None) -> Iterator[str]:
    """Lines about the suite; if its data is available, also the real sizes and every warning. Fetches nothing.

    Args:
        data: the folder of a suite that needs one.

    Raises:
        UnknownName: no such suite. DataError: its data cannot be read.
    """
    about = describe(name)
    yield f"{about['name']}, version {about['version']}: {about['about']}"
    for order, tasks in about.get("orders", {}).items():
        yield f"  order {order}: {' '.join(map(str, tasks))}"
    yield from _protocols(about)
    suite = load_suite(name, data=data) if has_data(name, data) else None
    loaded = {task.name: task for task in suite.tasks} if suite else {}
    for task, entry in about["tasks"].items():
        yield f"{task}: {entry.get('about', '')}"
        yield f"  licence: {entry.get('licence', 'unknown')}"
        if labels := entry.get("labels"):
            yield f"  labels ({len(labels)}): {_labels(labels)}"
        if task in loaded:
            splits = (f"{len(getattr(loaded[task], split))} {split}" for split in ("train", "validation", "test"))
            yield f"  examples: {', '.join(splits)}"
    yield from (f"note: {warning}" for warning in suite.warnings) if suite else _missing(missing(name, data), about)


def _protocols(about: dict[str, Any]) -> Iterator[str]:
    """What a published protocol changes, and what stays different from the published code."""
    default, *_ = protocols(about)
    for name, how in about.get("protocols", {}).items():
        yield f"  protocol={name}{' (default)' if name == default else ''}: as {how['of']}"
        yield from (f"    changes: {line}" for line in how["changes"])
        yield from (f"    still differs: {line}" for line in how.get("differs", ()))
        if settings := how.get("backbone"):
            yield f"    sets, unless given: {', '.join(f'backbone.{key}={value}' for key, value in settings.items())}"


def _missing(data: Missing, about: Mapping[str, Any]) -> Iterator[str]:
    """Which data is missing, and what to do about it."""
    if data.assets:
        size = sum(ASSETS[asset].size for asset in data.assets) / 1e6
        names = ", ".join(data.assets)
        yield f"Not in the cache yet: {names} ({size:.0f} MB). A run fetches them; then their sizes are shown here."
    if data.hub:
        yield f"Read from the hub by a run, which shows their sizes: {', '.join(data.hub)}."
    if data.folder:
        variable, layout = about["data"]["variable"], about["data"]["layout"]
        yield f"Give a folder as --data (or ${variable}) for sizes and warnings. Layout: {layout}"


def _labels(labels: Any) -> str:
    if isinstance(labels, dict):
        return ", ".join(f"{label} ({text})" if text != label else label for label, text in labels.items())
    return ", ".join(map(str, labels))

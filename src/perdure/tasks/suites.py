"""Named sequences of tasks, described by the versioned files of `suites/*.yaml`.

`suite_names` and `describe` read only the description (no torch, no data); `load_suite` reads the data.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from perdure.errors import ConfigError, UnknownName
from perdure.tasks.packages import Progress
from perdure.tasks.splits import Size, draw
from perdure.tasks.task import SPLITS, Example, Task

FOLDER = Path(__file__).with_name("suites")


@dataclass(frozen=True)
class Suite:
    """Tasks in the order they are learnt in, and what was noticed while reading them.

    Args:
        order: name of the order, or the tasks' names joined by commas.
        warnings: rows removed, splits cut, sizes not reached; each begins with the task's name.
    """

    name: str
    version: int
    order: str
    tasks: tuple[Task, ...]
    warnings: tuple[str, ...]

    def fingerprint(self) -> str:
        """sha256 over the tasks' fingerprints in order: what a run records to notice changed data."""
        return hashlib.sha256("\n".join(task.fingerprint() for task in self.tasks).encode()).hexdigest()


def suite_names() -> tuple[str, ...]:
    """Names of all suites."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


@cache
def _description(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))


def describe(name: str) -> dict[str, Any]:
    """The suite's file as it stands: about, version, orders, sizes, tasks with labels, source, licence and sizes.

    Raises:
        UnknownName: no such suite.
    """
    if name not in suite_names():
        raise UnknownName("suite", name, suite_names())
    return _description(name)


def load_suite(
    name: str,
    *,
    order: str | int | Sequence[str] | None = None,
    data: str | Path | None = None,
    train: Size | None = None,
    validation: Size | None = None,
    test: Size | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Suite:
    """The suite's tasks with their examples.

    Args:
        order: name of one of the suite's orders, or names of its tasks; None: its first order.
        data: folder of the data where a suite needs one; None: the environment variable it names.
        train, validation, test: examples a task, or "all"; None: the suite's own sizes. Drawn by `seed`, with the
            classes in proportion (`perdure.tasks.splits.draw`).

    Raises:
        UnknownName: no such suite, order or task.
        DataError, FetchError: the data cannot be read or fetched.
    """
    about = describe(name)
    label, names = _order(name, about, order)
    sizes: dict[str, Size] = {
        s: about["sizes"][s] if n is None else n for s, n in zip(SPLITS, (train, validation, test), strict=True)
    }
    _check_sizes(sizes)
    tasks, warnings = [], []
    for task in names:
        made = _load_task(task, about["tasks"][task], data, sizes, random.Random(f"{seed}/{task}"), progress)
        tasks.append(made)
        warnings += [f"{task}: {note}" for note in made.notes]
    return Suite(name, about["version"], label, tuple(tasks), tuple(warnings))


def _load_task(
    name: str,
    about: dict[str, Any],
    data: str | Path | None,
    sizes: dict[str, Size],
    rng: random.Random,
    progress: Progress | None,
) -> Task:
    from perdure.tasks.readers import read_pool

    pool = read_pool(about["source"], data=Path(data) if data else None, progress=progress)
    drawn = draw(pool, train=sizes["train"], validation=sizes["validation"], test=sizes["test"], rng=rng)
    splits = {split: [Example(text, label) for text, label in getattr(drawn, split)] for split in SPLITS}
    return Task(name, **splits, labels=about["labels"], metric=about.get("metric", "accuracy"), notes=drawn.notes)


def _order(name: str, about: dict[str, Any], wanted: str | int | Sequence[str] | None) -> tuple[str, list[str]]:
    """(the order's name, the tasks' names)."""
    orders: dict[str, list[str]] = {str(key): tasks for key, tasks in about["orders"].items()}
    if wanted is None:
        wanted = next(iter(orders))
    if isinstance(wanted, int) or (isinstance(wanted, str) and "," not in wanted and wanted not in about["tasks"]):
        if str(wanted) not in orders:
            raise UnknownName(f"order of suite '{name}'", str(wanted), orders)
        return str(wanted), orders[str(wanted)]
    tasks = [task.strip() for task in wanted.split(",")] if isinstance(wanted, str) else list(wanted)
    for task in tasks:
        if task not in about["tasks"]:
            raise UnknownName(f"task of suite '{name}'", task, about["tasks"])
    return ",".join(tasks), tasks


def _check_sizes(sizes: dict[str, Size]) -> None:
    for split, size in sizes.items():
        if size != "all" and (not isinstance(size, int) or size < (0 if split == "validation" else 1)):
            raise ConfigError(f"The {split} size is {size!r}; give a number of examples of at least 1, or 'all'.")

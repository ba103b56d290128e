"""Named sequences of tasks, described by the versioned files of `suites/*.yaml`.

`suite_names` and `describe` read only the description (no torch, no data); `load_suite` reads the data.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from perdure.errors import ConfigError, DataError, MissingTask, UnknownName
from perdure.settings.yaml_text import read_yaml
from perdure.tasks.protocols import under_protocol
from perdure.tasks.spec import Size
from perdure.tasks.splits import as_task, draw
from perdure.tasks.task import SPLITS, Task

HUB = "hub"
"""Given in place of a data folder: read the suite from the hub, if it is there."""
FOLDER = Path(__file__).with_name("suites")


@dataclass(frozen=True)
class Suite:
    """Tasks in learning order, with warnings about their data.

    Args:
        order: name of the order, or the tasks' names joined by commas.
        warnings: rows removed, splits cut, sizes not reached, missing tasks; each starts with the names of the tasks
            it is about.
    """

    name: str
    version: int
    order: str
    tasks: tuple[Task, ...]
    warnings: tuple[str, ...]


def suite_names() -> tuple[str, ...]:
    """Names of perdure's own suites."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


@cache
def _description(name: str) -> dict[str, Any]:
    return _with_tasks_of(_with_class_splits(read_yaml(FOLDER / f"{name}.yaml", "suite")))


def describe(name: str) -> dict[str, Any]:
    """Contents of the suite's file: about, version, orders, sizes, and tasks with labels, source and licence.

    `name` may be the path of a custom YAML file (`perdure.tasks.own_suite`).

    Raises:
        UnknownName: no such suite; DataError, ConfigError: the file is missing or wrong.
    """
    if name.endswith((".yaml", ".yml")):
        from perdure.tasks.own_suite import read_own_suite

        return _with_tasks_of(read_own_suite(Path(name)))
    if name not in suite_names():
        raise UnknownName("suite", name, suite_names())
    return _description(name)


def _with_class_splits(about: dict[str, Any]) -> dict[str, Any]:
    """Replace `class_splits`, which cuts one large data set into tasks of consecutive classes, by `tasks` and `orders`.

    There is one order per number of tasks. The third of ten tasks is called <prefix>-10-03; its reader gets `classes`,
    number -> label.
    """
    expanded = dict(about)
    cut = expanded.pop("class_splits", None)
    if cut is None:
        return expanded
    orders = expanded["orders"] = {}
    tasks = expanded["tasks"] = {}
    for count in cut["into"]:
        size = len(cut["classes"]) // count
        for i in range(count):
            numbers = range(i * size, (i + 1) * size)
            name = f"{cut['prefix']}-{count}-{i + 1:02}"
            orders.setdefault(str(count), []).append(name)
            classes = {number: cut["classes"][number] for number in numbers}
            tasks[name] = {
                "about": f"{cut['about']} Classes {numbers[0]} to {numbers[-1]}.",
                "licence": cut["licence"],
                "source": {**cut["source"], "classes": classes},
                "labels": list(classes.values()),
            }
    return expanded


def _with_tasks_of(about: dict[str, Any]) -> dict[str, Any]:
    """Add the tasks listed under `tasks_of`, their suites' data folder, and whether those remove near-duplicates."""
    tasks = dict(about.get("tasks", {}))
    for suite, names in about.get("tasks_of", {}).items():
        if suite not in suite_names():  # a custom file could include itself
            raise UnknownName("built-in suite", suite, suite_names())
        other = describe(suite)
        inherited = {"without_near_repeats": True} if other.get("without_near_repeats") else {}
        for name in names:
            if name not in other["tasks"]:
                raise UnknownName(f"task of suite '{suite}'", name, other["tasks"])
            tasks[name] = {**other["tasks"][name], **inherited}
        if "data" not in other:
            continue
        about = {"data": other["data"], **about}
        if "protocols" in other and len(about["tasks_of"]) == 1 and not about.get("tasks"):  # no other suite's tasks
            about = {"protocols": other["protocols"], **about}
        if (here := about["data"]["variable"]) != (there := other["data"]["variable"]):
            raise ConfigError(
                f"Suite '{about['name']}': the tasks of '{suite}' are read from the folder in {there}, others from the "
                f"one in {here}. A suite has one data folder: make two suites."
            )
    return {**about, "tasks": tasks}


def load_suite(
    name: str,
    *,
    order: str | int | Sequence[str] | None = None,
    data: str | Path | None = None,
    train: Size | None = None,
    validation: Size | None = None,
    test: Size | None = None,
    seed: int = 0,
    protocol: str | None = None,
) -> Suite:
    """The suite's tasks with their examples.

    Args:
        order: name of one of the suite's orders, or names of its tasks; None: its first order.
        data: data folder, for a suite that needs one, or 'hub'; None: the environment variable the suite names.
        train, validation, test: examples per task, or "all"; None: the suite's own sizes. Classes are in proportion.
        seed: which training and validation examples are drawn; the test examples are always the same
            (`perdure.tasks.splits.draw`).
        protocol: how tasks are read and scored, one of `protocols`; None: the suite's default.

    Raises:
        UnknownName: no such suite, order, task or protocol; ConfigError: `data` for a suite that needs none.
        DataError, FetchError: the data cannot be read or fetched.
    """
    about = under_protocol(describe(name), protocol)
    label, names = chosen_order(name, about, order)
    sizes: dict[str, Size] = {
        s: about["sizes"][s] if n is None else n for s, n in zip(SPLITS, (train, validation, test), strict=True)
    }
    for split, size in sizes.items():
        if size != "all" and (not isinstance(size, int) or size < (0 if split == "validation" else 1)):
            raise ConfigError(f"The {split} size is {size!r}; give a number of examples of at least 1, or 'all'.")
    folder = _data_folder(about, data)
    made: dict[str, Task] = {}
    notes: dict[str, list[str]] = {}
    packaged = [task for task in names if "asset" in about["tasks"][task].get("source", {})]
    unpackaged = [task for task in names if task not in packaged]
    for tasks in (unpackaged, packaged):  # packages are fetched only once the folder has proved right
        for task in tasks:
            try:
                made[task] = _load_task(task, about, folder, sizes, seed)
            except MissingTask as error:
                notes.setdefault(f"left out, {error}", []).append(task)
                continue
            for note in made[task].notes:
                notes.setdefault(note, []).append(task)
        if tasks and not made:
            raise DataError(f"{folder} holds none of the tasks of suite '{name}'. {_layout(about)}")
    warnings = tuple(f"{', '.join(affected)}: {note}" for note, affected in notes.items())
    return Suite(name, about["version"], label, tuple(made[task] for task in names if task in made), warnings)


def _load_task(name: str, suite: dict[str, Any], data: Path | None, sizes: dict[str, Size], seed: int) -> Task:
    about = {"without_near_repeats": suite.get("without_near_repeats", False), **suite["tasks"][name]}
    if "source" not in about:
        from perdure.tasks.own_suite import load_own_task

        return load_own_task(name, about, sizes, seed)
    from perdure.tasks.sources.readers import read_pool

    pool = read_pool(about, data=data)
    drawn = draw(pool, **sizes, name=name, seed=seed, near=about["without_near_repeats"])
    metric = about.get("metric") or pool.metric or "accuracy"
    return as_task(name, drawn, labels=about.get("labels", {}), metric=metric, template=about.get("template", ""))


def _location(about: dict[str, Any], data: str | Path | None) -> Path | str | None:
    """Where a suite with a data folder is read from: a Path, HUB, or None if that is not known."""
    settings = about["data"]
    usual = settings.get("usual")  # where a system's package installs the data
    given = data or os.environ.get(settings["variable"]) or (usual if usual and os.path.isdir(usual) else None)
    if not given:
        return HUB if settings.get("optional") else None
    return HUB if given == HUB and settings.get("hub") else Path(given).expanduser()


def _data_folder(about: dict[str, Any], data: str | Path | None) -> Path | None:
    """The folder a suite's data is in; None for a suite that is read from packages or from the hub."""
    if "data" not in about:
        if data:
            raise ConfigError(f"Suite '{about['name']}' needs no data folder: leave out `data`.")
        return None
    location = _location(about, data)
    if location is None:
        hub = " (or to hub, to read the same sets from there)" if about["data"].get("hub") else ""
        raise DataError(
            f"Suite '{about['name']}' needs its data: set `data` or {about['data']['variable']} to a folder{hub}. "
            f"{_layout(about)}"
        )
    if isinstance(location, str):
        return None
    if not os.path.isdir(location):
        raise DataError(f"No such folder: {location}. {_layout(about)}")
    return location


def _layout(about: dict[str, Any]) -> str:
    return f"Expected layout: {about['data']['layout']} ({about['data']['origin']})."


class Missing(NamedTuple):
    """What is needed to read a suite and is not available locally."""

    assets: list[str]  # package files that are not in the cache
    hub: list[str]  # tasks that would be read from the hub
    folder: bool  # the suite has a data folder, and none is known


def missing(name: str, data: str | Path | None = None) -> Missing:
    """What would have to be fetched or given to read a suite; `data` as in `load_suite`.

    Raises:
        UnknownName: no such suite or package file; DataError, ConfigError: a custom suite's file is missing or wrong.
    """
    from perdure.tasks.sources.packages import is_cached
    from perdure.tasks.sources.readers import may_read_hub

    about = describe(name)
    location = _location(about, data) if "data" in about else HUB
    assets: set[str] = set()
    hub: list[str] = []
    for task, entry in about["tasks"].items():
        source, package = entry.get("source") or {}, entry.get("package") or {}
        assets |= {read["asset"] for read in (source, package) if read.get("asset")}
        if entry.get("dataset") or may_read_hub(package) or (location == HUB and may_read_hub(source)):
            hub.append(task)
    no_folder = "data" in about and not isinstance(location, Path)
    return Missing(sorted(asset for asset in assets if not is_cached(asset)), hub, no_folder)


def has_data(name: str, data: str | Path | None = None) -> bool:
    """Whether the suite can be read without fetching anything."""
    return not any(missing(name, data))


def chosen_order(name: str, about: dict[str, Any], wanted: str | int | Sequence[str] | None) -> tuple[str, list[str]]:
    """(name of the order, names of its tasks) for a described suite; `wanted`: see `order` of `load_suite`.

    Raises:
        UnknownName: no such order or task.
    """
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

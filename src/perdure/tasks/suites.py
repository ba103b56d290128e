"""Named sequences of tasks, described by the versioned files of `suites/*.yaml`.

`suite_names` and `describe` read only the description (no torch, no data); `load_suite` reads the data.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from perdure.errors import ConfigError, DataError, MissingTask, UnknownName
from perdure.tasks.class_splits import with_class_splits
from perdure.tasks.spec import Size
from perdure.tasks.splits import as_task, draw
from perdure.tasks.task import SPLITS, Task

HUB = "hub"
"""Given in place of a data folder: read the suite from the hub, where it has such a form."""
FOLDER = Path(__file__).with_name("suites")


@dataclass(frozen=True)
class Suite:
    """Tasks in the order they are learnt in, and what was noticed while reading them.

    Args:
        order: name of the order, or the tasks' names joined by commas.
        warnings: rows removed, splits cut, sizes not reached, tasks that are missing; each
            begins with the names of the tasks it is about.
    """

    name: str
    version: int
    order: str
    tasks: tuple[Task, ...]
    warnings: tuple[str, ...]


def suite_names() -> tuple[str, ...]:
    """Names of all suites."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


@cache
def _description(name: str) -> dict[str, Any]:
    return _with_tasks_of(with_class_splits(yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))))


def describe(name: str) -> dict[str, Any]:
    """The suite's file as it stands: about, version, orders, sizes, and tasks with labels, source and licence.

    `name` may be the path of a YAML file of your own (`perdure.tasks.own_suite`).

    Raises:
        UnknownName: no such suite; DataError, ConfigError: the file is missing or wrong.
    """
    if name.endswith((".yaml", ".yml")):
        from perdure.tasks.own_suite import read_own_suite

        return _with_tasks_of(read_own_suite(Path(name)))
    if name not in suite_names():
        raise UnknownName("suite", name, suite_names())
    return _description(name)


def _with_tasks_of(about: dict[str, Any]) -> dict[str, Any]:
    """A description with the tasks, and the data folder, of those suites it takes tasks of; what they leave out stays out.

    Raises:
        UnknownName: no such suite or task; ConfigError: there would be two data folders.
    """
    tasks = dict(about.get("tasks", {}))
    for suite, names in about.get("tasks_of", {}).items():
        if suite not in suite_names():  # a file could take tasks of itself
            raise UnknownName("suite of the package", suite, suite_names())
        theirs = describe(suite)
        cleaned = {"without_near_repeats": True} if theirs.get("without_near_repeats") else {}
        for name in names:
            if name not in theirs["tasks"]:
                raise UnknownName(f"task of suite '{suite}'", name, theirs["tasks"])
            tasks[name] = {**theirs["tasks"][name], **cleaned}
        if "data" not in theirs:
            continue
        about = {"data": theirs["data"], **about}
        if (here := about["data"]["variable"]) != (there := theirs["data"]["variable"]):
            raise ConfigError(
                f"Suite '{about['name']}': the tasks of '{suite}' lie in the folder that {there} names, others in that of "
                f"{here}; a suite has one data folder. Make two suites of them."
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
) -> Suite:
    """The suite's tasks with their examples.

    Args:
        order: name of one of the suite's orders, or names of its tasks; None: its first order.
        data: folder of the data where a suite needs one, or 'hub'; None: the environment variable it names.
        train, validation, test: examples a task, or "all"; None: the suite's own sizes. The classes are in proportion.
        seed: which training and validation examples are drawn; the test examples are always the same
            (`perdure.tasks.splits.draw`).

    Raises:
        UnknownName: no such suite, order or task; ConfigError: `data` for a suite that needs none.
        DataError, FetchError: the data cannot be read or fetched.
    """
    about = describe(name)
    label, names = chosen_order(name, about, order)
    sizes: dict[str, Size] = {
        s: about["sizes"][s] if n is None else n for s, n in zip(SPLITS, (train, validation, test), strict=True)
    }
    _check_sizes(sizes)
    folder = _data_folder(about, data)
    made: dict[str, Task] = {}
    notes: dict[str, list[str]] = {}
    packaged = [task for task in names if "asset" in about["tasks"][task].get("source", {})]
    for some in ([task for task in names if task not in packaged], packaged):
        for task in some:
            try:
                made[task] = _load_task(task, about, folder, sizes, seed)
            except MissingTask as error:
                notes.setdefault(f"left out, {error}", []).append(task)
                continue
            for note in made[task].notes:
                notes.setdefault(note, []).append(task)
        if some and not made:
            raise DataError(f"{folder} holds none of the tasks of suite '{name}'. {_layout(about)}")
    warnings = tuple(f"{', '.join(affected)}: {note}" for note, affected in notes.items())
    return Suite(name, about["version"], label, tuple(made[task] for task in names if task in made), warnings)


def _load_task(
    name: str,
    suite: dict[str, Any],
    data: Path | None,
    sizes: dict[str, Size],
    seed: int,
) -> Task:
    about = {"without_near_repeats": suite.get("without_near_repeats", False), **suite["tasks"][name]}
    if "source" not in about:
        from perdure.tasks.own_suite import load_own_task

        return load_own_task(name, about, sizes, seed)
    from perdure.tasks.sources.readers import read_pool

    pool = read_pool(about, data=data)
    drawn = draw(pool, **sizes, name=name, seed=seed, near=about["without_near_repeats"])
    metric = about.get("metric") or pool.metric or "accuracy"
    return as_task(name, drawn, pool, labels=about.get("labels", {}), metric=metric, template=about.get("template", ""))


def _data_folder(about: dict[str, Any], data: str | Path | None) -> Path | None:
    """The folder a suite's data lie in; None for a suite that is read out of packages or from the hub.

    Raises:
        ConfigError: a folder is given to a suite that needs none; DataError: it is missing.
    """
    if "data" not in about:
        if data:
            raise ConfigError(f"Suite '{about['name']}' needs no data folder: leave out `data`.")
        return None
    if _reads_hub(about, data):
        return None
    if not (given := _given(about, data)):
        raise DataError(
            f"Suite '{about['name']}' needs its data: give `data`, or set {about['data']['variable']}, "
            f"to a folder{' (or to hub, for the same sets from there)' if about['data'].get('hub') else ''}. {_layout(about)}"
        )
    folder = Path(given).expanduser()
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}. {_layout(about)}")
    return folder


def _given(about: dict[str, Any], data: str | Path | None) -> str | Path | None:
    """What is known of the place of a suite's data: a folder, 'hub', or nothing."""
    return data or os.environ.get(about["data"]["variable"]) or _usual(about)


def _reads_hub(about: dict[str, Any], data: str | Path | None) -> bool:
    """Whether the hub is read in place of a suite's data folder."""
    given = _given(about, data)
    return bool((given == HUB and about["data"].get("hub")) or (not given and about["data"].get("optional")))


def _usual(about: dict[str, Any]) -> str | None:
    """The folder a system's package puts the data in, where it is installed."""
    usual = about["data"].get("usual")
    return usual if usual and Path(usual).is_dir() else None


@dataclass(frozen=True)
class Missing:
    """What a suite cannot be read without, and is not at hand.

    Args:
        assets: package files that are not in the cache yet.
        hub: tasks that would be read from the hub.
        folder: whether no data folder is known, of a suite that has one.
    """

    assets: list[str]
    hub: list[str]
    folder: bool


def missing(name: str, data: str | Path | None = None) -> Missing:
    """What a suite lacks to be read here and now; `data` as in `load_suite`.

    Raises:
        UnknownName: no such suite or package file; DataError, ConfigError: a suite's own file is missing or wrong.
    """
    from perdure.tasks.sources.packages import is_cached
    from perdure.tasks.sources.readers import may_read_hub

    about = describe(name)
    no_folder = "data" in about and (_reads_hub(about, data) or not _given(about, data))
    instead = "data" not in about or _reads_hub(about, data)
    assets: set[str] = set()
    hub: list[str] = []
    for task, entry in about["tasks"].items():
        source, package = entry.get("source") or {}, entry.get("package") or {}
        assets |= {read["asset"] for read in (source, package) if read.get("asset")}
        if entry.get("dataset") or may_read_hub(package) or (instead and may_read_hub(source)):
            hub.append(task)
    return Missing(sorted(asset for asset in assets if not is_cached(asset)), hub, no_folder)


def has_data(name: str, data: str | Path | None = None) -> bool:
    """Whether the suite can be read and nothing is fetched: from files, the cache, or a folder that is given or known."""
    found = missing(name, data)
    return not (found.assets or found.hub or found.folder)


def _layout(about: dict[str, Any]) -> str:
    return f"Expected in it: {about['data']['layout']} ({about['data']['origin']})."


def chosen_order(name: str, about: dict[str, Any], wanted: str | int | Sequence[str] | None) -> tuple[str, list[str]]:
    """(the order's name, the tasks' names) of a described suite; `wanted`: see `load_suite`.

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


def _check_sizes(sizes: dict[str, Size]) -> None:
    for split, size in sizes.items():
        if size != "all" and (not isinstance(size, int) or size < (0 if split == "validation" else 1)):
            raise ConfigError(f"The {split} size is {size!r}; give a number of examples of at least 1, or 'all'.")

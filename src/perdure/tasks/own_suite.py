"""A suite of your own: a YAML file like those in `suites/`, whose tasks may also be described as `TaskSpec`s."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, model_validator

from perdure.errors import ConfigError, DataError
from perdure.settings.read import Settings, read_yaml, validate
from perdure.tasks.sources.files import load_task
from perdure.tasks.spec import Labels, Size, Some, TaskSpec
from perdure.tasks.task import Task


class Sizes(Settings):
    """Examples a task at most; 'all' there are."""

    train: Some = "all"
    validation: Size = "all"
    test: Some = "all"


class DataFolder(Settings):
    """The folder a suite's readers look in: the environment variable that names it, and what should be in it."""

    variable: str
    layout: str
    origin: str
    optional: bool = False
    """without a folder, the hub is read."""
    hub: bool = False
    """with 'hub' in place of a folder, the hub is read."""
    usual: str | None = None
    """where a system's package puts the data; read if nothing else is given and it is there."""


class Source(Settings):
    """What a task is read out of; further keys are the reader's own, and checked against it when it reads."""

    model_config = ConfigDict(extra="allow")

    reader: str
    """one of `perdure.tasks.sources.readers.READERS`."""
    asset: str | None = None
    """the package file; without one, the reader gets the suite's data folder."""
    labels: bool = False
    """the reader gets the task's labels, to check what it reads."""


class SourceTask(Settings):
    """A task as the package's own suites describe it."""

    about: str = ""
    """for people: what it is, what encoders are expected to do, sizes of the original."""
    licence: str = "unknown"
    """for people: what it is, what encoders are expected to do, sizes of the original."""
    source: Source
    labels: Labels = None
    """class names, or class name -> the text that stands for it in front of a model; none: texts are written."""
    metric: str | None = None
    """of the score; None = the data's own, or accuracy."""
    template: str = ""
    """what a language model reads, with the text in place of "{text}"."""
    published: dict[str, int] = Field(default_factory=dict)
    """for people: what it is, what encoders are expected to do, sizes of the original."""
    encoder: str = ""
    """for people: what it is, what encoders are expected to do, sizes of the original."""
    without_near_repeats: bool = False

    @model_validator(mode="after")
    def _labels_to_hand_over(self) -> SourceTask:
        if self.source.labels and not self.labels:
            raise ValueError("`source` says `labels: true`, so its reader needs the task's `labels`: list them")
        return self


class SuiteSpec(Settings):
    """The file of a suite."""

    name: str
    version: int = Field(default=1, ge=1)
    about: str = ""
    sizes: Sizes = Sizes()
    data: DataFolder | None = None
    without_near_repeats: bool = False
    """also leave out texts that nearly repeat another one; what a task says itself goes before."""
    orders: dict[str | int, list[str]] = Field(default_factory=dict)
    """name -> names of tasks; not given: all tasks as they stand, called 'default'."""
    tasks: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """name -> the settings of a `TaskSpec` without its name, or those of a `SourceTask`."""
    tasks_of: dict[str, list[str]] = Field(default_factory=dict)
    """name of a suite of the package -> names of tasks that are taken from there, with the folder they are read from
    (one for all)."""

    @property
    def names(self) -> list[str]:
        """Of all tasks, its own and those taken from other suites."""
        return [*self.tasks, *(name for names in self.tasks_of.values() for name in names)]

    @model_validator(mode="after")
    def _known_tasks(self) -> SuiteSpec:
        if not self.names:
            raise ValueError("a suite needs tasks, or tasks_of another one")
        if twice := [name for name, count in Counter(self.names).items() if count > 1]:
            raise ValueError(f"{', '.join(twice)} is in tasks or tasks_of more than once")
        for order, names in self.orders.items():
            unknown = [name for name in names if name not in self.names]
            if unknown:
                raise ValueError(f"order {order} names {', '.join(unknown)}, which is not among the tasks")
        return self


def read_own_suite(path: Path) -> dict[str, Any]:
    """The description in a suite file, as `perdure.tasks.suites.describe` gives it.

    Raises:
        DataError: no such file, or no YAML; ConfigError: an unknown key or a wrong value, also of a task.
    """
    try:
        suite = validate(SuiteSpec, read_yaml(path, "suite", DataError))
        tasks = {name: _described(name, task, path.parent) for name, task in suite.tasks.items()}
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    orders = suite.orders or {"default": suite.names}
    return {**suite.model_dump(exclude_none=True), "tasks": tasks, "orders": orders}


def _described(name: str, task: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A task's settings as they are read later, checked; relative files of a `TaskSpec` lie in `folder`."""
    try:
        if "source" in task:
            return validate(SourceTask, task).model_dump(exclude_unset=True)
        _spec(name, task)
    except ConfigError as error:
        raise ConfigError(f"task {name}: {error}") from error
    return {**task, "folder": str(folder)}


def _spec(name: str, task: Mapping[str, Any]) -> TaskSpec:
    return validate(TaskSpec, {**{k: v for k, v in task.items() if k not in ("about", "licence")}, "name": name})


def load_own_task(name: str, about: dict[str, Any], sizes: dict[str, Size], seed: int) -> Task:
    """The task of a suite that is described as a `TaskSpec`.

    Raises:
        DataError: see `perdure.tasks.sources.files.load_task`.
    """
    settings = {key: value for key, value in about.items() if key != "folder"}
    limits: dict[str, Any] = {f"{split}_size": size for split, size in sizes.items()}
    return load_task(_spec(name, {"seed": seed, **limits, **settings}), about["folder"])

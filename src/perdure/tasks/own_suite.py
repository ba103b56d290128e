"""Custom suites: a YAML file like those in `suites/`, whose tasks may also be described as `TaskSpec`s."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, model_validator

from perdure.errors import ConfigError, DataError
from perdure.settings.read import Settings, validate
from perdure.settings.yaml_text import read_yaml
from perdure.tasks.sources.files import load_task
from perdure.tasks.spec import Labels, Size, Some, TaskSpec
from perdure.tasks.task import Task


class Sizes(Settings):
    """Maximum number of examples per task."""

    train: Some = "all"
    validation: Size = "all"
    test: Some = "all"


class DataFolder(Settings):
    """The folder a suite's readers look in: the environment variable that names it, and its expected contents."""

    variable: str
    layout: str
    origin: str
    optional: bool = False
    """without a folder, read from the hub."""
    hub: bool = False
    """with 'hub' in place of a folder, read from the hub."""
    usual: str | None = None
    """where a system's package installs the data; used if nothing else is given and it exists."""


class Source(Settings):
    """Where a task is read from; further keys are the reader's own, and are checked when it reads."""

    model_config = ConfigDict(extra="allow")

    reader: str
    """one of `perdure.tasks.sources.readers.READERS`."""
    asset: str | None = None
    """the package file; without one, the reader gets the suite's data folder."""
    labels: bool = False
    """pass the task's labels to the reader, to check what it reads."""


class SourceTask(Settings):
    """A task as perdure's own suites describe it.

    `about`, `licence`, `published` (sizes of the original) and `encoder` (what encoders are expected to do) are for
    people only.
    """

    about: str = ""
    licence: str = "unknown"
    source: Source
    labels: Labels = None
    """class names, or class name -> the text that stands for it in front of a model; none: free text."""
    metric: str | None = None
    """name of the score; None = the data's own, or accuracy."""
    template: str = ""
    """what a language model reads, with "{text}" in place of the text."""
    published: dict[str, int] = Field(default_factory=dict)
    encoder: str = ""
    without_near_repeats: bool = False

    @model_validator(mode="after")
    def _labels_for_reader(self) -> SourceTask:
        if self.source.labels and not self.labels:
            raise ValueError("`source` has `labels: true`, so its reader needs the task's `labels`: list them")
        return self


class SuiteSpec(Settings):
    """The file of a suite."""

    name: str
    version: int = Field(default=1, ge=1)
    about: str = ""
    sizes: Sizes = Sizes()
    data: DataFolder | None = None
    without_near_repeats: bool = False
    """also remove near-duplicate texts; a task's own setting takes precedence."""
    orders: dict[str | int, list[str]] = Field(default_factory=dict)
    """name -> names of tasks; by default one order called 'default' with all tasks as listed."""
    tasks: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """name -> the settings of a `TaskSpec` without its name, or those of a `SourceTask`."""
    tasks_of: dict[str, list[str]] = Field(default_factory=dict)
    """name of a built-in suite -> tasks to include from it, with its data folder (one for the whole suite)."""

    @property
    def names(self) -> list[str]:
        """Names of all tasks, its own and those included from other suites."""
        return [*self.tasks, *(name for names in self.tasks_of.values() for name in names)]

    @model_validator(mode="after")
    def _known_tasks(self) -> SuiteSpec:
        if not self.names:
            raise ValueError("a suite needs tasks, or tasks_of another one")
        if twice := [name for name, count in Counter(self.names).items() if count > 1]:
            raise ValueError(f"{', '.join(twice)} is in tasks or tasks_of more than once")
        for order, names in self.orders.items():
            if unknown := [name for name in names if name not in self.names]:
                raise ValueError(f"order {order} names {', '.join(unknown)}, which is not among the tasks")
        return self


def read_own_suite(path: Path) -> dict[str, Any]:
    """The description in a suite file, in the form `perdure.tasks.suites.describe` returns.

    Raises:
        DataError: no such file, or not valid YAML; ConfigError: an unknown key or a wrong value, also of a task.
    """
    try:
        suite = validate(SuiteSpec, read_yaml(path, "suite", DataError))
        tasks = {name: _described(name, task, path.parent) for name, task in suite.tasks.items()}
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    orders = suite.orders or {"default": suite.names}
    return {**suite.model_dump(exclude_none=True), "tasks": tasks, "orders": orders}


def _described(name: str, task: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A task's checked settings; relative files of a `TaskSpec` are in `folder`."""
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
    """The task of a suite that is described as a `TaskSpec`; errors as in `perdure.tasks.sources.files.load_task`."""
    settings = {key: value for key, value in about.items() if key != "folder"}
    limits: dict[str, Any] = {f"{split}_size": size for split, size in sizes.items()}
    return load_task(_spec(name, {"seed": seed, **limits, **settings}), about["folder"])

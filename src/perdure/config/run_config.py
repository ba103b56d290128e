"""The configuration of a run: validated settings, from YAML, the command line or Python.

Settings are frozen; an unknown key is an error that suggests the nearest known one (perdure.settings.read).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from perdure.config.composition import resolve_method, wanted_settings
from perdure.config.lora_settings import LoraSettings
from perdure.config.protocol import with_protocol
from perdure.config.training_settings import TrainingSettings
from perdure.errors import ConfigError, DataError
from perdure.settings.read import Settings, validate, with_override
from perdure.settings.yaml_text import read_yaml
from perdure.tasks.spec import SPLITS, TaskSpec, check_is_task

SUITE_FILES = (".yaml", ".yml")
SUITE_SETTINGS = ("order", "data", "data_seed", "budget", "protocol")
"""Settings that apply to suites only: your own tasks set this themselves."""


class BudgetSettings(Settings):
    """Maximum number of examples per task of a suite. A suite file of your own may set its own sizes."""

    train: int | None = Field(default=256, ge=1)
    """maximum number of training examples per task; None = all."""
    validation: int | None = Field(default=128, ge=0)
    """maximum number of validation examples per task; None = all."""
    test: int | None = Field(default=500, ge=1)
    """maximum number of test examples per task; None = all."""


class ProtectSettings(Settings):
    """What the base itself can do, protected as if it had been learnt before the first task (docs/protect.md)."""

    base: str | None = None
    """texts that show it: 'self' (the model writes them itself), a suite's name or YAML file, or a file of texts: one a line
    in .txt, else records with a field `text`. None = the base is not protected. Give it alone as `protect: self`."""
    texts: int = Field(default=128, ge=2)
    """maximum number of texts; of a suite, of each task."""
    tokens: int = Field(default=128, ge=2)
    """longest text that the model writes itself, in tokens; at most backbone.max_length."""


class EvaluationSettings(Settings):
    """How a deployed model is scored."""

    split: Literal["validation", "test"] = "test"
    """'validation' while choosing settings, 'test' for results."""
    examples: int | None = Field(default=None, ge=1)
    """at most so many examples of a task are scored, drawn at random, the same ones every time; reports say how many, and the
    intervals of changes are those of so many. None = all."""
    labels: Literal["task", "seen"] = "task"
    """candidate labels: 'task' = the task's own; 'seen' = also those of all tasks learnt so far, of which texts
    that differ in case or spacing only are one."""
    future: bool = True
    """also score tasks not learnt yet after every stage. Forward transfer needs this and `every_stage: true`, which scores
    all tasks before the first stage in any case."""
    every_stage: bool | Literal["own"] = True
    """when to score T tasks. true = all tasks before the first and after every stage: T (T + 1) scorings, of those after
    stages about half with `future: false`. own = each task after its own stage and all after the last: 2 T; forgetting is
    then measured from right after learning, not from the best score in between. false = after the last stage only: T,
    enough for choosing settings by average accuracy. Many tasks, large test sets: `own`, or fewer `examples`."""


class DeploySettings(Settings):
    """What is written for others to serve: `deployed/` and exports."""

    rank: int | None = Field(default=None, ge=1)
    """at most so many directions in each layer's update: the adapter's rank, which grows with the tasks where updates are
    summed (vLLM takes one of 8, 16, 32, 64, 128, 256, 320, 512 at most). The nearest update of that rank is deployed, also of
    a merge that is not low rank; `deployed/rank.json` and the card say which share of the energy it keeps and how many
    validation answers changed. Scores and `predict` are those of the whole update. None = all of it."""


def _protect(value: Any) -> Any:
    return {"base": value} if isinstance(value, str) else value


def _backbone(value: Any) -> dict[str, Any]:
    if not isinstance(value, str | Mapping):
        raise ConfigError(f"backbone: expected a model's name or a mapping with `model`, got {value!r:.80}.")
    found = {"model": value} if isinstance(value, str) else {"model": "minilm", **value}
    if not isinstance(found["model"], str):
        raise ConfigError(f"backbone.model: expected a name, a folder or a hub id, got {found['model']!r:.80}.")
    return found


class RunConfig(Settings):
    """Everything that decides the result of a run. Relative paths in a file are relative to that file."""

    method: Annotated[dict[str, Any], BeforeValidator(resolve_method)] = Field(
        default_factory=lambda: resolve_method("ps-lora")
    )
    """a preset's name, or a composition of parts (docs/composition.md)."""
    suite: str | None = None
    """a suite's name (`perdure suites`) or YAML file, instead of `tasks`."""
    tasks: tuple[TaskSpec, ...] = ()
    """your own tasks in the order they are learnt, each a mapping as below or the name of a YAML file with one."""
    history: tuple[str, ...] = ()
    """folders or hub ids of PEFT adapters trained earlier, oldest first."""
    order: Annotated[str | None, BeforeValidator(lambda value: str(value) if isinstance(value, int) else value)] = None
    """order of a suite's tasks: the name of one of its orders, or comma-separated task names; None = its first order."""
    data: str | None = None
    """folder with a suite's files, if it needs one; 'hub' = read them from the hub, if the suite supports that."""
    protocol: Literal["perdure", "published"] = "perdure"
    """how a suite is learnt and scored: 'published' = as its paper's released code does, where the suite has that
    (`perdure suites show NAME` says what it changes). Suite `trace` is 'published' unless you say otherwise."""
    budget: BudgetSettings = BudgetSettings()
    """maximum number of examples per task of a suite."""
    backbone: Annotated[dict[str, Any], BeforeValidator(_backbone)] = Field(default_factory=lambda: {"model": "minilm"})
    """a model's name, or settings as below."""
    lora: LoraSettings = LoraSettings()
    """settings of the adapter."""
    training: TrainingSettings = TrainingSettings()
    """how each stage is trained."""
    training_by_task: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """settings of `training` for single tasks, by name: {april: {epochs: 6}}. They replace the run's in that stage."""
    protect: Annotated[ProtectSettings, BeforeValidator(_protect)] = ProtectSettings()
    """what the base itself can do, protected as if it had been learnt first."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """how the deployed model is scored."""
    deploy: DeploySettings = DeploySettings()
    """what is written for others to serve."""
    seed: int = Field(default=0, ge=0)
    """seed of all randomness in training."""
    data_seed: int = Field(default=0, ge=0)
    """seed for drawing a suite's training and validation examples; the test examples are always the same."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """compute precision; 'auto' = bf16 if the device multiplies it at least 1.5 times as fast as fp32. Labels that lie closer
    than bf16 rounds are told apart in fp32."""
    threads: int | None = Field(default=None, ge=1, le=1024)
    """CPU threads; None = PyTorch's default."""
    shard: bool = Field(default=False, exclude=True)
    """split the base's weights over a launcher's processes. Does not affect the result."""

    @model_validator(mode="after")
    def _learns_something(self) -> RunConfig:
        if not self.training.epochs and not self.method.get("head"):
            raise ValueError(
                "training.epochs is 0, so nothing is learnt; only a method with a head (frozen-head) allows that"
            )
        return self

    @property
    def method_name(self) -> str:
        """The preset's name, or 'custom'."""
        return self.method["name"]


def load_config(source: Mapping[str, Any] | str | Path, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """A validated configuration from a mapping or a YAML file, with dotted `overrides` applied.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown or a value invalid; lists every problem with its place.
    """
    data = dict(source) if isinstance(source, Mapping) else _from_file(Path(source))
    for key, value in (overrides or {}).items():
        data = with_override(data, key, value)
    data = with_protocol(_with_suite_sizes(data))
    for key, value in wanted_settings(data["method"]).items() if "method" in data else ():
        if not _is_given(data, key):
            data = with_override(data, key, value)
    return validate(RunConfig, data)


def _from_file(path: Path) -> dict[str, Any]:
    data = read_yaml(path, "configuration")
    if "name" in data and not data.keys() & {"tasks", "suite"} and data.keys() & {"train", "dataset", "package"}:
        raise ConfigError(f"'{path}' describes a task, not a run. List it in a configuration: `tasks: [{path.name}]`.")
    return located_settings(data, path)


def _is_given(data: Any, dotted: str) -> bool:
    head, _, rest = dotted.partition(".")
    return isinstance(data, Mapping) and head in data and (not rest or _is_given(data[head], rest))


def _with_suite_sizes(data: dict[str, Any]) -> dict[str, Any]:
    """The settings with the sizes from your own suite's file, for the splits that `budget` leaves open."""
    suite, budget = data.get("suite"), data.get("budget", {})
    if not (isinstance(suite, str) and suite.endswith(SUITE_FILES) and isinstance(budget, Mapping)):
        return data
    if budget.keys() >= set(SPLITS):
        return data
    sizes = read_yaml(Path(suite), "suite", DataError).get("sizes")
    sizes = sizes if isinstance(sizes, Mapping) else {}  # reading the suite reports what is wrong with them
    limits = {s: None if n == "all" else n for s in SPLITS if (n := sizes.get(s)) == "all" or isinstance(n, int)}
    return {**data, "budget": {**limits, **budget}} if limits else data


def located_settings(settings: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """A file's settings with absolute paths, of tasks, adapters, suite, data and model; relative ones start at the file.

    Raises:
        ConfigError: a task's file is missing or invalid.
    """
    data, folder = dict(settings), file.parent
    if isinstance(tasks := data.get("tasks"), list):
        data["tasks"] = [_located_task(task, file) for task in tasks]
    if isinstance(history := data.get("history"), list):
        data["history"] = [located(place, folder) if isinstance(place, str) else place for place in history]
    return located_sources(data, folder)


def located_sources(data: Mapping[str, Any], folder: Path = Path()) -> dict[str, Any]:
    """Settings with absolute paths of the suite's file, data folder, texts to protect and model's folder, if they exist.

    A model's bare name stays: it may be one of the known models.
    """
    found = dict(data)
    if isinstance(suite := data.get("suite"), str) and suite.endswith(SUITE_FILES):
        found["suite"] = located(suite, folder)
    if isinstance(place := data.get("data"), str) and place != "hub":
        found["data"] = located(place, folder)
    protect = data.get("protect")
    base = protect.get("base") if isinstance(protect, Mapping) else protect
    if isinstance(base, str) and Path(base).suffix:  # neither 'self' nor a suite's name
        base = located(base, folder)
        found["protect"] = {**protect, "base": base} if isinstance(protect, Mapping) else base
    backbone = data.get("backbone")
    model = backbone.get("model") if isinstance(backbone, Mapping) else backbone
    if isinstance(model, str) and "/" in model:
        model = located(model, folder)
        found["backbone"] = {**backbone, "model": model} if isinstance(backbone, Mapping) else model
    return found


def located(place: str, folder: Path = Path()) -> str:
    """The absolute path of `place`, relative to `folder`; unchanged if nothing exists there (a hub id)."""
    path = folder / Path(place).expanduser()
    return str(path.resolve()) if os.path.exists(path) else place


def _located_task(task: Any, named_in: Path) -> Any:
    """A task of a configuration file with absolute file names; the name of a YAML file stands for its content."""
    folder = named_in.parent
    if isinstance(task, str):
        file = folder / Path(task).expanduser()
        if not os.path.isfile(file):
            raise ConfigError(f"No such task file: '{file}', which '{named_in}' names under `tasks`.")
        settings = read_yaml(file, "task")
        check_is_task(file, settings)
        try:
            validate(TaskSpec, settings)
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from error
        return _located_task(settings, file)
    if not isinstance(task, dict) or task.get("dataset") or task.get("package"):
        return task
    files = {s: str((folder / Path(task[s]).expanduser()).resolve()) for s in SPLITS if isinstance(task.get(s), str)}
    return {**task, **files}

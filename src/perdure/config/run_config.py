"""What a run is: validated settings. YAML, command line and Python all end here.

    RunConfig
    ├── method      a preset's name, or a composition of parts (perdure.config.composition)
    ├── suite, order, data    which tasks, in which order, from where
    ├── tasks       tasks from your own files (perdure.tasks.spec); or tasks are given from Python
    ├── history     PEFT adapters that were trained before, oldest first
    ├── budget      how many examples of each split
    ├── backbone    which model, and how it reads and answers
    ├── lora        rank, alpha, targets
    ├── training    learning rate, epochs, batches
    ├── evaluation  which split and which labels
    ├── seed, precision, threads
    └── shard       split the base's weights over the processes (perdure.training.processes); decides nothing about the outcome

Settings are frozen; an unknown key is an error that names the nearest known one (perdure.settings.read).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from perdure.config.composition import resolve_method, wanted_settings
from perdure.errors import ConfigError, DataError
from perdure.settings.read import Settings, read_yaml, validate, with_override
from perdure.tasks.spec import SPLITS, TaskSpec, check_is_task

SUITE_FILES = (".yaml", ".yml")
SUITE_SETTINGS = ("order", "data", "data_seed", "budget")
"""Settings that say which examples of a suite are learnt, and in which order; tasks of your own say it themselves."""
Precision = Literal["auto", "fp32", "bf16"]


class LoraSettings(Settings):
    """The adapter."""

    rank: int = Field(default=8, ge=1)
    """r, how many directions the update of a layer has."""
    alpha: float = Field(default=16.0, gt=0)
    """the update is scaled by alpha / r, or alpha / sqrt(r) with `rslora`."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """on the adapter's input while training."""
    targets: tuple[str, ...] = ()
    """names of the layers that get an adapter; empty = the backbone's usual ones (query and value)."""
    rslora: bool = False
    """rank-stabilised scaling."""


class TrainingSettings(Settings):
    """How one stage is trained."""

    learning_rate: float = Field(default=2e-3, gt=0)
    """of AdamW, for the first stage."""
    later_learning_rate_factor: float = Field(default=1.0, gt=0)
    """multiplies the learning rate of every stage after the first."""
    epochs: int = Field(default=3, ge=1)
    """passes over the stage's training examples."""
    batch_size: int = Field(default=16, ge=1)
    """examples per optimiser step."""
    accumulation: int = Field(default=1, ge=1)
    """micro-batches a step is computed in (memory, not mathematics: the gradient is the same)."""
    warmup_share: float = Field(default=0.0, ge=0, lt=1)
    """share of the steps over which the learning rate rises from 0."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """of the learning rate after warm-up."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's."""
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """gradients are clipped to this norm; None = never."""
    average: Literal["none", "last-half"] = "none"
    """'last-half': the stage's update is made from the mean of the factors over the last half of the steps."""
    checkpoint_minutes: float | None = Field(default=10.0, gt=0, exclude=True)
    """how often the training inside a stage is written down, so that a stopped run goes on there; None = between
    stages only. It decides nothing about the outcome, so it is not written into the run's configuration."""


class BudgetSettings(Settings):
    """How many examples of each of a suite's tasks are used, at most. A suite file of your own may set its own sizes."""

    train: int | None = Field(default=256, ge=1)
    """examples of that split; None = all there are."""
    validation: int | None = Field(default=128, ge=0)
    """examples of that split; None = all there are."""
    test: int | None = Field(default=500, ge=1)
    """examples of that split; None = all there are."""


class EvaluationSettings(Settings):
    """How a deployed model is scored."""

    split: Literal["validation", "test"] = "test"
    """'validation' while choosing settings, 'test' for results."""
    labels: Literal["task", "seen"] = "task"
    """'task' = among the task's own labels; 'seen' = among the labels of all tasks learnt so far (and the task's)."""
    future: bool = True
    """after every stage, also score tasks not learnt yet; forward transfer needs it, and it needs every_stage: true.
    With every_stage: true all tasks are scored before the first stage, whatever stands here."""
    every_stage: bool | Literal["own"] = True
    """true = all tasks after every stage: of T tasks, T (T + 1) scorings, T of them before the first, and about half
    of the others with future: false. own = a task after its own stage, and all after the last: 2 T; forgetting is
    then from right after learning, not from the best in between. false = after the last stage only, T: enough for
    choosing settings by average accuracy."""


class RunConfig(Settings):
    """Everything that decides the outcome of a run. What it names by a relative path lies beside the configuration's file."""

    method: dict[str, Any] = Field(default_factory=lambda: resolve_method("ps-lora"))
    """a preset's name, or a composition of parts (docs/composition.md)."""
    suite: str | None = None
    """tasks by the name of a suite (`perdure suites`), or a suite's YAML file. Either this or `tasks`."""
    tasks: tuple[TaskSpec, ...] = ()
    """tasks of your own, each a mapping as below or the name of a YAML file with one, in the order they are learnt."""
    history: tuple[str, ...] = ()
    """folders (or hub ids) of PEFT adapters that were trained before, oldest first."""
    order: str | None = None
    """of a suite's tasks: the name of one of its orders, or names of tasks with commas between; None = its first."""
    data: str | None = None
    """folder with a suite's files, where it needs one; 'hub' = from there, where a suite has such a form."""
    budget: BudgetSettings = BudgetSettings()
    """how many examples of a suite's tasks are used."""
    backbone: dict[str, Any] = Field(default_factory=lambda: {"model": "minilm"})
    """a model, or settings as below."""
    lora: LoraSettings = LoraSettings()
    """the adapter."""
    training: TrainingSettings = TrainingSettings()
    """how a stage is trained."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """how a deployed model is scored."""
    seed: int = Field(default=0, ge=0)
    """of everything random in training."""
    data_seed: int = Field(default=0, ge=0)
    """which training and validation examples are drawn of a suite; the test examples are the same for every seed."""
    precision: Precision = "auto"
    """of computing; 'auto' = bf16 where this processor multiplies it at least 1.5 times as fast as fp32."""
    threads: int | None = Field(default=None, ge=1)
    """of the processor; None = as PyTorch chooses."""
    shard: bool = Field(default=False, exclude=True)
    """split the base's weights over the processes of a launcher. It decides nothing about the outcome."""

    @field_validator("method", mode="before")
    @classmethod
    def _resolve(cls, value: Any) -> dict[str, Any]:
        return resolve_method(value)

    @field_validator("backbone", mode="before")
    @classmethod
    def _named(cls, value: Any) -> dict[str, Any]:
        if not isinstance(value, str | Mapping):
            raise ConfigError(f"backbone: expected a model's name or a mapping with `model`, got {value!r:.80}.")
        return {"model": value} if isinstance(value, str) else {"model": "minilm", **value}

    @field_validator("order", mode="before")
    @classmethod
    def _order_name(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value  # YAML reads order: 1 as a number

    @property
    def method_name(self) -> str:
        """The preset's name, or 'custom'."""
        return self.method["name"]


def load_config(source: Mapping[str, Any] | str | Path, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """A validated configuration from a mapping or a YAML file, with `key.sub=value` overrides applied.

    Raises:
        ConfigError: no such file, no YAML, an unknown key or a bad value; every problem is listed with its place.
    """
    if isinstance(source, Mapping):
        data: dict[str, Any] = dict(source)
    else:
        data = _from_file(Path(source))
    for key, value in (overrides or {}).items():
        data = with_override(data, key, value)
    data = _with_own_sizes(data)
    for key, value in wanted_settings(data["method"]).items() if "method" in data else ():
        if not _given(data, key):
            data = with_override(data, key, value)
    return validate(RunConfig, data)


def _from_file(path: Path) -> dict[str, Any]:
    """The settings in a configuration file, what they name beside it as absolute names.

    Raises:
        ConfigError: no such file, no settings, or it describes a task.
    """
    data = read_yaml(path, "configuration")
    if "name" in data and not data.keys() & {"tasks", "suite"} and data.keys() & {"train", "dataset", "package"}:
        raise ConfigError(f"'{path}' describes a task, not a run; name it in a configuration: `tasks: [{path.name}]`.")
    return located_settings(data, path)


def located_settings(settings: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Settings of a file with absolute names for what lies beside it: files of tasks, adapters, a suite, data, a model.

    Raises:
        ConfigError: a task's file is not there, or wrong.
    """
    data, folder = dict(settings), file.parent
    if isinstance(tasks := data.get("tasks"), list):
        data["tasks"] = [_resolved(task, file) for task in tasks]
    if isinstance(history := data.get("history"), list):
        data["history"] = [located(place, folder) if isinstance(place, str) else place for place in history]
    return located_sources(data, folder)


def located_sources(data: Mapping[str, Any], folder: Path = Path()) -> dict[str, Any]:
    """Settings with absolute names for a suite's file, a data folder and a model's folder that are there.

    A model's bare name is left as it is: it may be a known model's.
    """
    found = dict(data)
    if isinstance(suite := data.get("suite"), str) and suite.endswith(SUITE_FILES):
        found["suite"] = located(suite, folder)
    if isinstance(place := data.get("data"), str) and place != "hub":
        found["data"] = located(place, folder)
    backbone = data.get("backbone")
    model = backbone.get("model") if isinstance(backbone, Mapping) else backbone
    if isinstance(model, str) and "/" in model:
        place = located(model, folder)
        found["backbone"] = {**backbone, "model": place} if isinstance(backbone, Mapping) else place
    return found


def _with_own_sizes(data: dict[str, Any]) -> dict[str, Any]:
    """The sizes that a suite of your own states in its file, for the splits that `budget` says nothing about."""
    suite, budget = data.get("suite"), data.get("budget", {})
    if not (isinstance(suite, str) and suite.endswith(SUITE_FILES) and isinstance(budget, Mapping)):
        return data
    if budget.keys() >= set(SPLITS):
        return data
    sizes = read_yaml(Path(suite), "suite", DataError).get("sizes")
    stated = sizes if isinstance(sizes, Mapping) else {}  # what is wrong with them is said when the suite is read
    usable = {s: stated[s] for s in SPLITS if stated.get(s) == "all" or isinstance(stated.get(s), int)}
    own = {split: None if size == "all" else size for split, size in usable.items()}
    return {**data, "budget": {**own, **budget}} if own else data


def _given(data: Any, dotted: str) -> bool:
    """Whether `data` says something about `a.b.c`."""
    head, _, rest = dotted.partition(".")
    return isinstance(data, Mapping) and head in data and (not rest or _given(data[head], rest))


def located(place: str, folder: Path = Path()) -> str:
    """The absolute name of the file or folder at `place`, looked for in `folder`; what is not there (an id of a hub) as it is."""
    path = folder / Path(place).expanduser()
    return str(path.resolve()) if path.exists() else place


def _resolved(task: Any, named_in: Path) -> Any:
    """A task of a configuration file with absolute file names; a name of a YAML file stands for what is in it.

    Raises:
        ConfigError: no such file, or a wrong setting in it; names the file.
    """
    folder = named_in.parent
    if isinstance(task, str):
        file = folder / Path(task).expanduser()
        if not file.is_file():
            raise ConfigError(f"There is no task file '{file}', which '{named_in}' names under `tasks`.")
        settings = read_yaml(file, "task")
        check_is_task(file, settings)
        try:
            validate(TaskSpec, settings)
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from error
        return _resolved(settings, file)
    if not isinstance(task, dict) or task.get("dataset") or task.get("package"):
        return task
    files = {s: str((folder / Path(task[s]).expanduser()).resolve()) for s in SPLITS if isinstance(task.get(s), str)}
    return {**task, **files}

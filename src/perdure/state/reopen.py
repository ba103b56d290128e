"""What a run is made of, loaded: tasks, model, method; and a run that exists already, checked against what it was begun with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from perdure.backbones import load_backbone
from perdure.backbones.base import Backbone
from perdure.config.run_config import RunConfig, load_config
from perdure.errors import DataError, RunMismatch, StoreError
from perdure.methods.contract.build import build_method, check_needs
from perdure.methods.contract.context import Need
from perdure.methods.contract.parts import Method
from perdure.settings.read import validate
from perdure.state.mismatch import base_changed, data_changed
from perdure.state.store import Store
from perdure.tasks.sources.files import load_task
from perdure.tasks.spec import TaskSpec
from perdure.tasks.suites import Suite, load_suite
from perdure.tasks.task import SPLITS, Example, Task
from perdure.training.lora import AdaptedModel

UNRECORDED = {"checkpoint_minutes": "training.checkpoint_minutes", "shard": "shard"}
"""Name in run.json -> setting that is no part of the recorded configuration: it decides nothing about the outcome."""


@dataclass(frozen=True, eq=False)
class Reopened:
    """A run as it stands: its configuration as begun, and what that describes."""

    config: RunConfig
    tasks: tuple[Task, ...]
    method: Method
    model: AdaptedModel
    backbone: Backbone


def reopen(store: Store, tasks: Sequence[Task]) -> Reopened:
    """The run's method and model, ready to learn or answer `tasks`, as it was when the run began.

    Raises:
        StoreError: the base model is not where it was. RunMismatch: it changed since.
        UnmetNeed: a part of the method requires what `tasks` do not offer.
    """
    config = begun_config(store)
    method = build_method(config.method)
    model, backbone = reopened_model(store, tasks)
    if tasks:
        check_needs(method, offered(model, tasks, method, config))
    return Reopened(config, tuple(tasks), method, model, backbone)


def reopened_model(store: Store, tasks: Sequence[Task] = ()) -> tuple[AdaptedModel, Backbone]:
    """The run's model alone, as it was when the run began: to answer, no method is needed.

    Raises:
        StoreError: the base model is not where it was. RunMismatch: it changed since.
    """
    about = store.about
    check_base_there(store)
    torch.set_num_threads(about["threads"])
    model, backbone = load_learner(begun_config(store), tasks)
    check_base(store, model)
    backbone.precision = about["precision"]
    return model, backbone


def begun_config(store: Store) -> RunConfig:
    """The configuration the run was begun with.

    Raises:
        StoreError: no run there.
    """
    about = store.begun
    return load_config(about["config"], {key: about[name] for name, key in UNRECORDED.items() if name in about})


def check_base_there(store: Store) -> None:
    """The folder of the base that the run was begun on is still there; whether it is the same is told once it is loaded.

    Raises:
        StoreError: it is not.
    """
    model = str(store.begun["config"]["backbone"]["model"])
    if Path(model).is_absolute() and not Path(model).is_dir():
        raise StoreError(
            f"The base that the run in '{store.folder}' learnt on is not there any more: '{model}', as run.json says. Put it, or "
            "a link to where it is now, back there."
        )


def check_base(store: Store, model: AdaptedModel) -> None:
    """The model's pretrained weights are those the run was begun on.

    Raises:
        RunMismatch: they are not; gives both fingerprints.
    """
    begun, found = store.begun, model.fingerprint()
    if begun.get("base") not in (None, found):
        raise RunMismatch(base_changed(store.folder, begun, found))


def recorded_tasks(store: Store, given: Sequence[Task] = ()) -> tuple[Task, ...]:
    """Every task of the run in order, loaded again from where it came from and checked to be the same.

    Args:
        given: the tasks that were given from Python.

    Raises:
        StoreError: a task was given from Python and is not among `given`, or one of these is none of the run's.
        RunMismatch: the data of a task changed since it was learnt.
        DataError: its files cannot be read.
    """
    about, config = store.about, begun_config(store)
    own = {task.name: task for task in given}
    if unknown := sorted(own.keys() - about["tasks"].keys()):
        raise StoreError(f"'{unknown[0]}' is no task of the run in '{store.folder}': {', '.join(about['tasks'])}.")
    added = {name: validate(TaskSpec, spec) for name, spec in about["added"].items() if spec}
    from_suite = config.suite and not about["tasks"].keys() <= own.keys() | added.keys()
    suite = {task.name: task for task in load_configured_suite(config).tasks} if from_suite else {}
    begun = {spec.name: spec for spec in config.tasks}

    def load(name: str) -> Task:
        if name in own:
            return own[name]
        if name in suite and name not in added:
            return suite[name]
        if (spec := added.get(name, begun.get(name))) is None:
            raise StoreError(
                f"Task '{name}' of '{store.folder}' was given from Python. Go on from Python: give it among `tasks`, for "
                f"example perdure.add('{store.folder}', new_task, tasks=[...])."
            )
        return load_recorded(store, spec)

    found = tuple(load(name) for name in about["tasks"])
    for task in found:
        _check_data(store, about, task)
    return found


def load_recorded(store: Store, spec: TaskSpec) -> Task:
    """A task of the run, loaded again from the files it recorded.

    Raises:
        DataError: one of them is not there any more, or cannot be read.
    """
    files = [] if spec.dataset or spec.package else [file for s in SPLITS if (file := getattr(spec, s))]
    for file in files:
        if not Path(file).is_file():
            raise DataError(
                f"{file} does not exist: the run in '{store.folder}' recorded that path for task '{spec.name}'. Put the file "
                f"back there, or add from Python: perdure.add('{store.folder}', new_task, tasks=[...]) takes the task itself."
            )
    return load_task(spec)


def known_tasks(store: Store, backbone: Backbone, names: Sequence[str], given: Sequence[Task] = ()) -> tuple[Task, ...]:
    """The tasks as the backbone must know them to answer: labels and prompts as recorded, and one example that stands in.

    Only a backbone that answers from training examples (vision) needs the tasks themselves.
    """
    asked = store.about.get("asked", {})
    if backbone.answers_from_examples or not asked.keys() >= set(names):
        return tuple(task for task in recorded_tasks(store, given) if task.name in names)
    found = []
    for name in names:
        labels, template = asked[name]["labels"], asked[name]["template"]
        stand_in = [Example("nothing learns from this", next(iter(labels), ""))]  # a task cannot be without examples
        found.append(Task(name, stand_in, test=stand_in, labels=labels, template=template))
    return tuple(found)


def _check_data(store: Store, about: dict[str, Any], task: Task) -> None:
    if task.fingerprint() != about["tasks"][task.name]:
        learnt, sizes = task.name in store.stages(), task_record([task])["sizes"]
        raise RunMismatch(data_changed(store.folder, task.name, learnt, about["sizes"], sizes))


def load_learner(config: RunConfig, tasks: Sequence[Task]) -> tuple[AdaptedModel, Backbone]:
    """The configured model with its adapter, and the backbone that knows `tasks`."""
    learner = load_backbone(config.backbone)
    targets = config.lora.targets or learner.default_targets  # before the tasks: a model may have none that are known
    learner.prepare(tasks)
    return AdaptedModel(learner.model, config.lora, targets), learner


def load_configured_suite(config: RunConfig, load: Callable[..., Suite] = load_suite) -> Suite:
    """The configured suite, in the configured order and sizes; `load`: `load_suite`, or one that remembers."""
    budget = config.budget
    return load(
        config.suite or "",
        order=config.order,
        data=config.data,
        train="all" if budget.train is None else budget.train,
        validation="all" if budget.validation is None else budget.validation,
        test="all" if budget.test is None else budget.test,
        seed=config.data_seed,
    )


def offered(model: AdaptedModel, tasks: Sequence[Task], method: Method, config: RunConfig) -> set[Need]:
    """What a run of these tasks offers to the parts of a method."""
    found = {Need.TRAINING_DATA}
    if model.dense_base:
        found.add(Need.DENSE_BASE)
    if model.smallest_rank > 1:
        found.add(Need.RANK_OF_TWO)
    if not config.shard:
        found.add(Need.FULL_GRADIENTS)
    if not config.history:
        found.add(Need.PAST_DATA)
        if method.replay is not None:
            found.add(Need.OLD_EXAMPLES)
    if all(task.validation for task in tasks):
        found.add(Need.VALIDATION)
    if all(task.labels for task in tasks):
        found.add(Need.LABELS)
    return found


def task_record(tasks: Sequence[Task]) -> dict[str, dict[str, Any]]:
    """What is recorded about each task: the data's fingerprint, sizes, and how its inputs are asked (for `perdure predict`)."""
    return {
        "tasks": {task.name: task.fingerprint() for task in tasks},
        "sizes": {task.name: {s: len(getattr(task, s)) for s in SPLITS} for task in tasks},
        "asked": {
            t.name: {"labels": t.labels, "template": t.template, "metric": t.metric, "choices": bool(t.choices)}
            for t in tasks
        },
    }

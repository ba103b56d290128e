"""Loads what a run is made of: tasks, model, method; those of an existing run are checked against what it began with."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from perdure.backbones import backbone_kind, load_backbone
from perdure.backbones.base import Backbone
from perdure.backbones.language import LanguageModel
from perdure.config.lora_settings import LoraSettings
from perdure.config.run_config import RunConfig, load_config
from perdure.errors import ConfigError, DataError, RunMismatch, StoreError
from perdure.files.output import RUN
from perdure.methods.contract.build import build_method, check_needs
from perdure.methods.contract.context import Need
from perdure.methods.contract.parts import Method
from perdure.settings.read import validate
from perdure.state.mismatch import base_changed, data_changed
from perdure.state.store import Store
from perdure.tasks.chats import NO_CHAT
from perdure.tasks.protocols import OWN
from perdure.tasks.sources.files import load_task
from perdure.tasks.spec import TaskSpec
from perdure.tasks.suites import Suite, load_suite
from perdure.tasks.task import SPLITS, Example, Task
from perdure.training.lora import AdaptedModel

UNRECORDED = {"checkpoint_minutes": "training.checkpoint_minutes", "shard": "shard"}
"""Name in run.json -> setting that is not part of the recorded configuration, because it does not affect the outcome."""


@dataclass(frozen=True, eq=False)
class Reopened:
    """A run's configuration as it began, and what that describes."""

    config: RunConfig
    tasks: tuple[Task, ...]
    method: Method
    model: AdaptedModel
    backbone: Backbone


def reopen(store: Store, tasks: Sequence[Task]) -> Reopened:
    """The run's method and model, ready to learn or answer `tasks`, as they were when the run began.

    Raises:
        StoreError: the base model is not where it was. RunMismatch: it changed since.
        UnmetNeed: a part of the method requires what `tasks` do not offer.
    """
    config = initial_config(store)
    method = build_method(config.method)
    model, backbone = reopened_model(store, tasks)
    if tasks:
        check_needs(method, offered(model, tasks, method, config))
    return Reopened(config, tuple(tasks), method, model, backbone)


def reopened_model(store: Store, tasks: Sequence[Task] = ()) -> tuple[AdaptedModel, Backbone]:
    """The run's model without its method, as it was when the run began: enough to answer. For errors see `reopen`."""
    about = store.about
    check_base_there(store)
    torch.set_num_threads(about["threads"])
    model, backbone = load_learner(learner_config(store), tasks)
    check_base(store, model)
    check_reading(store, backbone)
    backbone.precision = about["precision"]
    return model, backbone


def initial_config(store: Store) -> RunConfig:
    """The configuration the run began with; StoreError without a run."""

    def read() -> RunConfig:
        about = store.initial
        begun = {"protocol": OWN, **about["config"]}  # the only one there was, where none is recorded
        return load_config(begun, {key: about[name] for name, key in UNRECORDED.items() if name in about})

    store.initial  # noqa: B018  (raises without a run)
    return store.once(RUN, read, "config")


def learner_config(store: Store) -> RunConfig:
    """The same with all settings of the backbone and the adapted layers as the run began with them, whatever defaults are now.

    Runs of 0.1 recorded only the settings that were given; they read every encoder by its mean.
    """
    config, recorded = initial_config(store), store.initial.get("backbone")
    if recorded is None:
        recorded = {"pooling": "mean"} if backbone_kind(config.backbone) == "encoder" else {}
    lora = config.lora
    if not lora.targets and (adapted := store.initial.get("adapted")):
        lora = validate(LoraSettings, {**lora.model_dump(), "targets": adapted["targets"]})
    return config.model_copy(update={"backbone": {**recorded, **config.backbone}, "lora": lora})


def check_base_there(store: Store) -> None:
    """Raise StoreError if the folder of the run's base is gone; `check_base` compares its weights once they are loaded."""
    model = str(store.initial["config"]["backbone"]["model"])
    if Path(model).is_absolute() and not os.path.isdir(model):
        raise StoreError(
            f"The base of the run in '{store.folder}' is missing: run.json says it was in '{model}'. Put it back there, or a "
            "link to where it is now."
        )


def check_base(store: Store, model: AdaptedModel) -> None:
    """Raise RunMismatch, with both fingerprints, unless the pretrained weights are those the run began with."""
    begun, now = store.initial, model.fingerprint()
    if begun.get("base") not in (None, now):
        raise RunMismatch(base_changed(store.folder, begun, now))


def check_reading(store: Store, backbone: Backbone) -> None:
    """Raise RunMismatch unless the model reads texts as when the run began: an encoder's pooling, a chat's template."""
    pooled, pools = store.initial.get("pooling"), getattr(backbone, "pools", None)
    if pooled not in (None, pools):
        raise RunMismatch(
            f"The base model of the run in '{store.folder}' pools otherwise than when the run began: {pooled} then, {pools} now. "
            "Restore its modules.json and the folders that it names, or start a new run in another folder."
        )
    if store.initial.get("chat_template") not in (None, getattr(backbone, "template", None)):
        raise RunMismatch(
            f"The chat template of the base model changed since the run in '{store.folder}' began: prompts would differ "
            "from those that were learnt. Restore the template beside the base's tokenizer, or start a new run in another folder."
        )


def recorded_tasks(store: Store, given: Sequence[Task] = ()) -> tuple[Task, ...]:
    """Every task of the run in order, loaded again from its source and checked to be the same.

    Args:
        given: the tasks that were given from Python.

    Raises:
        StoreError: a task was given from Python and is missing from `given`, or one of `given` is not a task of the run.
        RunMismatch: the data of a task changed since it was learnt.
        DataError: its files cannot be read.
    """
    about, config = store.about, initial_config(store)
    own = {task.name: task for task in given}
    if unknown := sorted(own.keys() - about["tasks"].keys()):
        raise StoreError(f"'{unknown[0]}' is not a task of the run in '{store.folder}': {', '.join(about['tasks'])}.")
    added = {name: validate(TaskSpec, spec) for name, spec in about["added"].items() if spec}
    from_suite = config.suite and not about["tasks"].keys() <= own.keys() | added.keys()
    suite = {task.name: task for task in load_configured_suite(config).tasks} if from_suite else {}
    specs = {**{spec.name: spec for spec in config.tasks}, **added}

    def load(name: str) -> Task:
        if name in own:
            return own[name]
        if name in suite and name not in added:
            return suite[name]
        if name not in specs:
            raise StoreError(
                f"Task '{name}' of '{store.folder}' was given from Python. Continue from Python: give it among `tasks`, for "
                f"example perdure.add('{store.folder}', new_task, tasks=[...])."
            )
        return load_recorded(store, specs[name])

    tasks = tuple(load(name) for name in about["tasks"])
    for task in tasks:
        if task.fingerprint() != about["tasks"][task.name]:
            learnt, sizes = task.name in store.stages(), task_record([task])["sizes"]
            raise RunMismatch(data_changed(store.folder, task.name, learnt, about["sizes"], sizes))
    return tasks


def load_recorded(store: Store, spec: TaskSpec) -> Task:
    """A task of the run, loaded again from the files it recorded; DataError if one is gone or cannot be read."""
    files = [] if spec.dataset or spec.package else [file for s in SPLITS if (file := getattr(spec, s))]
    for file in files:
        if not os.path.isfile(file):
            raise DataError(
                f"{file} does not exist: the run in '{store.folder}' recorded that path for task '{spec.name}'. Put the file "
                f"back there, or add from Python: perdure.add('{store.folder}', new_task, tasks=[...]) takes the task itself."
            )
    return load_task(spec)


def known_tasks(store: Store, backbone: Backbone, names: Sequence[str], given: Sequence[Task] = ()) -> tuple[Task, ...]:
    """The tasks as a backbone needs them to answer: labels and prompts as recorded, with one placeholder example.

    Only a backbone that answers from training examples (vision) needs the tasks themselves.
    """
    asked = store.about.get("asked", {})
    if backbone.answers_from_examples or not asked.keys() >= set(names):
        return tuple(task for task in recorded_tasks(store, given) if task.name in names)
    tasks = []
    for name in names:
        labels, template = asked[name]["labels"], asked[name]["template"]
        chats = asked[name].get("chats", False)
        text = NO_CHAT if chats else "nothing learns from this"
        placeholder = [Example(text, next(iter(labels), ""))]  # a task cannot be without examples
        tasks.append(Task(name, placeholder, test=placeholder, labels=labels, template=template, chats=chats))
    return tuple(tasks)


def load_learner(config: RunConfig, tasks: Sequence[Task], tried: bool = False) -> tuple[AdaptedModel, Backbone]:
    """The configured model with its adapter, and the backbone that knows `tasks`.

    Args:
        tried: a run has read with this model before, with the same libraries: no forward pass to see whether it can.
    """
    learner = _published_backbone(config) if config.protocol != OWN else load_backbone(config.backbone)
    if tried and isinstance(learner, LanguageModel):
        learner.reads = True
    targets = config.lora.targets or learner.default_targets  # first: an error if the model has no known targets
    learner.prepare(tasks)
    return AdaptedModel(learner.model, config.lora, targets), learner


def _published_backbone(config: RunConfig) -> Backbone:
    try:
        return load_backbone(config.backbone)
    except ConfigError as error:
        raise ConfigError(
            f"{error} Suite '{config.suite}' is learnt by its published protocol, which sets how a language model reads and "
            "answers; for another model set protocol=perdure."
        ) from error


def load_configured_suite(config: RunConfig, load: Callable[..., Suite] = load_suite) -> Suite:
    """The configured suite, in the configured order and sizes; `load`: `load_suite`, or a cached version of it."""
    size = {split: "all" if (n := getattr(config.budget, split)) is None else n for split in SPLITS}
    given = {"order": config.order, "data": config.data, "seed": config.data_seed, "protocol": config.protocol}
    return load(config.suite or "", **given, **size)


def offered(model: AdaptedModel, tasks: Sequence[Task], method: Method, config: RunConfig) -> set[Need]:
    """What a run of these tasks offers to the parts of a method."""
    conditions = {
        Need.TRAINING_DATA: True,
        Need.DENSE_BASE: model.dense_base,
        Need.RANK_OF_TWO: model.smallest_rank > 1,
        Need.FULL_GRADIENTS: not config.shard and not model.expert_parameters,
        Need.MODULE_INPUTS: not model.expert_parameters,
        Need.PAST_DATA: not config.history or _own_texts_stand_in(config, method),
        Need.OLD_EXAMPLES: not config.history and method.replay is not None,
        Need.VALIDATION: all(task.validation for task in tasks),
        Need.LABELS: all(task.labels for task in tasks),
    }
    return {need for need, met in conditions.items() if met}


def _own_texts_stand_in(config: RunConfig, method: Method) -> bool:
    """Whether what the model writes with the adapters of `history` stands in for their data, in every part that needs them."""
    needing = [part for part in method.parts().values() if Need.PAST_DATA in part.requires()]
    return config.protect.base == "self" and all(part.holds_base for part in needing)


def task_record(tasks: Sequence[Task]) -> dict[str, dict[str, Any]]:
    """What is recorded of each task: the data's fingerprint, sizes, and how its inputs are presented (for `perdure predict`)."""
    return {
        "tasks": {task.name: task.fingerprint() for task in tasks},
        "sizes": {task.name: {s: len(getattr(task, s)) for s in SPLITS} for task in tasks},
        "asked": {
            t.name: {"labels": t.labels, "template": t.template, "metric": t.metric, "choices": bool(t.choices)}
            | ({"chats": True} if t.chats else {})
            for t in tasks
        },
    }

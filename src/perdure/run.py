"""A whole run from one call: configuration -> tasks, backbone, method, store -> the loop."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from perdure.backbones import load_backbone
from perdure.backbones.base import Backbone
from perdure.config import RunConfig, load_config
from perdure.errors import ConfigError, StoreError
from perdure.evaluation import check_metric
from perdure.lora import AdaptedModel
from perdure.methods.build import build_method, check_needs
from perdure.methods.parts import Need
from perdure.progress import Quiet, Reporter
from perdure.scores import Scores, read_scores
from perdure.sequence import run_sequence
from perdure.store import Store
from perdure.tasks.suites import Suite, load_suite
from perdure.tasks.task import Task

VERSIONS = ("perdure", "torch", "transformers", "peft")


def learn(
    *,
    out: str | Path,
    tasks: Sequence[Task] | None = None,
    method: str | Mapping[str, Any] = "ps-lora",
    backbone: str | Mapping[str, Any] = "minilm",
    report: Reporter | None = None,
    **settings: Any,
) -> Scores:
    """Learn tasks one after another into the run folder `out`, and return the scores.

    A folder that holds the same run, unfinished, is gone on with.

    Args:
        out: the run's folder.
        tasks: the tasks in order; or give `suite="quickstart"` among the settings.
        method: a preset's name, or a composition of parts.
        backbone: a model, or settings of a backbone.
        report: who is told about progress.
        settings: everything else of `perdure.config.RunConfig`, for example `training={"epochs": 2}`, `seed=1`.

    Raises:
        ConfigError, DataError, StoreError, TrainingError: see `perdure.errors`.
    """
    config = load_config({"method": method, "backbone": backbone, **settings})
    return run_config(config, out, tasks=tasks, report=report)


def run_config(
    config: RunConfig, out: str | Path, *, tasks: Sequence[Task] | None = None, report: Reporter | None = None
) -> Scores:
    """The same from a validated configuration."""
    report = report or Quiet()
    given = [tasks is not None, config.suite is not None, bool(config.tasks)]
    if sum(given) != 1:
        raise ConfigError("Say what to learn: either `suite` (see `perdure suites`) or `tasks`, not both.")
    method = build_method(config.method)
    suite = load_configured_suite(config) if config.suite else None
    chosen = suite.tasks if suite else tuple(tasks or (spec.load() for spec in config.tasks))
    for task in chosen:
        check_metric(task)
    store = Store(Path(out))
    with store.writing():
        if store.exists:
            store.verify()
        if config.threads:
            torch.set_num_threads(config.threads)
        model, learner = load_learner(config, chosen)
        check_needs(method, _offered(model, chosen, method.replay is not None))
        store.create(_about(config, chosen, model, suite.warnings if suite else (), store))
        about = store.about
        learner.precision = about["precision"]
        if about["threads"] != torch.get_num_threads():
            torch.set_num_threads(about["threads"])
        try:
            run_sequence(chosen, method, model, learner, config, store, report)
        except BaseException:
            report.end(None)
            raise
    scores = read_scores(store.folder)
    report.end(scores)
    return scores


def resume(out: str | Path, *, report: Reporter | None = None) -> Scores:
    """Go on with the run in `out` where its last checkpoint stands.

    Raises:
        StoreError: no run there, or its tasks were given from Python (call `learn` again with the same `out`).
    """
    about = Store(Path(out)).about
    written = "checkpoint_minutes"
    config = load_config(about["config"], {f"training.{written}": about[written]} if written in about else None)
    if config.suite is None and not config.tasks:
        raise StoreError(
            f"The tasks of '{out}' were given from Python; call perdure.learn again with out='{out}' to go on."
        )
    return run_config(config, out, report=report)


def load_learner(config: RunConfig, tasks: Sequence[Task]) -> tuple[AdaptedModel, Backbone]:
    """The configured model with its adapter, and the backbone that knows `tasks`."""
    learner = load_backbone(config.backbone)
    learner.prepare(tasks)
    return AdaptedModel(learner.model, config.lora, learner.default_targets), learner


def load_configured_suite(config: RunConfig) -> Suite:
    """The configured suite, in the configured order and sizes."""
    budget = config.budget
    return load_suite(
        config.suite or "",
        order=config.order,
        data=config.data,
        train="all" if budget.train is None else budget.train,
        validation="all" if budget.validation is None else budget.validation,
        test="all" if budget.test is None else budget.test,
        seed=config.data_seed,
    )


def _offered(model: AdaptedModel, tasks: Sequence[Task], has_replay: bool) -> set[Need]:
    offered = {Need.TRAINING_DATA}
    if model.dense_base:
        offered.add(Need.DENSE_BASE)
    if has_replay:
        offered.add(Need.OLD_EXAMPLES)
    if all(task.validation for task in tasks):
        offered.add(Need.VALIDATION)
    return offered


def _about(
    config: RunConfig, tasks: Sequence[Task], model: AdaptedModel, warnings: Sequence[str], store: Store
) -> dict[str, Any]:
    """run.json: chosen once, when the run begins; a resume uses what it finds."""
    known = store.about if store.exists else None
    return {
        "config": config.model_dump(mode="json"),
        "tasks": {task.name: task.fingerprint() for task in tasks},
        "base": model.fingerprint(),
        "sizes": {task.name: {s: len(getattr(task, s)) for s in ("train", "validation", "test")} for task in tasks},
        "warnings": list(warnings) or [f"{task.name}: {note}" for task in tasks for note in task.notes],
        "precision": known["precision"] if known else choose_precision(config.precision),
        "threads": known["threads"] if known else torch.get_num_threads(),
        "checkpoint_minutes": config.training.checkpoint_minutes,
        "machine": platform.machine(),
        "versions": {name: importlib.metadata.version(name) for name in VERSIONS},
    }


def choose_precision(wanted: str) -> Literal["fp32", "bf16"]:
    """bf16 where this processor multiplies it at least 1.5 x as fast as fp32 (measured, about 0.1 s), else fp32."""
    if wanted in ("fp32", "bf16"):
        return wanted  # pyright: ignore[reportReturnType]
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.ones(768, 384, dtype=dtype), torch.ones(384, 1536, dtype=dtype)
        times = []
        for _ in range(8):
            began = time.perf_counter()
            torch.mm(left, right)
            times.append(time.perf_counter() - began)
        seconds[dtype] = min(times)
    return "bf16" if seconds[torch.float32] > 1.5 * seconds[torch.bfloat16] else "fp32"

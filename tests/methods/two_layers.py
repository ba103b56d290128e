"""Whole runs of a method on the two-layer net of perdure.backbones.toy, stopped and resumed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from perdure.backbones.toy import HIDDEN, INPUTS, UNITS, Toy, toy_task, toy_tasks
from perdure.config.run_config import RunConfig
from perdure.loop.sequence import run_sequence
from perdure.methods.contract.parts import Method
from perdure.methods.contract.past import Past
from perdure.state.reopen import task_record
from perdure.state.store import Store
from perdure.tasks.task import Example, Stage, Task
from perdure.training.context import StageContext
from perdure.training.lora import AdaptedModel
from perdure.training.reporter import Quiet
from perdure.training.train import Step

__all__ = ["HIDDEN", "INPUTS", "UNITS", "Toy", "toy_task", "toy_tasks"]

CONFIG = {
    "backbone": {"model": "toy"},
    "lora": {"rank": 2, "alpha": 2, "targets": ["first", "second"]},
    "training": {"epochs": 2, "batch_size": 8, "learning_rate": 0.01},
}


def context(
    index: int = 0, past: Past | None = None, buffer: dict[str, Sequence[Example]] | None = None, **lora: Any
) -> StageContext:
    """The context of stage `index` on a fresh model, before the adapter starts."""
    tasks, backbone = toy_tasks(4), Toy()
    backbone.prepare(tasks)
    config = RunConfig(**{**CONFIG, "lora": {**CONFIG["lora"], **lora}})
    model = AdaptedModel(backbone.model, config.lora, backbone.default_targets)
    past = past or Past(stages=tuple(task.name for task in tasks[:index]))
    stage = Stage(tasks[index].name, (tasks[index],))
    return StageContext(stage, index, past, buffer or {}, model, backbone, {t.name: t for t in tasks}, seed=0)


class Stop(Quiet):
    """Ends the run as a killed process would, at optimiser step `at` of `stage`; `first`: the first step it saw of each."""

    def __init__(self, stage: str, at: int) -> None:
        self.where = (stage, at)
        self.first: dict[str, int] = {}

    def step(self, stage: str, step: Step, total: int) -> None:
        self.first.setdefault(stage, step.step)
        if (stage, step.step) == self.where:
            raise KeyboardInterrupt


RESUMED = pytest.mark.parametrize("minutes", [None, 1e-9], ids=["between-tasks", "inside-a-task"])
"""Whether a run writes itself down inside a stage: never, or after every step."""


def killed_and_resumed(
    made: Callable[[], Method], folder: Path, tasks: Sequence[Task], minutes: float | None, **training: Any
) -> None:
    """A run killed at step 8 of task1, gone on with, killed at steps 5 and 9 of task2, and left for the caller to finish."""
    for stage, at, first in (("task1", 8, 1), ("task2", 5, 1), ("task2", 9, 5 if minutes else 1)):
        stop = Stop(stage, at)
        with pytest.raises(KeyboardInterrupt):
            learn_toy(made(), folder, tasks, stop, checkpoint_minutes=minutes, **training)
        assert stop.first[stage] == first


def learn_toy(
    made: Method,
    folder: Path,
    tasks: Sequence[Task],
    stop: Stop | None = None,
    method: str = "ps-lora",
    **training: Any,
) -> Past:
    """Run the parts `made` in `folder` on a fresh model, or go on with what is there; `method`: the name to write down."""
    config = RunConfig(**{**CONFIG, "method": method, "training": {**CONFIG["training"], **training}})
    backbone = Toy()
    backbone.prepare(tasks)
    model = AdaptedModel(backbone.model, config.lora, backbone.default_targets)
    store = Store(folder)
    with store.writing():
        store.create(
            {
                "config": config.model_dump(mode="json"),
                **task_record(tasks),
                "base": "toy",
                "precision": "fp32",
                "threads": 1,
            }
        )
        return run_sequence(tuple(tasks), made, model, backbone, config, store, stop or Quiet())


def notes(folder: Path, position: int) -> dict[str, float]:
    """What the parts noted in the stage at `position` (0 = untrained)."""
    import json

    return json.loads((Store(folder).stage_folder(position) / "notes.json").read_text())

"""A two-layer net as a backbone, small tasks for it, and whole runs of a method on them, stopped and resumed.

An example's text is an integer, the seed of its input vector; a task's labels are two of the net's output units, and the
right one depends on the sign of a linear function of the input that belongs to the task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from perdure.backbones.base import Batch, Outputs, Prediction
from perdure.config import RunConfig
from perdure.context import StageContext
from perdure.history import Past
from perdure.lora import AdaptedModel
from perdure.methods.parts import Method
from perdure.progress import Quiet
from perdure.sequence import run_sequence
from perdure.store import Store
from perdure.tasks.task import Example, Stage, Task
from perdure.training import Step

INPUTS, HIDDEN, UNITS = 12, 10, 8
CONFIG = {
    "backbone": {"model": "toy"},
    "lora": {"rank": 2, "alpha": 2, "targets": ["first", "second"]},
    "training": {"epochs": 2, "batch_size": 8, "learning_rate": 0.01},
}


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, UNITS)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


class Toy:
    """The net behind the `Backbone` protocol."""

    default_targets = ("first", "second")

    def __init__(self) -> None:
        self.model: nn.Module = TwoLayers()
        self.precision: Literal["fp32", "bf16"] = "fp32"
        self.tasks: dict[str, Task] = {}

    def prepare(self, tasks: Iterable[Task]) -> None:
        self.tasks |= {task.name: task for task in tasks}

    def collate(self, examples: Sequence[Example]) -> Batch:
        x = torch.stack([vector(int(e.text)) for e in examples])
        names = [list(self.tasks[e.task].labels) for e in examples]
        targets = torch.tensor([int(e.label) for e in examples])
        allowed = torch.tensor([[str(unit) in own for unit in range(UNITS)] for own in names])
        return Batch(examples, {"x": x}, len(examples), extra={"targets": targets, "allowed": allowed})

    def features(self, batch: Batch) -> Tensor:
        return self.model(batch.inputs["x"])

    def forward(self, batch: Batch) -> Outputs:
        logits = self.features(batch)
        own = logits.masked_fill(~batch.extra["allowed"], -torch.inf)
        return Outputs(cross_entropy(own, batch.extra["targets"]), logits)

    def scores(self, batch: Batch, outputs: Outputs | None, task: str) -> Tensor:
        logits = self.features(batch) if outputs is None else outputs.features
        return logits[:, [int(label) for label in self.tasks[task].labels]]

    def length(self, example: Example) -> int:
        return 1

    @torch.no_grad()
    def predict(self, examples: Sequence[Example], labels: Sequence[str]) -> list[Prediction]:
        units = [int(label) for name in labels for label in self.tasks[name].labels]
        logits = self.features(self.collate(examples))[:, units]
        return [Prediction(str(units[i])) for i in logits.argmax(dim=1).tolist()]

    def save(self, folder: Path, state_dict: dict[str, Tensor]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(state_dict, folder / "model.pt")


def vector(seed: int) -> Tensor:
    return torch.randn(INPUTS, generator=torch.Generator().manual_seed(seed))


def toy_task(index: int, train: int = 48) -> Task:
    """Task `index` (0..3): units 2 index and 2 index + 1; inputs of its own."""
    direction = vector(10_000 + index)
    examples = [
        Example(str(seed), str(2 * index + int(vector(seed) @ direction > 0)))
        for seed in range(1000 * index, 1000 * index + train + 24)
    ]
    splits = {"train": examples[:train], "validation": examples[train : train + 8], "test": examples[train + 8 :]}
    return Task(f"task{index}", **splits, labels={str(2 * index): "", str(2 * index + 1): ""})


def toy_tasks(count: int = 3) -> tuple[Task, ...]:
    return tuple(toy_task(i) for i in range(count))


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


def killed_and_resumed(made: Callable[[], Method], folder: Path, tasks: Sequence[Task], minutes: float | None) -> None:
    """A run killed at step 8 of task1, gone on with, killed at steps 5 and 9 of task2, and left for the caller to finish."""
    for stage, at, first in (("task1", 8, 1), ("task2", 5, 1), ("task2", 9, 5 if minutes else 1)):
        stop = Stop(stage, at)
        with pytest.raises(KeyboardInterrupt):
            learn_toy(made(), folder, tasks, stop, checkpoint_minutes=minutes)
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
                "tasks": {task.name: task.fingerprint() for task in tasks},
                "base": "toy",
            }
        )
        return run_sequence(tuple(tasks), made, model, backbone, config, store, stop or Quiet())


def notes(folder: Path, position: int) -> dict[str, float]:
    """What the parts noted in the stage at `position` (0 = untrained)."""
    import json

    return json.loads((Store(folder).stage_folder(position) / "notes.json").read_text())

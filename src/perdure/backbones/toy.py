"""A two-layer net as a backbone, and small tasks for it: whole runs in less than a second, for tests of parts.

An example's text is an integer, the seed of its input vector. A task's labels are two of the net's output units; the sign of
the task's linear function of the input decides which one is right.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from perdure.backbones.base import Batch, Outputs, Prediction, most_probable
from perdure.backbones.losses import class_loss
from perdure.tasks.task import Example, Task

INPUTS, HIDDEN, UNITS = 12, 10, 8


class TwoLayers(nn.Module):
    """The net; its weights are always the same."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, UNITS)

    def forward(self, x: Tensor) -> Tensor:
        """[n, INPUTS] -> logits [n, UNITS]."""
        return self.second(torch.tanh(self.first(x)))


class Toy:
    """The net behind the `Backbone` protocol, which describes its methods."""

    default_targets = ("first", "second")
    answers_from_examples = False
    truncated = 0

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

    @torch.no_grad()
    def vectors(self, examples: Sequence[Example]) -> Tensor:
        return self.features(self.collate(examples))

    def forward(self, batch: Batch) -> Outputs:
        logits = self.features(batch)
        return Outputs(class_loss(logits, batch), logits)

    def scores(self, batch: Batch, outputs: Outputs | None, task: str) -> Tensor:
        logits = self.features(batch) if outputs is None else outputs.features
        return logits[:, [int(label) for label in self.tasks[task].labels]]

    def length(self, example: Example) -> int:
        return 1

    @torch.no_grad()
    def predict(self, examples: Sequence[Example], labels: Sequence[str]) -> list[Prediction]:
        units = [int(label) for name in labels for label in self.tasks[name].labels]
        logits = self.features(self.collate(examples))[:, units]
        return most_probable(
            logits.softmax(dim=1), [(name, label) for name in labels for label in self.tasks[name].labels]
        )

    def save(self, folder: Path, state_dict: dict[str, Tensor]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(state_dict, folder / "model.pt")


def vector(seed: int) -> Tensor:
    """The input [INPUTS] for a seed."""
    return torch.randn(INPUTS, generator=torch.Generator().manual_seed(seed))


def toy_task(index: int, train: int = 48) -> Task:
    """Task `index` (0..3), on units 2 index and 2 index + 1: `train` examples, 8 for validation and 16 for test."""
    direction, unit = vector(10_000 + index), 2 * index
    seeds = range(1000 * index, 1000 * index + train + 24)
    examples = [Example(str(seed), str(unit + int(vector(seed) @ direction > 0))) for seed in seeds]
    splits = examples[:train], examples[train : train + 8], examples[train + 8 :]
    return Task(f"task{index}", *splits, labels={str(unit): "", str(unit + 1): ""})


def toy_tasks(count: int = 3) -> tuple[Task, ...]:
    """The first `count` tasks."""
    return tuple(toy_task(i) for i in range(count))

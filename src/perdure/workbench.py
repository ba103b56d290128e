"""A base model with tasks, on which any update can be scored and any module's inputs measured; nothing is trained.

What `guarded` and `covariance-gain` need to merge adapters that people already have.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from perdure.backbones import load_backbone
from perdure.backbones.base import Backbone, Batch
from perdure.config import LoraSettings
from perdure.errors import AdapterError, ConfigError
from perdure.evaluation import answer, outcomes
from perdure.lora import AdaptedModel
from perdure.ops.lowrank import Update
from perdure.tasks.task import Example, Split, Task

BATCH = 16


class Workbench:
    """Args:
        backbone: the base model, as in a run's configuration: a name, a folder, or settings.
        tasks: whose examples are used.
        modules: the names of the modules that updates change.

    Raises:
        AdapterError: the model has no such module.
    """

    def __init__(self, backbone: str | Mapping[str, Any], tasks: Sequence[Task], modules: Iterable[str]) -> None:
        settings = {"model": backbone} if isinstance(backbone, str) else backbone
        self.backbone: Backbone = load_backbone(settings)
        self.backbone.prepare(tasks)
        self.tasks = {task.name: task for task in tasks}
        names = tuple(modules)
        known = dict(self.backbone.model.named_modules())
        if missing := [name for name in names if name not in known]:
            raise AdapterError(
                f"The model has no module '{missing[0]}', which an adapter changes. Is it the adapters' base, and of this kind?"
            )
        self.model = AdaptedModel(self.backbone.model, LoraSettings(rank=1, targets=names), ())

    def outcomes(self, update: Update, task: str, split: Split = "validation") -> list[float]:
        """One value an example of a split of a task, for the base with `update`; their mean is the task's score.

        Raises:
            ConfigError: the task has no such examples.
        """
        examples: Sequence[Example] = getattr(self.tasks[task], split)
        if not examples:
            raise ConfigError(f"Task '{task}' has no {split} examples; a guarded merge needs them for every task.")
        return outcomes(self.tasks[task], examples, answer(self.model, self.backbone, update, examples, [task]))

    @torch.no_grad()
    def moments(self, task: str, update: Update, examples: int = 256) -> dict[str, Tensor]:
        """Module -> E[x x^T] [I, I] of its inputs on training texts of `task`, with `update` applied.

        For covariance-gain that is what was there when the task was trained: its own update and those it stands on. Padding
        does not count; at most `examples` texts are read.
        """
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        running: list[Batch] = []

        def hook(name: str):
            def add(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
                rows = running[0].real(args[0]).double()
                sums[name] = sums.get(name, 0) + rows.mT @ rows  # type: ignore[operator]
                counts[name] = counts.get(name, 0) + len(rows)

            return add

        handles = [m.layer.register_forward_pre_hook(hook(name)) for name, m in self.model.modules.items()]
        try:
            with self.model.deployed(update):
                chosen = self.tasks[task].train[:examples]
                for start in range(0, len(chosen), BATCH):
                    running[:] = [self.backbone.collate(chosen[start : start + BATCH])]
                    self.backbone.features(running[0])
        finally:
            for handle in handles:
                handle.remove()
        return {name: (total / counts[name]).float().cpu() for name, total in sums.items()}  # where the updates are

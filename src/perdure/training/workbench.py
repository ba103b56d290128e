"""A base model with tasks, to score any update and measure any module's inputs without training anything.

`guarded` and `covariance-gain` use it to merge adapters that people already have.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from perdure.backbones import load_backbone
from perdure.config.lora_settings import LoraSettings
from perdure.errors import AdapterError, ConfigError
from perdure.methods.measured.input_moments import moments_of
from perdure.ops.lowrank import Update
from perdure.tasks.task import Split, Task
from perdure.training.context import stream_inputs
from perdure.training.evaluation import answer, outcomes
from perdure.training.lora import AdaptedModel

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
        self.backbone = load_backbone({"model": backbone} if isinstance(backbone, str) else backbone)
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
        """One value per example of a split (ConfigError without any), whose mean is the score of the base with `update`."""
        examples = getattr(self.tasks[task], split)
        if not examples:
            raise ConfigError(f"Task '{task}' has no {split} examples; a guarded merge needs them for every task.")
        return outcomes(self.tasks[task], examples, answer(self.model, self.backbone, update, examples, [task]))

    def moments(self, task: str, update: Update, examples: int = 256) -> dict[str, Tensor]:
        """Module -> E[x x^T] [I, I] of its inputs on training texts of `task`, with `update` applied.

        For covariance-gain, `update` is what was in place when the task was trained: its own update and those below it. Padding
        does not count; at most `examples` texts are read.
        """
        chosen = self.tasks[task].train[:examples]
        batches = [chosen[start : start + BATCH] for start in range(0, len(chosen), BATCH)]
        with self.model.deployed(update):
            moments = moments_of(
                self.model.factors(), lambda sink: stream_inputs(self.model, self.backbone, batches, sink)
            )
        return {module: moment.float().cpu() for module, moment in moments.items()}  # on the updates' device

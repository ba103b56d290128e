"""The best step of a stage by its validation examples: which one it is, and when training may end early.

As transformers' EarlyStoppingCallback and `load_best_model_at_end`: a step is the best if its score is higher than all before;
an evaluation that is not more than `min_change` above the best so far counts against `patience`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from perdure.config.training_settings import TrainingSettings

NOTHING = float("-inf")


class Best:
    """The best validated step of a stage of `total` steps, `epoch` steps an epoch. Its state is part of a checkpoint."""

    def __init__(self, parameters: Sequence[Tensor], settings: TrainingSettings, epoch: int, total: int) -> None:
        stopping = settings.early_stopping
        self._parameters, self._total, self._keep = parameters, total, settings.keep == "best"
        self._every = stopping.every or epoch
        self._patience, self._min_change = stopping.patience, stopping.min_change
        self.score, self.step, self._waited = NOTHING, 0, 0
        self._kept: list[Tensor] = []

    @staticmethod
    def wanted(settings: TrainingSettings) -> bool:
        """Whether a stage is validated while it is trained."""
        return settings.keep == "best" or settings.early_stopping.patience is not None

    @property
    def stopped(self) -> bool:
        """Whether training ends here."""
        return self._patience is not None and self._waited >= self._patience

    def due(self, done: int) -> bool:
        """Whether the stage is validated after `done` steps: every so many, and after the last."""
        return done % self._every == 0 or done == self._total

    @torch.no_grad()
    def take(self, done: int, score: float) -> None:
        """Count the score of the parameters as they are after `done` steps."""
        self._waited = 0 if score > self.score + self._min_change or not self.step else self._waited + 1
        if score > self.score:
            self.score, self.step = score, done
            if self._keep:
                self._kept = [parameter.detach().clone() for parameter in self._parameters]

    @torch.no_grad()
    def give(self) -> None:
        """Set the parameters to those of the best step, if it is to be kept."""
        for parameter, kept in zip(self._parameters, self._kept, strict=False):
            parameter.copy_(kept)

    def state(self) -> dict[str, Tensor]:
        """What `load` restores."""
        counts = torch.tensor([self.step, self._waited])
        kept = {f"best.{i}": tensor for i, tensor in enumerate(self._kept)}
        return {"best.score": torch.tensor(self.score, dtype=torch.float64), "best.counts": counts, **kept}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        self.score = float(state["best.score"])
        self.step, self._waited = (int(count) for count in state["best.counts"])
        if self._keep and self.step:
            self._kept = [state[f"best.{i}"].to(p.device, copy=True) for i, p in enumerate(self._parameters)]

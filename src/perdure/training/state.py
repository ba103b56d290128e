"""What must be saved to resume within a stage: parameters, optimiser, running average, best step, random state, steps done.

The learning rate follows from the step and the batches from the seed, so neither needs to be saved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from perdure.config.training_settings import TrainingSettings
from perdure.methods.contract.context import Context
from perdure.training.best import Best
from perdure.training.lora import AdaptedModel
from perdure.training.optimizers import load_state, optimizer, state_of
from perdure.training.schedules import schedule, steps_of


class Training:
    """The state of one stage's training. `done`: steps made; `total`: steps to make."""

    def __init__(self, model: AdaptedModel, ctx: Context, settings: TrainingSettings) -> None:
        self._rate = settings.learning_rate * (settings.later_learning_rate_factor if ctx.index else 1.0)
        self.total = steps_of(ctx.stage, settings)
        self.done = 0
        self.parameters = model.parameters()
        self._device = model.device
        self.optimiser = optimizer(settings, self.parameters, self._rate)
        self._factor = schedule(settings, self.total, self._rate)
        epoch = self.total // max(1, settings.epochs)
        self.best = Best(self.parameters, settings, epoch, self.total) if Best.wanted(settings) else None
        self.averaged = Average(self.parameters, self.total // 2) if settings.average == "last-half" else None

    @property
    def finished(self) -> bool:
        """Whether no step is to be made any more."""
        return self.done == self.total or (self.best is not None and self.best.stopped)

    def begin_step(self) -> float:
        """Clear the gradients, set this step's learning rate and return it."""
        self.optimiser.zero_grad(set_to_none=True)
        rate = self._rate * self._factor(self.done)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        return rate

    def end_step(self) -> None:
        """Count the step as done."""
        if self.averaged:
            self.averaged.take(self.done)
        self.done += 1

    def state(self) -> dict[str, Tensor]:
        """Everything another `Training` of the same stage needs to continue with the same bits, dropout included."""
        tensors: dict[str, Tensor] = {f"parameter.{i}": parameter for i, parameter in enumerate(self.parameters)}
        tensors |= {f"optimiser.{name}": tensor for name, tensor in state_of(self.optimiser).items()}
        if self.averaged:
            tensors |= {f"average.{i}": total for i, total in enumerate(self.averaged.sums)}
        if self.best:
            tensors |= self.best.state()
        if self._device.type == "cuda":
            tensors["cuda.0"] = torch.cuda.get_rng_state(self._device)  # not of all: machines differ in their number
        return {**tensors, "random": torch.get_rng_state(), "done": torch.tensor(self.done)}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        for i, parameter in enumerate(self.parameters):
            parameter.copy_(state[f"parameter.{i}"])
        prefix = "optimiser."
        moments = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
        load_state(self.optimiser, moments)
        self.done = int(state["done"])
        if self.averaged:
            self.averaged.load([state[f"average.{i}"] for i in range(len(self.parameters))], self.done)
        if self.best:
            self.best.load(state)
        torch.set_rng_state(state["random"].cpu())
        if "cuda.0" in state and self._device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda.0"].cpu(), self._device)


class Average:
    """The mean of the parameters over the steps from `first` on."""

    def __init__(self, parameters: Sequence[Tensor], first: int) -> None:
        self._parameters, self._first, self._taken = parameters, first, 0
        self.sums = [torch.zeros_like(p) for p in parameters]

    def load(self, sums: Sequence[Tensor], done: int) -> None:
        """Continue from sums over the first `done` steps."""
        self.sums = [own.to(p.device) for own, p in zip(sums, self._parameters, strict=True)]
        self._taken = max(0, done - self._first)

    @torch.no_grad()
    def take(self, step: int) -> None:
        """Add the parameters after `step` (from 0), if it counts."""
        if step >= self._first:
            self._taken += 1
            for total, parameter in zip(self.sums, self._parameters, strict=True):
                total += parameter

    @torch.no_grad()
    def give(self) -> None:
        """Set the parameters to their mean."""
        for total, parameter in zip(self.sums, self._parameters, strict=True):
            parameter.copy_(total / self._taken)

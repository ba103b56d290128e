"""What must be saved to resume within a stage: parameters, optimiser, running average, random state, number of steps done.

The learning rate follows from the step and the batches from the seed, so neither needs to be saved.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from perdure.config.run_config import TrainingSettings
from perdure.methods.contract.context import Context
from perdure.training.lora import AdaptedModel


class Training:
    """The state of one stage's training. `done`: steps made; `total`: steps to make."""

    def __init__(self, model: AdaptedModel, ctx: Context, settings: TrainingSettings) -> None:
        self._settings = settings
        self._rate = settings.learning_rate * (settings.later_learning_rate_factor if ctx.index else 1.0)
        self.total = math.ceil(len(ctx.stage.train) / settings.batch_size) * settings.epochs
        self.done = 0
        self.parameters = model.parameters()
        self._device = model.device
        self.optimiser = torch.optim.AdamW(self.parameters, lr=self._rate, weight_decay=settings.weight_decay)
        self.averaged = Average(self.parameters, self.total // 2) if settings.average == "last-half" else None

    def begin_step(self) -> float:
        """Clear the gradients, set this step's learning rate and return it."""
        self.optimiser.zero_grad(set_to_none=True)
        rate = self._rate * schedule(self.done, self.total, self._settings)
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
        for i, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{i}.{name}": tensor for name, tensor in moments.items()}
        if self.averaged:
            tensors |= {f"average.{i}": total for i, total in enumerate(self.averaged.sums)}
        if self._device.type == "cuda":
            tensors["cuda.0"] = torch.cuda.get_rng_state(self._device)  # not of all: machines differ in their number
        return {**tensors, "random": torch.get_rng_state(), "done": torch.tensor(self.done)}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        for i, parameter in enumerate(self.parameters):
            parameter.copy_(state[f"parameter.{i}"])
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in state.items():
            group, _, rest = key.partition(".")
            if group == "optimiser":
                i, _, name = rest.partition(".")
                moments.setdefault(int(i), {})[name] = tensor
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": moments})
        self.done = int(state["done"])
        if self.averaged:
            self.averaged.load([state[f"average.{i}"] for i in range(len(self.parameters))], self.done)
        torch.set_rng_state(state["random"].cpu())
        if "cuda.0" in state and self._device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda.0"].cpu(), self._device)


def schedule(step: int, total: int, settings: TrainingSettings) -> float:
    """Factor of the learning rate at `step` (from 0)."""
    warmup = round(total * settings.warmup_share)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    decay = {"linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}
    return decay.get(settings.schedule, 1.0)


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

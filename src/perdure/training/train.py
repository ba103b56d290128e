"""One adapter, one stage: batch -> loss + penalties -> step.

Legend: N_i examples of micro-batch i, n_i its number of loss terms (`Batch.count`).

The gradient of one optimiser step is

    g = sum_i [ (n_i / sum n) grad(loss_i) + (N_i / sum N) weight grad(batch penalty_i) ]      then, once:
    g <- g + sum over weight penalties of weight * grad(penalty);   g <- step rule(g);   g <- clip(g)

so neither accumulation nor the size of the last batch changes what lambda means. The micro-batches of a step may be computed by
several processes (perdure.training.processes): the sum is then over all of theirs, and everything after it is done by each alike.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from perdure.backbones.base import Backbone
from perdure.config.run_config import TrainingSettings
from perdure.errors import Diverged
from perdure.methods.contract import calls
from perdure.methods.contract.context import Context
from perdure.methods.contract.parts import BatchPenalty, Method, StepRule, WeightPenalty
from perdure.methods.table import kind_of
from perdure.tasks.task import Example
from perdure.training.lora import AdaptedModel
from perdure.training.processes import ALONE, Processes
from perdure.training.state import Training

POOL = 8
"""Batches are cut from pools of this many, sorted by length, so that little is padded and order stays random."""

RATE_ADVICE = "Lower training.learning_rate or the penalty's weight, in a new folder."
PART_ADVICE = "That part is where it began: mend it if it is your own, or lower its weight, in a new folder."
"""What to do about numbers that are not finite."""


@dataclass(frozen=True)
class Step:
    """What happened in one optimiser step; a line of the stage's log.

    Args:
        loss: mean task loss.
        penalties: name -> weighted value.
        shares: weight penalty's name -> norm of its weighted gradient over that of the gradient before weight penalties (task
            loss and batch penalties); None where only the penalty has a gradient.
    """

    step: int
    loss: float
    learning_rate: float
    penalties: Mapping[str, float] = field(default_factory=dict)
    shares: Mapping[str, float | None] = field(default_factory=dict)


class Checkpoints(Protocol):
    """Who writes a stage's training down while it goes on, and gives it back after a stop."""

    def restore(self, training: Training) -> None:
        """Bring a training that begins to where it was written down, if it was."""
        ...

    def stepped(self, training: Training) -> None:
        """A step is done and logged; a good moment to write."""
        ...


def cut_batches(
    examples: Sequence[Example], size: int, generator: torch.Generator, length: Callable[[Example], int]
) -> list[list[Example]]:
    """`examples` in a random order, in batches of `size` (the last may be smaller) of similar lengths."""
    order = torch.randperm(len(examples), generator=generator).tolist()
    batches: list[list[Example]] = []
    for start in range(0, len(order), POOL * size):
        pool = sorted((examples[i] for i in order[start : start + POOL * size]), key=length)
        batches += [pool[i : i + size] for i in range(0, len(pool), size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def train(
    model: AdaptedModel,
    backbone: Backbone,
    method: Method,
    ctx: Context,
    settings: TrainingSettings,
    report: Callable[[Step, int], None],
    checkpoints: Checkpoints,
    processes: Processes = ALONE,
) -> None:
    """Train the adapter `model` holds on `ctx.stage`; `report(step, total)` after every step.

    Raises:
        Diverged: the loss, a penalty, the gradient or a factor is not finite; names task and step, and the part to blame.
        PartError: a part of the method failed, or gave what it must not.
    """
    training = Training(model, ctx, settings)
    parameters, total = training.parameters, training.total
    checkpoints.restore(training)

    for examples in itertools.islice(_epochs(backbone, ctx, settings), training.done, None):
        learning_rate = training.begin_step()
        where = f"Task '{ctx.stage.name}', step {training.done + 1} of {total}"
        batch = method_batch(method, ctx, examples)
        loss, values = _backward(backbone, method, ctx, batch, settings.accumulation, processes)
        _check_finite(where, {"the loss": loss})
        _check_finite(where, {f"penalty '{name}'": value for name, value in values.items()}, PART_ADVICE)
        processes.reduce(parameters)
        shares = add_weight_penalties(model, method, ctx, values, where)
        norm = _gradient_norm(parameters)
        _check_finite(where, {"the gradient's norm": float(norm)})
        if method.step_rule and type(method.step_rule).gradients is not StepRule.gradients:
            model.set_gradients(calls.stepping(method.step_rule, ctx, model.gradients()))
            norm = _gradient_norm(parameters)
            _check_finite(
                where, {f"the gradient's norm after {kind_of(method.step_rule)}.gradients": float(norm)}, PART_ADVICE
            )
        if settings.max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, settings.max_grad_norm, norm)
        training.optimiser.step()
        if method.step_rule and type(method.step_rule).stepped is not StepRule.stepped:
            calls.stepped(method.step_rule, ctx, model.factors(), learning_rate)
            _check_finite(
                where, {f"the factors' norm after {kind_of(method.step_rule)}.stepped": _norm(parameters)}, PART_ADVICE
            )
        training.end_step()
        report(Step(training.done, loss, learning_rate, values, shares), total)
        checkpoints.stepped(training)
    if training.averaged:
        training.averaged.give()


def method_batch(method: Method, ctx: Context, examples: Sequence[Example]) -> Sequence[Example]:
    """The batch the method trains on: with a replay part, old examples may be mixed in."""
    return calls.mixed(method.replay, ctx, examples) if method.replay else examples


def _check_finite(where: str, numbers: Mapping[str, float], advice: str = RATE_ADVICE) -> None:
    """Asked from the first number of a step to the last, so that what is named is where it began.

    Raises:
        Diverged: one is not finite; names it.
    """
    for what, number in numbers.items():
        if not math.isfinite(number):
            raise Diverged(f"{where}: {what} is {number}. Finished tasks are kept. {advice}")


def add_weight_penalties(
    model: AdaptedModel, method: Method, ctx: Context, values: dict[str, float], where: str | None = None
) -> dict[str, float | None]:
    """Add every weight penalty's gradient to the factors', its weighted value to `values`; return their shares (see `Step`).

    Args:
        where: task and step, for errors.

    Raises:
        Diverged: a penalty or its gradient is not finite. PartError: it gave what it must not.
    """
    penalties = {n: p for n, p in method.penalties.items() if isinstance(p, WeightPenalty) and p.weight != 0}
    if not penalties:
        return {}
    before = _norm([p.grad for p in model.parameters()])
    factors = model.factors()
    shares: dict[str, float | None] = {}
    for name, penalty in penalties.items():
        value, grads = calls.penalty_of(penalty, factors, ctx.past)
        trained = [
            (p, calls.fitting(penalty, module, grad, p))
            for module, pair in grads.items()
            for p, grad in zip((model.modules[module].A, model.modules[module].B), pair, strict=True)
            if p.requires_grad
        ]
        norm = _norm([grad for _, grad in trained])
        found = {f"penalty '{name}'": value, f"the gradient's norm of penalty '{name}'": norm}
        _check_finite(where or f"Task '{ctx.stage.name}'", found, PART_ADVICE)
        weight = penalty.weight if penalty.weight is not None else _share(penalty.gradient_share, before, norm)
        for parameter, grad in trained:
            grad = grad.to(parameter.dtype)
            parameter.grad = grad * weight if parameter.grad is None else parameter.grad.add_(grad, alpha=weight)
        values[name] = weight * value
        length = weight * norm
        shares[name] = length / before if before else None if length else 0.0
    return shares


def _epochs(backbone: Backbone, ctx: Context, settings: TrainingSettings) -> Iterator[list[Example]]:
    for epoch in range(settings.epochs):
        generator = ctx.generator(f"batches {epoch}")
        yield from cut_batches(ctx.stage.train, settings.batch_size, generator, backbone.length)


def _backward(
    backbone: Backbone,
    method: Method,
    ctx: Context,
    examples: Sequence[Example],
    accumulation: int,
    processes: Processes,
) -> tuple[float, dict[str, float]]:
    """Accumulate this process's part of a step's gradient; return the step's mean task loss and weighted batch penalties."""
    penalties = {n: p for n, p in method.penalties.items() if isinstance(p, BatchPenalty) and p.weight}
    size = math.ceil(len(examples) / (accumulation * processes.count))
    parts = [examples[i : i + size] for i in range(0, len(examples), size)]
    batches = [(backbone.collate(part), counts) for part, counts in processes.share(parts)]
    (terms,) = processes.total(sum(batch.count * counts for batch, counts in batches))
    mean_loss, values = 0.0, dict.fromkeys(penalties, 0.0)
    for batch, counts in batches:
        outputs = backbone.forward(batch)
        loss = outputs.loss * (counts * batch.count / terms)
        mean_loss += loss.item()
        for name, penalty in penalties.items():
            share = (penalty.weight or 0.0) * counts * len(batch.examples) / len(examples)
            extra = calls.batch_loss(penalty, ctx, batch, outputs) * share
            values[name] += extra.item()
            loss = loss + extra
        loss.backward()
    mean_loss, *weighted = processes.total(mean_loss, *values.values())
    return mean_loss, dict(zip(values, weighted, strict=True))


def _gradient_norm(parameters: Sequence[Tensor]) -> Tensor:
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def _norm(grads: Sequence[Tensor | None]) -> float:
    return float(torch.nn.utils.get_total_norm([grad for grad in grads if grad is not None]))


def _share(share: float | None, before: float, norm: float) -> float:
    """The weight that makes a penalty's gradient `share` times as long as that before weight penalties; 0 where it has none."""
    return (share or 0.0) * before / norm if norm else 0.0

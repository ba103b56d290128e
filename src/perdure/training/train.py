"""One adapter, one stage: batch -> loss + penalties -> step.

Legend: N_i examples of micro-batch i, n_i its number of loss terms, or the sum of their weights
(`Batch.count`).

The gradient of one optimiser step is

    g = sum_i [ (n_i / sum n) grad(loss_i) + (N_i / sum N) weight grad(batch penalty_i) ]      then, once:
    g <- g + sum over weight penalties of weight * grad(penalty);   g <- step rule(g);   g <- clip(g)

so neither accumulation nor the size of the last batch changes what lambda means. Several processes may compute the micro-batches
of a step (perdure.training.processes): the sum is then over all of them, and every process does the rest alike.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from perdure.backbones.base import Backbone
from perdure.config.training_settings import TrainingSettings
from perdure.errors import Diverged
from perdure.methods.contract import calls
from perdure.methods.contract.context import Context
from perdure.methods.contract.parts import BatchPenalty, Method, StepRule, WeightPenalty
from perdure.methods.table import kind_of
from perdure.tasks.task import Example
from perdure.training.lora import AdaptedModel
from perdure.training.objective import Objective, objective
from perdure.training.processes import ALONE, Processes
from perdure.training.state import Training
from perdure.training.targets import check_reached
from perdure.training.validation import validation_score

POOL = 8
"""Batches are cut from pools of this many, sorted by length, so that there is little padding and the order stays random."""

RATE_ADVICE = "Lower training.learning_rate or the penalty's weight, in a new folder."
PART_ADVICE = "It began in that part: fix it if it is your own, or lower its weight, in a new folder."
"""What to do about numbers that are not finite."""


@dataclass(frozen=True)
class Step:
    """One optimiser step; a line of the stage's log.

    Args:
        loss: mean task loss.
        penalties: name -> weighted value.
        shares: weight penalty's name -> norm of its weighted gradient over that of the gradient before weight penalties (task
            loss and batch penalties); None where only the penalty has a gradient.
        validation: score of the validation examples after this step, where `training.early_stopping` or `keep` asks for it.
    """

    step: int
    loss: float
    learning_rate: float
    penalties: Mapping[str, float] = field(default_factory=dict)
    shares: Mapping[str, float | None] = field(default_factory=dict)
    validation: float | None = None

    def row(self) -> dict[str, Any]:
        """The line of the log; without `validation` where there was none."""
        return {key: value for key, value in asdict(self).items() if key != "validation" or value is not None}


class Checkpoints(Protocol):
    """Saves a stage's training while it runs, and restores it after a stop."""

    def restore(self, training: Training) -> None:
        """Restore a training about to begin from the checkpoint, if there is one."""

    def stepped(self, training: Training) -> None:
        """A step is done and logged: a checkpoint may be written now."""


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
    """Train the adapter of `model` on `ctx.stage`; calls `report(step, total)` after every step.

    Raises:
        Diverged: the loss, a penalty, the gradient or a factor is not finite; names task, step and the part where it began.
        PartError: a part of the method failed, or returned something invalid.
    """
    training = Training(model, ctx, settings)
    parameters, total, rule = training.parameters, training.total, method.step_rule
    counted = objective(settings, ctx.stage.tasks)
    checkpoints.restore(training)

    for examples in itertools.islice(_epochs(backbone, ctx, settings), training.done, None):
        if training.finished:
            break
        learning_rate = training.begin_step()
        where = f"Task '{ctx.stage.name}', step {training.done + 1} of {total}"
        batch = calls.mixed(method.replay, ctx, examples) if method.replay else examples
        loss, penalties = _backward(backbone, method, ctx, batch, settings.accumulation, processes, counted)
        # each number is checked as soon as it exists, so that the error names where it began
        _check_finite(where, {"the loss": loss}, RATE_ADVICE)
        _check_finite(where, {f"penalty '{name}'": value for name, value in penalties.items()}, PART_ADVICE)
        processes.reduce(parameters)
        shares = add_weight_penalties(model, method, ctx, penalties, where)
        norm = _norm(p.grad for p in parameters)
        _check_finite(where, {"the gradient's norm": norm}, RATE_ADVICE)
        if rule and type(rule).gradients is not StepRule.gradients:
            model.set_gradients(calls.step_gradients(rule, ctx, model.gradients()))
            norm = _norm(p.grad for p in parameters)
            _check_finite(where, {f"the gradient's norm after {kind_of(rule)}.gradients": norm}, PART_ADVICE)
        if settings.max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, settings.max_grad_norm, norm)
        training.optimiser.step()
        if rule and type(rule).stepped is not StepRule.stepped:
            calls.after_step(rule, ctx, model.factors(), learning_rate)
            norm = _norm(parameters)
            _check_finite(where, {f"the factors' norm after {kind_of(rule)}.stepped": norm}, PART_ADVICE)
        training.end_step()
        validation = None
        if training.best and training.best.due(training.done):
            validation = validation_score(backbone, ctx.stage, settings, processes)
            training.best.take(training.done, validation)
        report(Step(training.done, loss, learning_rate, penalties, shares, validation), total)
        checkpoints.stepped(training)
    if training.averaged:
        training.averaged.give()
    if training.best:
        training.best.give()
        ctx.note("training/kept step", training.best.step if settings.keep == "best" else training.done)
        ctx.note("training/best validation score", training.best.score)


def add_weight_penalties(
    model: AdaptedModel, method: Method, ctx: Context, values: dict[str, float], where: str | None = None
) -> dict[str, float | None]:
    """Add every weight penalty's gradient to the factors', its weighted value to `values`; return their shares (see `Step`).

    Args:
        where: task and step, for errors.

    Raises:
        Diverged: a penalty or its gradient is not finite. PartError: it returned something invalid.
    """
    penalties = {n: p for n, p in method.penalties.items() if isinstance(p, WeightPenalty) and p.weight != 0}
    if not penalties:
        return {}
    before = float(_norm(p.grad for p in model.parameters()))
    factors = model.factors()
    shares: dict[str, float | None] = {}
    for name, penalty in penalties.items():
        value, grads = calls.penalty_of(penalty, factors, ctx.past)
        trained = [
            (p, calls.checked_gradient(penalty, module, grad, p))
            for module, pair in grads.items()
            for p, grad in zip((model.modules[module].A, model.modules[module].B), pair, strict=True)
            if p.requires_grad
        ]
        norm = float(_norm(grad for _, grad in trained))
        numbers = {f"penalty '{name}'": value, f"the gradient's norm of penalty '{name}'": norm}
        _check_finite(where or f"Task '{ctx.stage.name}'", numbers, PART_ADVICE)
        weight = penalty.weight
        if weight is None:  # makes this gradient `gradient_share` times as long as that before weight penalties
            weight = (penalty.gradient_share or 0.0) * before / norm if norm else 0.0
        for parameter, grad in trained:
            grad = grad.to(parameter.dtype)
            parameter.grad = grad * weight if parameter.grad is None else parameter.grad.add_(grad, alpha=weight)
        values[name] = weight * value
        length = weight * norm
        shares[name] = length / before if before else None if length else 0.0
    return shares


def _check_finite(where: str, numbers: Mapping[str, float | Tensor], advice: str) -> None:
    for what, number in numbers.items():
        if not math.isfinite(number):
            raise Diverged(f"{where}: {what} is {float(number)}. Finished tasks are kept. {advice}")


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
    counted: Objective = lambda batch: batch,
) -> tuple[float, dict[str, float]]:
    """Accumulate this process's part of a step's gradient; return the step's mean task loss and weighted batch penalties."""
    penalties = {n: p for n, p in method.penalties.items() if isinstance(p, BatchPenalty) and p.weight}
    size = math.ceil(len(examples) / (accumulation * processes.count))
    parts = [examples[i : i + size] for i in range(0, len(examples), size)]
    batches = [(counted(backbone.collate(part)), counts) for part, counts in processes.share(parts)]
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
        check_reached(loss)
        loss.backward()
    mean_loss, *weighted = processes.total(mean_loss, *values.values())
    return mean_loss, dict(zip(values, weighted, strict=True))


def _norm(tensors: Iterable[Tensor | None]) -> Tensor:
    return torch.nn.utils.get_total_norm([tensor for tensor in tensors if tensor is not None])

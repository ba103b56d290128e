"""Learning-rate schedules: three of perdure's own, and transformers' by their names.

A schedule is a function of the step alone, so a resumed training needs none of its state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from perdure.config.training_settings import TrainingSettings
from perdure.errors import ConfigError
from perdure.tasks.task import Stage

OWN = ("constant", "linear", "cosine")


def steps_of(stage: Stage, settings: TrainingSettings) -> int:
    """Optimiser steps of a stage."""
    return math.ceil(len(stage.train) / settings.batch_size) * settings.epochs


def schedule(settings: TrainingSettings, total: int, rate: float) -> Callable[[int], float]:
    """Step (from 0) of `total` -> the factor of the learning rate `rate`.

    Raises:
        ConfigError: `schedule_args` do not fit the schedule, or it gives no learning rate somewhere.
    """
    warmup = round(total * settings.warmup_share)
    if settings.schedule in OWN:
        if settings.schedule_args:
            raise ConfigError(f"training.schedule_args: the schedule '{settings.schedule}' takes none.")
        return lambda step: _own(step, total, warmup, settings.schedule)
    return _of_transformers(settings, total, warmup, rate)


def _own(step: int, total: int, warmup: int, name: str) -> float:
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    decay = {"linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}
    return decay.get(name, 1.0)


def _of_transformers(settings: TrainingSettings, total: int, warmup: int, rate: float) -> Callable[[int], float]:
    from transformers import get_scheduler

    args: dict[str, Any] = {
        k: int(v) if isinstance(v, float) and v == int(v) else v for k, v in settings.schedule_args.items()
    }
    if settings.schedule == "warmup_stable_decay":
        args = {"num_decay_steps": max(1, total // 10), **args}
        if warmup + args["num_decay_steps"] > total:
            raise ConfigError(
                f"training.schedule: warm-up ({warmup} steps) and decay ({args['num_decay_steps']}) are more than the "
                f"{total} steps of the stage. Lower training.warmup_share or num_decay_steps in training.schedule_args."
            )
    named = f"training.schedule_args {settings.schedule_args} of the schedule '{settings.schedule}'"
    unused = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)
    try:
        factor = get_scheduler(settings.schedule, unused, warmup, total, args).lr_lambdas[0]  # pyright: ignore[reportAttributeAccessIssue]
        factors = [float(factor(step)) for step in range(total)]
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ConfigError(f"{named} do not fit: {error}") from error
    if bad := next((step for step, each in enumerate(factors) if not (math.isfinite(each) and each >= 0)), None):
        raise ConfigError(f"{named} make the learning rate {rate * factors[bad]} at step {bad + 1}.")
    return factors.__getitem__

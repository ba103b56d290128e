"""Settings of training that cannot hold for this model or these tasks, refused before anything is trained or written."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from perdure.config.for_stage import for_stage
from perdure.config.run_config import RunConfig
from perdure.tasks.task import Stage
from perdure.training.objective import class_weights
from perdure.training.optimizers import check_optimizer
from perdure.training.schedules import schedule, steps_of
from perdure.training.validation import check_validation


def check_training(config: RunConfig, stages: Iterable[Stage], device: torch.device) -> None:
    """Raise ConfigError, or UnknownName, for settings of `training` that a stage cannot be trained with on `device`."""
    for stage in stages:
        settings = for_stage(config, stage.name).training
        check_optimizer(settings, device)
        schedule(settings, steps_of(stage, settings), settings.learning_rate)
        class_weights(settings, stage.tasks)
        check_validation(stage, settings)

"""The score of a stage's validation examples while it is trained."""

from __future__ import annotations

import dataclasses

from perdure.backbones.base import Backbone
from perdure.backbones.modes import without_dropout
from perdure.config.training_settings import TrainingSettings
from perdure.errors import ConfigError
from perdure.tasks.task import Stage, Task
from perdure.training.best import Best
from perdure.training.evaluation import check_scorable, score
from perdure.training.processes import Processes


def validation_score(backbone: Backbone, stage: Stage, settings: TrainingSettings, processes: Processes) -> float:
    """Mean score of the stage's tasks on their validation examples, by the model as it trains: its base with the adapter.

    No test example is read, nothing random is drawn, and dropout is off.
    """

    def scored(task: Task) -> float:
        return score(task, task.validation, backbone.predict(task.validation, [task.name])) or 0.0

    with without_dropout(backbone.model):
        scores = processes.spread(scored, [_measured(task, settings) for task in stage.tasks])
    return sum(scores) / len(scores)


def check_validation(stage: Stage, settings: TrainingSettings) -> None:
    """Raise ConfigError, or UnknownName, if the best step of a stage cannot be chosen."""
    if not Best.wanted(settings):
        if settings.early_stopping != type(settings.early_stopping)():
            raise ConfigError("training.early_stopping has no effect without `patience`, or training.keep=best.")
        return
    if settings.average != "none":
        raise ConfigError(
            f"training.average={settings.average} is the mean of steps up to the last, so no best step can be kept and none left "
            "out. Set training.average=none, or leave training.early_stopping and training.keep out."
        )
    for task in stage.tasks:
        if not task.validation:
            raise ConfigError(
                f"training.early_stopping and training.keep choose by validation examples, and task '{task.name}' has none. Give "
                "it some (validation_size, or budget.validation)."
            )
        check_scorable(_measured(task, settings), "validation")


def _measured(task: Task, settings: TrainingSettings) -> Task:
    metric = settings.early_stopping.metric
    return dataclasses.replace(task, metric=metric) if metric else task

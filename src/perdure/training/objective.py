"""What a stage's loss counts: label smoothing and class weights, which only the training's own loss has (no measurement)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from perdure.backbones.base import Batch
from perdure.backbones.losses import with_objective
from perdure.config.training_settings import TrainingSettings
from perdure.errors import ConfigError, UnknownName
from perdure.tasks.task import Example, Task

Objective = Callable[[Batch], Batch]
"""A micro-batch -> the same with the weights of its terms and its smoothing."""


def objective(settings: TrainingSettings, tasks: Iterable[Task]) -> Objective:
    """The objective of a stage of these tasks."""
    weights = class_weights(settings, tasks)
    weight_of = partial(_weight, weights) if weights else None
    return lambda batch: with_objective(batch, settings.label_smoothing, weight_of)


def class_weights(settings: TrainingSettings, tasks: Iterable[Task]) -> dict[tuple[str, str], float]:
    """(task, label) -> its weight; empty without class weights.

    Raises:
        ConfigError: a task has no labels. UnknownName: no task has a label that a weight is given for.
    """
    tasks, chosen = tuple(tasks), settings.class_weights
    if chosen == "none":
        return {}
    if bare := next((task.name for task in tasks if not task.labels), None):
        raise ConfigError(
            f"training.class_weights: task '{bare}' has no labels. Leave it out, for this task alone with "
            f"training_by_task: {{{bare}: {{class_weights: none}}}}."
        )
    if chosen == "balanced":
        return {(task.name, label): weight for task in tasks for label, weight in balanced(task.train).items()}
    known = [label for task in tasks for label in task.labels]
    for label in chosen:
        if label not in known:
            raise UnknownName("label in training.class_weights", label, list(dict.fromkeys(known)))
    return {(task.name, label): chosen.get(label, 1.0) for task in tasks for label in task.labels}


def balanced(examples: Iterable[Example]) -> dict[str, float]:
    """Label -> examples / (labels x examples of that label), as sklearn.utils.class_weight.compute_class_weight("balanced")."""
    counts = Counter(example.label for example in examples)
    return {label: counts.total() / (len(counts) * count) for label, count in counts.items()}


def _weight(weights: Mapping[tuple[str, str], float], example: Example) -> float:
    return weights.get((example.task, example.label), 1.0)  # replayed from an earlier task: 1

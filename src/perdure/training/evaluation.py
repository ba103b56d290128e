"""One deployed model, one task -> predictions -> one score."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from numbers import Real
from typing import cast

from perdure.backbones.base import Backbone, Prediction
from perdure.backbones.memory import memory_explained
from perdure.backbones.text_metrics import TEXT_METRICS, TextMetric
from perdure.config.run_config import EvaluationSettings
from perdure.errors import ConfigError, UnknownName
from perdure.methods.contract.own import imported
from perdure.methods.contract.past import PerTask
from perdure.ops.lowrank import Update
from perdure.tasks.task import INVERSE_PERPLEXITY, Example, Task, same_task, version
from perdure.training.class_metrics import CLASS_METRICS
from perdure.training.lora import AdaptedModel
from perdure.training.near_ties import settled


def answer(
    model: AdaptedModel,
    backbone: Backbone,
    deployed: Update | PerTask,
    examples: Sequence[Example],
    labels: Sequence[str],
) -> list[Prediction]:
    """The deployed model's predictions for examples of one task, from the label sets of `labels`; TrainingError out of memory."""
    if not examples:
        return []
    update = deployed.updates.get(examples[0].task, {}) if isinstance(deployed, PerTask) else deployed
    with model.deployed(update), memory_explained(f"answering task '{examples[0].task}'"):
        return settled(backbone, examples, labels, backbone.predict(examples, labels))


def own_task(prediction: Prediction, example: Example) -> bool:
    """Whether the label was chosen among those of the example's own task (in any version)."""
    return not prediction.task or same_task(prediction.task, example.task)


def check_scorable(task: Task, split: str) -> None:
    """Raise UnknownName or ConfigError if the task lacks a metric that fits it, the package for it, or examples in `split`."""
    known = ["accuracy", *CLASS_METRICS, INVERSE_PERPLEXITY, *TEXT_METRICS]
    if ":" in task.metric:
        example = task.train[0]
        _checked(task, own_metric(task.metric)(example.text, example.label, task.answers(example)))
    elif task.metric not in known:
        raise UnknownName(f"metric (of task '{task.name}')", task.metric, [*known, "module:function"])
    if task.metric in CLASS_METRICS and not task.labels:
        raise ConfigError(
            f"Task '{task.name}': {task.metric} is a score of classes, but it has no labels. Give it `labels`."
        )
    if task.metric in TEXT_METRICS:
        TEXT_METRICS[task.metric]("", "", [""])  # imports what it needs
    if not getattr(task, split):
        raise ConfigError(
            f"Task '{task.name}' has no {split} examples, and evaluation.split asks for scores on them. Give it some "
            "(validation_size, or budget.validation), or set evaluation.split=test."
        )


def scored_examples(task: Task, settings: EvaluationSettings) -> Sequence[Example]:
    """The examples that a task is scored on: those of the split, or `settings.examples` of them, whatever the run's seed."""
    examples: Sequence[Example] = getattr(task, settings.split)
    if settings.examples is None or settings.examples >= len(examples):
        return examples
    places = random.Random(f"scored/{task.name}").sample(range(len(examples)), settings.examples)
    return tuple(examples[place] for place in sorted(places))


def score(task: Task, examples: Sequence[Example], predictions: Sequence[Prediction]) -> float | None:
    """The task's metric, a mean over its examples (or their tokens) and a fraction of 1; None without examples."""
    return score_and_outcomes(task, examples, predictions)[0]


def score_and_outcomes(
    task: Task, examples: Sequence[Example], predictions: Sequence[Prediction]
) -> tuple[float | None, list[float]]:
    """`score` and `outcomes` together, each example's metric computed once."""
    if not examples:
        return None, []
    values = outcomes(task, examples, predictions)
    return 1 / perplexity(predictions) if task.learns_text else sum(values) / len(values), values


def outcomes(task: Task, examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[float]:
    """One value per example, whose mean is the task's score: two states of a model are compared pair by pair on them.

    For tasks that learn texts, the inverse perplexity is not a mean. It is linearised about itself (its influence function), so
    that the values' mean is the score and their spread its uncertainty.
    """
    if task.metric == "accuracy":
        return [
            float(p.label == (p.wanted or e.label) and own_task(p, e))
            for e, p in zip(examples, predictions, strict=True)
        ]
    if task.learns_text:
        inverse, length = 1 / perplexity(predictions), sum(p.tokens for p in predictions) / len(predictions)
        return [inverse * (1 - ((p.nats or 0.0) + math.log(inverse) * p.tokens) / length) for p in predictions]
    if task.metric in CLASS_METRICS:
        answers = [p.label if own_task(p, e) else "" for e, p in zip(examples, predictions, strict=True)]
        return CLASS_METRICS[task.metric]([e.label for e in examples], answers, tuple(task.labels))
    measure = TEXT_METRICS[task.metric] if task.metric in TEXT_METRICS else own_metric(task.metric)
    pairs = zip(examples, predictions, strict=True)
    values = (measure(e.text, p.label, (p.wanted,) if p.wanted else task.answers(e)) for e, p in pairs)
    return [_checked(task, value) for value in values]


def own_metric(place: str) -> TextMetric:
    """The function at `module:function`, of (input, answer, references) -> a score in [0, 1].

    Raises:
        ConfigError: there is none.
    """
    found = imported(place, "metric")
    if not callable(found):
        raise ConfigError(f"The metric '{place}' is not a function of (input, answer, references).")
    return cast("TextMetric", found)


def _checked(task: Task, value: object) -> float:
    if isinstance(value, Real) and 0 <= (number := float(value)) <= 1:
        return number
    raise ConfigError(
        f"Task '{task.name}': its metric '{task.metric}' gave {value!r:.40}; return a number from 0 to 1."
    )


def perplexity(predictions: Sequence[Prediction]) -> float:
    """exp(nats / tokens) over all texts together, at least 1."""
    return math.exp(sum(p.nats or 0.0 for p in predictions) / sum(p.tokens for p in predictions))


def label_sets(task: Task, learnt: Sequence[str], settings: EvaluationSettings) -> list[str]:
    """The tasks whose labels compete for an example of `task`: only its own, or those of every task learnt so far and its own.

    Of a task with several versions only the newest competes: its labels stand for the older ones' too. A task without labels is
    answered alone, and a backbone skips it where labels compete.
    """
    if settings.labels == "task" or not task.labels:
        return [task.name]
    competing = [*learnt, *([] if task.name in learnt else [task.name])]
    return list({version(name)[0]: name for name in competing}.values())

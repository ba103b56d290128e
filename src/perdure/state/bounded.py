"""`deploy.rank`: what is deployed as an adapter of at most that rank, with what is lost by it measured and recorded.

A sum of T updates of rank r has rank T r, and servers take adapters of some rank at most (vLLM: 512). Per module, the best
approximation of that rank is kept (Eckart and Young 1936: the first singular directions). Stages, scores and
`perdure predict` are those of the whole update; `deployed/` and exports are bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from perdure.backbones.base import Backbone
from perdure.config.run_config import EvaluationSettings
from perdure.methods.contract.past import PerTask
from perdure.ops.decompose import squared_norm, truncate
from perdure.ops.lowrank import Delta, LowRank, Update
from perdure.tasks.task import Task
from perdure.training.evaluation import answer, label_sets, score, scored_examples
from perdure.training.lora import AdaptedModel


@dataclass(frozen=True)
class Bounded:
    """An update of at most `rank` directions a module.

    Args:
        deployed: what is deployed instead.
        before: the largest rank it had; None: dense.
        energy: ||kept||_F^2 / ||whole||_F^2 over all modules.
        modules: how many modules lost directions.
    """

    deployed: Update | PerTask
    rank: int
    before: int | None
    energy: float
    modules: int

    def record(self, answers: dict[str, Any] | None) -> dict[str, Any]:
        """What rank.json says; `answers` is None where they were not measured."""
        return {
            "rank": self.rank,
            "before": self.before,
            "energy": self.energy,
            "modules": self.modules,
            "answers": answers,
        }


def bounded(deployed: Update | PerTask, rank: int | None) -> Bounded | None:
    """The deployed update with at most `rank` directions in each module; None if it has no more, or rank is None."""
    if rank is None:
        return None
    updates = deployed.updates if isinstance(deployed, PerTask) else {"": deployed}
    every = [delta for update in updates.values() for delta in update.values()]
    over = [delta for delta in every if _exceeds(delta, rank)]
    if not over:
        return None
    whole = sum(float(squared_norm(delta)) for delta in every)
    kept = {task: {name: _within(delta, rank) for name, delta in update.items()} for task, update in updates.items()}
    energy = sum(float(squared_norm(delta)) for update in kept.values() for delta in update.values())
    ranks = [delta.rank for delta in over if isinstance(delta, LowRank)]
    before = max(ranks) if len(ranks) == len(over) else None
    less = PerTask(kept) if isinstance(deployed, PerTask) else kept[""]
    return Bounded(less, rank, before, min(energy / whole, 1.0) if whole else 1.0, len(over))


def changed_answers(
    less: Bounded,
    whole: Update | PerTask,
    tasks: Sequence[Task],
    model: AdaptedModel,
    backbone: Backbone,
    settings: EvaluationSettings,
) -> dict[str, dict[str, Any]]:
    """Of each task: how many answers to its validation examples (without any: to those scored) differ, and both scores."""
    found, names = {}, [task.name for task in tasks]
    for task in tasks:
        own = settings.model_copy(update={"split": "validation"}) if task.validation else settings
        examples, labels = scored_examples(task, own), label_sets(task, names, own)
        first, second = (answer(model, backbone, update, examples, labels) for update in (whole, less.deployed))
        scores = [score(task, examples, predictions) for predictions in (first, second)]
        differ = sum(a.label != b.label for a, b in zip(first, second, strict=True))
        found[task.name] = {"split": own.split, "examples": len(examples), "changed": differ, "scores": scores}
    return found


def _exceeds(delta: Delta, rank: int) -> bool:
    return min(delta.shape) > rank and (not isinstance(delta, LowRank) or delta.rank > rank)


def _within(delta: Delta, rank: int) -> Delta:
    return truncate(delta, rank)[0] if _exceeds(delta, rank) else delta

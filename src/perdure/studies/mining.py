"""Which tasks conflict? Gradients of every task on the untrained model, their cosines, and the sequences that conflict most.

    g_i      gradient of task i's mean loss over a few batches with respect to the full target weights, on the untrained base
    s_i      CountSketch of g_i over all modules (ops.sketch)
    C_ij     cosine of s_i and s_j, standard error sqrt((1 + cos^2) / buckets)
    score    of a set of tasks: the mean of C_ij over its pairs; lowest = most conflicting

Source: SLICE's construction of adversarial sequences (arXiv 2605.12752: 4 batches of 4, 200,000 buckets, subsets of 5).
Deviations: the paper scores sets and leaves the order open; here each next task is the one that conflicts most (or least) with
those before it. The search over sets is exhaustive where that is feasible, otherwise greedy with exchange; the result says which.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from perdure.backbones.base import Backbone
from perdure.errors import ConfigError
from perdure.methods.contract.past import Past
from perdure.methods.measured.full_gradients import full_batches
from perdure.ops.sketch import CountSketch
from perdure.ops.subsets import best_subset, cheapest_first, greedy_subset, pair_sum
from perdure.report.pictures import heat_map_svg, number
from perdure.report.text import markdown_table
from perdure.tasks.task import Stage, Task
from perdure.training.context import StageContext
from perdure.training.lora import AdaptedModel

EXHAUSTIVE = 2_000_000
"""Most subsets that are tried one by one."""


@dataclass(frozen=True, eq=False)
class Conflicts:
    """Cosines of the tasks' gradients.

    Args:
        tasks: names, in the order of rows and columns.
        cosines: [T, T], symmetric, 1 on the diagonal.
        standard_error: of one cosine near 0.
    """

    tasks: tuple[str, ...]
    cosines: Tensor
    standard_error: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"tasks": list(self.tasks), "cosines": self.cosines.tolist(), "standard_error": self.standard_error}


@dataclass(frozen=True)
class FoundSequence:
    """A sequence of tasks and how it was searched.

    Args:
        tasks: in the order to learn them.
        mean_cosine: over all pairs.
        exhaustive: whether no other set of this length scores better; else the search was greedy with exchange.
    """

    tasks: tuple[str, ...]
    mean_cosine: float
    exhaustive: bool

    def __str__(self) -> str:
        return f"{', '.join(self.tasks)} (mean cosine {self.mean_cosine:+.3f}, {self.as_dict()['search']})"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        search = "exhaustive" if self.exhaustive else "greedy with exchange"
        return {"tasks": list(self.tasks), "mean_cosine": self.mean_cosine, "search": search}


@dataclass(frozen=True)
class Mined:
    """The result of `mine`: the cosines, and the sequences that conflict most and least."""

    conflicts: Conflicts
    most: FoundSequence
    least: FoundSequence

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"conflicts": self.conflicts.as_dict(), "most": self.most.as_dict(), "least": self.least.as_dict()}

    def as_markdown(self) -> str:
        """The cosine matrix as a table, the sequences and how they were found."""
        tasks, cosines = self.conflicts.tasks, self.conflicts.cosines.tolist()
        body = ([task, *map(number, row)] for task, row in zip(tasks, cosines, strict=True))
        lines = [
            "\n".join(markdown_table(["", *tasks], body)),
            f"Standard error of a cosine near 0: {self.conflicts.standard_error:.4f}.",
            f"Most conflicting: {self.most}",
            f"Least conflicting: {self.least}",
        ]
        return "\n\n".join(lines) + "\n"

    def as_svg(self) -> str:
        """The cosine matrix as a standalone picture."""
        return heat_map_svg(self.conflicts.tasks, self.conflicts.cosines.tolist(), "Cosine of the tasks' gradients")


def mine(tasks: Sequence[Task], model: AdaptedModel, backbone: Backbone, length: int = 5, **settings: Any) -> Mined:
    """The cosines of `gradient_conflicts` (which takes `settings`), and the most and least conflicting sequences.

    Raises:
        ConfigError, DataError: see `gradient_conflicts` and `find_sequence`.
    """
    _check_length(length, len(tasks))
    conflicts = gradient_conflicts(tasks, model, backbone, **settings)
    return Mined(conflicts, find_sequence(conflicts, length), find_sequence(conflicts, length, most=False))


def gradient_conflicts(
    tasks: Sequence[Task],
    model: AdaptedModel,
    backbone: Backbone,
    *,
    batches: int = 4,
    batch_size: int = 4,
    buckets: int = 200_000,
    seed: int = 0,
) -> Conflicts:
    """Cosines between the tasks' gradients on the untrained base. Only sketches are kept: `buckets` numbers for each task.

    Args:
        model: freshly attached; its adapter stays off and it is not changed.
        backbone: already prepared for the tasks.
        batches, batch_size: training examples each gradient is a mean over.

    Raises:
        DataError: a task with fewer training examples than one batch.
        ConfigError: a task whose gradient is zero, which has no cosine with anything; fewer than two tasks.
    """
    _check_length(2, len(tasks))
    hashing = CountSketch(buckets, seed)
    model.fold({})

    def sketch_of(task: Task) -> Tensor:
        ctx = StageContext(Stage(task.name, (task,)), 0, Past(), {}, model, backbone, {task.name: task}, seed)
        chosen = full_batches(ctx, task.train, batch_size, batches, f"mining.{task.name}", f"Task '{task.name}'")
        sketch = hashing.empty()
        ctx.stream(chosen, "gradients", lambda module, grad_OI: hashing.add(sketch, module, grad_OI, 1 / len(chosen)))
        return sketch

    stacked = torch.stack([sketch_of(task) for task in tasks]).double()
    norms = stacked.norm(dim=1)
    for task, norm in zip(tasks, norms, strict=True):
        if norm == 0:
            raise ConfigError(
                f"The gradient of task '{task.name}' is zero at every target layer; choose other lora.targets."
            )
    stacked /= norms[:, None]
    cosines = (stacked @ stacked.mT).clamp(-1, 1).fill_diagonal_(1.0)
    return Conflicts(tuple(task.name for task in tasks), cosines, hashing.standard_error())


def find_sequence(conflicts: Conflicts, length: int, *, most: bool = True, limit: int = EXHAUSTIVE) -> FoundSequence:
    """The `length` tasks whose gradients conflict most (least with `most=False`), in that order.

    Raises:
        ConfigError: a length below 2 or above the number of tasks.
    """
    count = len(conflicts.tasks)
    _check_length(length, count)
    sign = 1.0 if most else -1.0
    cost = (conflicts.cosines * sign).double().fill_diagonal_(0.0)
    exhaustive = math.comb(count, length) <= limit
    chosen = best_subset(cost, length) if exhaustive else greedy_subset(cost, length)
    ordered = cheapest_first(cost, chosen)
    mean = sign * pair_sum(cost, ordered) / math.comb(length, 2)
    return FoundSequence(tuple(conflicts.tasks[i] for i in ordered), mean, exhaustive)


def _check_length(length: int, count: int) -> None:
    """Raise `ConfigError` if no sequence of `length` tasks can be chosen from `count`."""
    if count < 2:
        raise ConfigError("Conflict is between tasks; give at least two.")
    if not 2 <= length <= count:
        raise ConfigError(f"A sequence of {length} tasks cannot be chosen from {count}; ask for 2 to {count}.")

"""Replay: keep a few old examples, mixed into the batches or for inits and step rules only.

    replay = kaiming + sum + buffer (ExampleBuffer, use: mixed)

Experience replay as in Chaudhry et al., arXiv 1902.10486 (a memory batch with every batch), with two ways to choose:

    reservoir        every example seen so far is kept with the same probability (Vitter 1985, algorithm R)
    class-balanced   as many of each label of each task as the budget allows (greedy balancing, Prabhu et al. 2020)

The budget is per task, or in all (then older tasks lose examples as new ones arrive).

Settings: see `ExampleBuffer`. Deviations: the paper's memory batch is as large as the batch (`ratio` 1); a free-text task has no
classes and counts as one for class-balanced.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from typing import ClassVar, Literal

import torch
from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor

from perdure.errors import RunMismatch
from perdure.methods.contract.context import Context, Need
from perdure.methods.contract.parts import Method, Replay
from perdure.tasks.task import Example

FREE_TEXT = "free text"
"""Marks a free-text task in the state."""


def reservoir(
    kept: Sequence[Example], seen: int, new: Sequence[Example], budget: int, generator: torch.Generator
) -> list[Example]:
    """A uniform sample of at most `budget` of all examples seen, given such a sample of the first `seen` (algorithm R)."""
    sample = list(kept)
    for position, example in enumerate(new, start=seen):
        if len(sample) < budget:
            sample.append(example)
        elif (slot := int(torch.randint(position + 1, (), generator=generator))) < budget:
            sample[slot] = example
    return sample


def class_balanced(
    pool: Sequence[Example], budget: int, generator: torch.Generator, free_text: Set[str] = frozenset()
) -> list[Example]:
    """At most `budget` of the pool: classes (task and label) take turns in random order, and so do examples within one.

    A task in `free_text` is one class: a class per target would crowd out everything kept before.
    """
    classes: dict[tuple[str, str], list[Example]] = {}
    for i in torch.randperm(len(pool), generator=generator).tolist():
        task, label = pool[i].task, pool[i].label
        classes.setdefault((task, "" if task in free_text else label), []).append(pool[i])
    groups = list(classes.values())
    order = [groups[i] for i in torch.randperm(len(groups), generator=generator).tolist()]
    turns = (group[turn] for turn in range(max(map(len, order), default=0)) for group in order if turn < len(group))
    return [example for example, _ in zip(turns, range(budget), strict=False)]


def encoded(examples: Sequence[Example]) -> Tensor:
    """Examples as a uint8 tensor of JSON bytes."""
    text = json.dumps([[e.text, e.label, e.task] for e in examples], ensure_ascii=True)
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def decoded(data: Tensor) -> list[Example]:
    """The examples that `encoded` was given."""
    return [Example(*fields) for fields in json.loads(bytes(data.cpu().tolist()).decode())]


class ExampleBuffer(Replay):
    """A bounded buffer of old examples."""

    read_by: ClassVar[Mapping[str, Mapping[str, tuple[str, ...]]]] = {"use": {"ratio": ("mixed",)}}

    use: Literal["mixed", "init-only"] = "mixed"
    """mixed: old examples join every batch; init-only: only inits (SLICE) and step rules (A-GEM) use them."""
    choose: Literal["class-balanced", "reservoir"] = "class-balanced"
    """how examples are chosen."""
    per_task: int | None = Field(default=None, ge=1)
    """budget for each task; 128 if neither budget is given."""
    in_all: int | None = Field(default=None, ge=1)
    """budget for all tasks together."""
    ratio: float = Field(default=1.0, gt=0)
    """old examples per new one in a mixed batch; use mixed only."""

    _kept: list[Example] = PrivateAttr(default_factory=list)
    _tasks: list[str] = PrivateAttr(default_factory=list)
    _free_text: set[str] = PrivateAttr(default_factory=set)
    _seen: int = PrivateAttr(default=0)
    _step: int = PrivateAttr(default=0)

    @model_validator(mode="after")
    def _one_budget(self) -> ExampleBuffer:
        if self.per_task is not None and self.in_all is not None:
            raise ValueError("give per_task or in_all, not both")
        return self

    @property
    def budget(self) -> int:
        """The most examples any task may keep: what the first one may."""
        return self.in_all if self.in_all is not None else self.per_task or 128

    def conflicts(self, method: Method) -> str | None:
        """Refused if there is no earlier task to replay, or no part that reads the buffer."""
        if method.stream == "joint":
            return "the joint stream is a single stage, which has no earlier task to replay"
        if self.use == "mixed" and method.consolidate.keeps == "per-task":
            return f"it keeps old tasks from being forgotten, but {method.out_of_reach()}"
        readers = [name for name, part in method.parts().items() if Need.OLD_EXAMPLES in part.needs]
        if self.use == "init-only" and not readers:
            return "use: init-only keeps examples for other parts, but none here reads them. Set use: mixed, or leave it out"
        return None

    def grows(self) -> str | None:
        return None if self.in_all else f"{self.budget} examples of every task are kept (bounded by in_all)"

    def acts(self, ctx: Context) -> bool:
        return self.use == "mixed" and bool(self._kept)

    def before_task(self, ctx: Context) -> None:
        """Count batches from 0.

        Raises:
            RunMismatch: the buffer holds an example of a task that was never learnt here.
        """
        self._step = 0
        learnt = set(ctx.past.stages)
        unknown = [task for task in self._tasks if task not in learnt]
        if unknown and "joint" not in learnt:
            raise RunMismatch(
                f"The replay buffer holds examples of '{unknown[0]}', which is not among the tasks learnt in this run "
                f"({', '.join(ctx.past.stages) or 'none yet'}); it belongs to another run. Start in a new folder."
            )

    def remember(self, ctx: Context, examples: Sequence[Example]) -> None:
        generator = ctx.generator("replay.remember")
        self._tasks += [task for task in dict.fromkeys(e.task for e in examples) if task not in self._tasks]
        self._free_text |= {task.name for task in ctx.stage.tasks if not task.labels}
        if self.in_all is not None:
            self._kept = self._chosen(self._kept, self._seen, examples, self.in_all, generator)
        else:
            for task in dict.fromkeys(e.task for e in examples):
                own = [e for e in examples if e.task == task]
                self._kept += self._chosen([], 0, own, self.budget, generator)
        self._seen += len(examples)

    def _chosen(
        self, kept: Sequence[Example], seen: int, new: Sequence[Example], budget: int, generator: torch.Generator
    ) -> list[Example]:
        if self.choose == "reservoir":
            return reservoir(kept, seen, new, budget, generator)
        return class_balanced([*kept, *new], budget, generator, self._free_text)

    def buffer(self) -> dict[str, tuple[Example, ...]]:
        """Task name -> kept examples, oldest task first; a task with none left is not listed."""
        by_task = {task: tuple(e for e in self._kept if e.task == task) for task in self._tasks}
        return {task: kept for task, kept in by_task.items() if kept}

    def mix(self, ctx: Context, batch: Sequence[Example]) -> Sequence[Example]:
        """The batch, then `ratio` times as many kept examples of any task; the batch alone while nothing is kept."""
        if self.use == "init-only" or not self._kept:
            return batch
        count = max(1, round(self.ratio * len(batch)))
        generator = ctx.generator(f"replay.mix.{self._step}")
        self._step += 1
        order = torch.randperm(len(self._kept), generator=generator)[:count]
        return [*batch, *(self._kept[i] for i in order.tolist())]

    def state(self) -> dict[str, Tensor]:
        """The kept examples, the tasks in order (and which are free text), the counts of examples seen and batches mixed."""
        tasks = [Example("", FREE_TEXT if task in self._free_text else "", task) for task in self._tasks]
        counts = torch.tensor([self._seen, self._step])
        return {"kept": encoded(self._kept), "tasks": encoded(tasks), "counts": counts}

    def load(self, state: Mapping[str, Tensor]) -> None:
        if not state:
            return
        self._kept = decoded(state["kept"])
        tasks = decoded(state["tasks"])
        self._tasks = [example.task for example in tasks]
        self._free_text = {example.task for example in tasks if example.label == FREE_TEXT}
        self._seen, self._step = (int(value) for value in state["counts"])

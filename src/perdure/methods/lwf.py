"""LwF: on the new task's inputs, keep answering the old tasks' questions as before. Li and Hoiem, arXiv 1606.09282.

    lwf = kaiming + distillation (LwF) + sum

    y_o'   the model's answer, before this stage, to the input under old task o (teacher)      T  temperature
    y_o    the same by the model being trained                                                 lambda  `weight`

    L = L_task + lambda sum_o KL( softmax(y_o' / T) || softmax(y_o / T) )                       `distillation`, eq. (2), (3)

KL and the paper's cross-entropy differ by the teacher's entropy, a constant: same gradient, but 0 means "nothing changed".

Settings: `temperature` (2 in the paper), `reduction` over old tasks (a sum in the paper). Deviations: no T^2 factor (nor in the
paper), no separate warm-up of the new head (there is no head). Cost: the teacher answers the stage's examples once, or with a
replay part every batch (also if that part mixes nothing in); the student scores its batch under every old task's labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor
from torch.nn.functional import log_softmax

from perdure.methods.contract.context import Context, Need
from perdure.methods.contract.parts import BatchPenalty, Method
from perdure.tasks.task import Example

if TYPE_CHECKING:
    from perdure.backbones.base import Batch, Outputs

TEACHER_BATCH = 32
"""Examples per batch of the teacher."""


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of scores [n, labels] softened by `temperature`, mean over the n inputs; a scalar >= 0."""
    new, old = log_softmax(student / temperature, dim=-1), log_softmax(teacher / temperature, dim=-1)
    return (old.exp() * (old - new)).sum(dim=-1).mean()


class LwF(BatchPenalty):
    """The model's answers to the new task's inputs under old tasks' labels must not move."""

    needs: ClassVar[frozenset[Need]] = frozenset({Need.PAST_DATA, Need.LABELS})
    needs_past: ClassVar[bool] = True
    protects: ClassVar[str] = "it keeps the answers to old tasks"

    temperature: float = Field(default=2.0, gt=0)
    """T; above 1 softens the answers."""
    reduction: Literal["sum", "mean"] = "sum"
    """over old tasks: sum (the paper), or mean (the penalty does not grow with their number)."""

    caches: ClassVar[frozenset[str]] = frozenset({"_answers", "_stage"})

    _answers: dict[str, list[Tensor]] = PrivateAttr(default_factory=dict)
    _stage: int | None = PrivateAttr(default=None)

    def conflicts(self, method: Method) -> str | None:
        """Also refused if the model a task starts from, its teacher, does not know the past."""
        reason = super().conflicts(method)
        if reason or method.consolidate.keeps != "merged" or method.init.continues:
            return reason
        return (
            "the teacher is the model a task starts from, which with this consolidation is the pretrained one and knows no "
            "old task. Use a consolidation that carries, like `sum` (or trains_on: sum)"
        )

    def grows(self) -> str | None:
        return "every batch is scored under the labels of every old task"

    def loss(self, ctx: Context, batch: Batch, outputs: Outputs) -> Tensor:
        """The distillation loss; 0 on the first task."""
        tasks = ctx.past.stages
        if not tasks:
            return torch.zeros((), device=outputs.loss.device)
        answers = self._teacher(ctx, batch.examples)
        terms = [
            distillation(ctx.scores(batch, outputs, task), answer, self.temperature)
            for task, answer in zip(tasks, answers, strict=True)
        ]
        summed = torch.stack(terms).sum()
        return summed / len(terms) if self.reduction == "mean" else summed

    def _teacher(self, ctx: Context, examples: Sequence[Example]) -> list[Tensor]:
        """The teacher's scores [n, labels] under every old task's labels.

        The stage's own examples are answered once, all in a fixed order of their own, so that a resumed stage has the same
        bits. With a replay buffer a batch may hold old examples, so the teacher answers every batch when it comes, in every
        process alike: all processes gather a sharded base together.
        """
        if ctx.buffer:
            return ctx.teacher(examples, ctx.past.stages)
        if self._stage != ctx.index:
            self._stage, self._answers = ctx.index, {}
            for some in ctx.batches(ctx.stage.train, TEACHER_BATCH, "teacher"):
                per_task = ctx.teacher(some, ctx.past.stages)
                for i, example in enumerate(some):
                    self._answers[example.text] = [scores[i] for scores in per_task]
        rows = [self._answers[example.text] for example in examples]
        return [torch.stack(of_task) for of_task in zip(*rows, strict=True)]

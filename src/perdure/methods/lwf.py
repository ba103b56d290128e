"""LwF: on the new task's inputs, keep answering the old tasks' questions as before. Li and Hoiem, arXiv 1606.09282.

    y_o'   the model's answer, before this stage, to the input under old task o (teacher)      T  temperature
    y_o    the same by the model being trained                                                 lambda  `weight`

    L = L_task + lambda sum_o KL( softmax(y_o' / T) || softmax(y_o / T) )                       `distillation`, eq. (2), (3)

KL and the paper's cross-entropy differ by the teacher's entropy, a constant: same gradient, but 0 means "nothing changed".

Settings: `temperature` (2 in the paper), `reduction` over old tasks (the paper sums). Deviations: no T^2 factor (nor in the
paper), no separate warm-up of the new head (there is no head). Cost: one scoring per old task by teacher and student.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import log_softmax

from perdure.methods.parts import BatchPenalty, Need

if TYPE_CHECKING:
    from perdure.backbones.base import Batch, Outputs
    from perdure.methods.parts import Context, Method


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of scores [n, labels] softened by `temperature`, mean over the n inputs; a scalar >= 0."""
    new, old = log_softmax(student / temperature, dim=-1), log_softmax(teacher / temperature, dim=-1)
    return (old.exp() * (old - new)).sum(dim=-1).mean()


class LwF(BatchPenalty):
    """The model's answers under the labels of old tasks may not move on the new task's inputs.

    Args:
        weight: lambda.
        temperature: T, above 1 softens the answers.
        reduction: over old tasks, sum (the paper) or mean (the penalty does not grow with their number).
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.PAST_DATA})

    temperature: float = Field(default=2.0, gt=0)
    reduction: Literal["sum", "mean"] = "sum"

    def conflicts(self, method: Method) -> str | None:
        """The model a task starts from must know the old tasks: it is the teacher."""
        if reason := method.out_of_reach():
            return f"it keeps the answers to old tasks, but {reason}"
        if method.consolidate.keeps == "merged" and not method.init.continues:
            return (
                "the teacher is the model a task starts from, which with this consolidation is the pretrained one and knows no "
                "old task. Use a consolidation that carries, like `sum` (or trains_on: sum)"
            )
        return None

    def loss(self, ctx: Context, batch: Batch, outputs: Outputs) -> Tensor:
        """See `BatchPenalty`; 0 on the first task."""
        tasks = ctx.past.stages
        if not tasks:
            return torch.zeros((), device=outputs.loss.device)
        terms = [
            distillation(ctx.scores(batch, outputs, task), ctx.teacher(batch, task).detach(), self.temperature)
            for task in tasks
        ]
        summed = torch.stack(terms).sum()
        return summed / len(terms) if self.reduction == "mean" else summed

"""SLICE without replay: the new gradient, weighted by what its own inputs need and the old tasks' inputs do not feel.

    slice-free = slice-free (SliceFree) + sum, lora.alpha 2

    G_c   mean full gradient of the new task [O, I]              C_t    second moment of the module's inputs on the new task
    s, r  scaling and rank                                       C_<t   the same, summed over the tasks learnt so far [I, I]

    P = C_t (C_t + kappa C_<t + eps I)^-1              merging.covariance_gain
    G_c P ~ U S V^T,  then SLICE's steps (4) to (6)    methods.slice

G_c is a sum of (output gradient) x^T over the new inputs x; P turns its rows away from input directions that carry the old tasks.
Only statistics are kept, of a size that does not grow with the number of tasks, and no example.

Source: this project (SLICE is arXiv 2605.12752; the gain is that of docs/merging.md). The first task starts as LoRA-GA does. C_t
is measured with the current model, when a task begins (for P) and again after it is learnt (for C_<t).
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from perdure.merging.covariance_gain import covariance_gain
from perdure.methods.contract.context import Context, Need
from perdure.methods.contract.parts import Start, TensorMemory
from perdure.methods.lora_ga import GradientInit, lora_ga_like, offset_start
from perdure.methods.loram import rescaled
from perdure.methods.measured.full_gradients import full_batches
from perdure.methods.measured.input_moments import add_moments, input_moments
from perdure.methods.slice import RightDirections, start_directions
from perdure.ops.lowrank import Update, dense


class SliceFree(TensorMemory, GradientInit):
    """The adapter starts from a gradient turned away from the old tasks' inputs; no example is kept.

    Memory: C_<t [I, I] fp64 by module.
    """

    needs: ClassVar[frozenset[Need]] = frozenset(
        {Need.DENSE_BASE, Need.FULL_GRADIENTS, Need.TRAINING_DATA, Need.PAST_DATA, Need.RANK_OF_TWO}
    )
    protects: ClassVar[str] = "it turns the start away from old tasks' inputs"

    kappa: float = Field(default=1.0, ge=0)
    """how much the old tasks' inputs count against the new one's."""
    ridge: float = Field(default=1e-3, gt=0)
    """eps relative to the mean diagonal of C_t + kappa C_<t."""
    right: RightDirections = "next"
    """which right singular vectors A takes; see SLICE."""

    def start(self, ctx: Context) -> Start:
        """LoRA-GA on the first task."""
        if not self._memory:
            return lora_ga_like(self).start(ctx)
        gradient = self._task_gradient(ctx, self._accumulators(ctx, "slice-free")(), "slice-free")
        moments = self._moments(ctx, "slice-free")
        starts: dict[str, tuple[Tensor, Tensor]] = {}
        for module, pair in ctx.factors.items():
            own, past, rank = moments.pop(module), self._memory[module], pair.A.shape[0]

            def weigh(rows_NI: Tensor, own: Tensor = own, past: Tensor = past) -> Tensor:
                return dense(covariance_gain(rows_NI, own, past, self.kappa, self.ridge))

            U, _, Vh = gradient.weighted_triplets(module, 2 * rank, weigh)
            gradient.drop(module)
            starts[module] = rescaled(*start_directions(U, Vh, rank, self.right), ctx.weight(module), module)
        return offset_start(starts, ctx.factors)

    def after_task(self, ctx: Context, update: Update) -> None:
        """Add the learnt task's second moments."""
        add_moments(self._memory, self._moments(ctx, "slice-free.after"))

    def _moments(self, ctx: Context, purpose: str) -> dict[str, Tensor]:
        name = f"Task '{ctx.stage.name}'"
        return input_moments(ctx, full_batches(ctx, ctx.stage.train, self.batch_size, self.batches, purpose, name))

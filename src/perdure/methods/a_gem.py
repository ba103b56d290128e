"""A-GEM: no step may raise the average loss on remembered examples. Chaudhry et al., arXiv 1812.00420.

    a-gem = kaiming + a-gem (AGem, a step rule) + sum + buffer (use: init-only)

    g       gradient of the current batch, over all factors together
    g_ref   gradient of the mean loss on examples drawn from the buffer
    g~ = g                                        if <g, g_ref> >= 0
    g~ = g - (<g, g_ref> / <g_ref, g_ref>) g_ref  otherwise, so that <g~, g_ref> = 0       ops.surgery.pcgrad (c = 1)

Settings: `batch_size` of the reference gradient. Deviations: none; a penalty's gradient is part of g, as it is of the step.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate
from typing import ClassVar

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from perdure.errors import UnmetNeed
from perdure.methods.contract.context import Context, Gradients, Need
from perdure.methods.contract.parts import StepRule
from perdure.ops import surgery


def gram(grads: Gradients, reference: Gradients) -> surgery.Gram:
    """Inner products over every trained factor; a frozen one (None) is left out."""
    return surgery.total(
        surgery.gram(grad, old)
        for module, pair in grads.items()
        for grad, old in zip(pair, reference[module], strict=True)
        if grad is not None and old is not None
    )


def project(grads: Gradients, reference: Gradients) -> tuple[Gradients, bool]:
    """g~, the gradients closest to `grads` whose inner product with `reference` is not negative; and whether it moved."""
    coefficients = surgery.pcgrad(gram(grads, reference))

    def one(grad: Tensor | None, old: Tensor | None) -> Tensor | None:
        return grad if grad is None or old is None else surgery.combine(grad, old, coefficients)

    projected = {
        module: (one(A, reference[module][0]), one(B, reference[module][1])) for module, (A, B) in grads.items()
    }
    return projected, coefficients != surgery.UNCHANGED


class AGem(StepRule):
    """Gradients that would raise the loss on remembered examples are projected until they do not."""

    needs: ClassVar[frozenset[Need]] = frozenset({Need.OLD_EXAMPLES})
    needs_past: ClassVar[bool] = True
    protects: ClassVar[str] = "it keeps steps from hurting old tasks"

    batch_size: int = Field(default=32, ge=1)
    """remembered examples, of any task, behind one reference gradient."""

    _step: int = PrivateAttr(default=0)
    _fired: int = PrivateAttr(default=0)

    def before_task(self, ctx: Context) -> None:
        """Count steps within the stage, so that each draws its own examples, also after a resume."""
        self._step = self._fired = 0

    def gradients(self, ctx: Context, grads: Gradients) -> Gradients:
        """The projected gradients; the first task's are left alone.

        Raises:
            UnmetNeed: the buffer is empty at a later task.
        """
        ends = list(accumulate(len(examples) for examples in ctx.buffer.values()))
        if not ends or not ends[-1]:
            if len(ctx.past) == 0:
                return grads
            raise UnmetNeed(
                f"A-GEM needs remembered examples at task '{ctx.stage.name}', but the replay buffer is empty."
            )
        order = torch.randperm(ends[-1], generator=ctx.generator(f"a-gem.{self._step}"))[: self.batch_size]
        self._step += 1
        # draw first, then look up (counted from the end): a user's dataset may be slow to read
        buffers, places = list(ctx.buffer.values()), [(i, bisect_right(ends, i)) for i in order.tolist()]
        drawn = [buffers[at][i - ends[at]] for i, at in places]
        projected, fired = project(grads, ctx.task_gradients(drawn))
        self._fired += fired
        ctx.note("a-gem/fired", self._fired / self._step)
        return projected

    def state(self) -> dict[str, Tensor]:
        """How many steps of this stage are done, and in how many the gradient was projected."""
        return {"steps": torch.tensor([self._step, self._fired])}

    def load(self, state: Mapping[str, Tensor]) -> None:
        if "steps" in state:
            self._step, self._fired = (int(value) for value in state["steps"])

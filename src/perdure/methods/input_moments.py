"""Second moments of the target modules' inputs: what a task leaves behind where no example may be kept.

Legend: N inputs (real positions of all examples), I input features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from perdure.methods.parts import Context
    from perdure.tasks.task import Example


def input_moments(ctx: Context, batches: Sequence[Sequence[Example]]) -> dict[str, Tensor]:
    """Module -> C = mean of x x^T over its inputs x at real positions, [I, I] fp64, by the model as it is now.

    Padding does not count, and long examples count by their positions. Memory: one [I, I] a module.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def sink(module: str, inputs_NI: Tensor) -> None:
        x = inputs_NI.detach().float()
        moment = (x.mT @ x).double()
        sums[module] = sums[module].add_(moment) if module in sums else moment
        counts[module] = counts.get(module, 0) + x.shape[0]

    ctx.stream(batches, "inputs", sink)
    return {module: sums[module].div_(counts[module]) for module in ctx.factors}

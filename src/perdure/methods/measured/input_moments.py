"""Second moments of the target modules' inputs: what a task leaves behind where no example may be kept.

Legend: N inputs (real positions of all examples), I input features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from perdure.errors import TrainingError

if TYPE_CHECKING:
    from perdure.methods.contract.context import Context, Sink
    from perdure.ops.factors import Factors
    from perdure.tasks.task import Example


def input_moments(ctx: Context, batches: Sequence[Sequence[Example]]) -> dict[str, Tensor]:
    """`moments_of` the inputs in `batches`, by the model as it is now."""
    return moments_of(ctx.factors, lambda sink: ctx.stream(batches, "inputs", sink))


def moments_of(factors: Mapping[str, Factors], stream: Callable[[Sink], None]) -> dict[str, Tensor]:
    """Module -> C = mean of x x^T over its inputs x at real positions, [I, I] fp64.

    Padding does not count, and long examples count by their positions. A module that no input reaches (an expert never chosen)
    has zeros. Memory: one [I, I] a module.

    Args:
        factors: of the modules that are looked at; they say how wide and where each one's inputs are.
        stream: gives a sink every module's inputs.
    """
    sums = {
        module: torch.zeros(pair.shape[1], pair.shape[1], dtype=torch.float64, device=pair.A.device)
        for module, pair in factors.items()
    }
    counts = dict.fromkeys(sums, 0)

    def sink(module: str, inputs_NI: Tensor) -> None:
        x = inputs_NI.detach().float()
        sums[module].add_((x.mT @ x).double())
        counts[module] += x.shape[0]

    stream(sink)
    return {module: total.div_(max(1, counts[module])) for module, total in sums.items()}


def add_moments(sums: dict[str, Tensor], new: Mapping[str, Tensor]) -> None:
    """Add matrices to the sums over the tasks before, which may have been read back to the CPU."""
    for key, moment in new.items():
        sums[key] = sums[key].to(moment) + moment if key in sums else moment


def check_reached(moments: Mapping[str, Tensor], whose: str) -> None:
    """Every target module has inputs to start from.

    Raises:
        TrainingError: none reached a module; names it.
    """
    for module, moment in moments.items():
        if not moment.any():
            raise TrainingError(
                f"{whose}: no input reaches '{module}', so no adapter can start from its inputs. Take '{module}' out of "
                "lora.targets if this model does not use it, or choose another init."
            )

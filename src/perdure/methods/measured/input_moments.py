"""Second moments of the target modules' inputs: what a task leaves behind when no example may be kept.

Legend: N inputs (real positions of all examples), I input features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from perdure.errors import Diverged
from perdure.methods.contract.context import Context, Sink
from perdure.ops.factors import Factors
from perdure.ops.finite import all_finite
from perdure.tasks.task import Example


def input_moments(ctx: Context, batches: Sequence[Sequence[Example]]) -> dict[str, Tensor]:
    """`moments_of` the inputs in `batches`, with the current model."""
    return moments_of(ctx.factors, lambda sink: ctx.stream(batches, "inputs", sink))


def moments_of(factors: Mapping[str, Factors], stream: Callable[[Sink], None]) -> dict[str, Tensor]:
    """Module -> C = mean of x x^T over its inputs x at real positions, [I, I] fp64.

    Padding does not count; long examples count by their positions. A module that no input reaches (an expert never chosen)
    has zeros. Memory: one [I, I] per module.

    Args:
        factors: of the modules to measure; they give the width and device of each one's inputs.
        stream: passes every module's inputs to a sink.
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
    """Add matrices to the sums over earlier tasks, which may be on the CPU after a resume.

    Raises:
        Diverged: one is not finite; nothing is added.
    """
    for key, moment in new.items():
        check_finite(key, moment)
    for key, moment in new.items():
        sums[key] = sums[key].to(moment) + moment if key in sums else moment


def check_finite(what: str, measured: Tensor) -> None:
    """Raise Diverged if a statistic of a task holds NaN or Inf: every later task would be trained on it."""
    if not all_finite(measured):
        raise Diverged(
            f"What was measured of the task to protect it, '{what}', is not finite. Finished tasks are kept. Lower "
            "training.learning_rate, or compute in fp32 (precision=fp32), in a new folder."
        )

"""Mean full gradients of the target weights, for the inits that start from them (LoRA-GA, SLICE).

Legend: O output features, I input features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from perdure.errors import DataError, TrainingError

if TYPE_CHECKING:
    from perdure.methods.parts import Context
    from perdure.tasks.task import Example


def full_batches(
    ctx: Context, examples: Sequence[Example], size: int, count: int, purpose: str, whose: str
) -> list[Sequence[Example]]:
    """At most `count` random batches of exactly `size` examples, so that their plain mean is the mean over examples.

    Raises:
        DataError: fewer examples than one batch; `whose` says whose.
    """
    if len(examples) < size:
        raise DataError(
            f"{whose} has {len(examples)} examples, fewer than one batch of {size} for the gradient that starts the "
            "adapter; lower the init's `batch_size`, or give (or keep) more examples."
        )
    batches = (batch for batch in ctx.batches(examples, size, purpose) if len(batch) == size)
    return [batch for batch, _ in zip(batches, range(count), strict=False)]


def add_mean_gradients(
    ctx: Context, batches: Sequence[Sequence[Example]], sums: dict[str, Tensor], share: float = 1.0
) -> None:
    """Add `share` times the batches' mean gradient to `sums`: module -> [O, I] fp32, one full gradient per module."""
    factor = share / len(batches)

    def sink(module: str, grad_OI: Tensor) -> None:
        if module in sums:
            sums[module].add_(grad_OI, alpha=factor)
        else:
            sums[module] = grad_OI.detach().float() * factor

    ctx.stream(batches, "gradients", sink)


def check_gradients(ctx: Context, norms: dict[str, float], whose: str) -> None:
    """Every target module has a gradient to start from.

    Raises:
        TrainingError: a module's gradient is zero or not finite; names the module.
    """
    for module in ctx.factors:
        norm = norms.get(module, 0.0)
        if norm > 0 and math.isfinite(norm):
            continue
        raise TrainingError(
            f"{whose}: the gradient at '{module}' is {'not finite' if norm else 'zero'}, so no adapter can start from it. "
            f"Take '{module}' out of lora.targets if the loss does not depend on it, or choose another init."
        )

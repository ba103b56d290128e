"""Sum, average and task arithmetic: the rules whose result stays low rank, exactly.

    task arithmetic   merged = scale * sum_i w_i dW_i              (arXiv 2212.04089, on updates)
    sum               all w_i = 1, scale 1
    average           merged = sum_i w_i dW_i / sum_i w_i

All act on the effective update scaling * B A. Combining A and B separately, sum_i w_i B_i times sum_i w_i A_i, would add the
cross terms B_i A_j, which belong to no adapter: for two adapters it is about 100 % away from the sum (docs/merging.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch

from perdure.errors import ConfigError
from perdure.merging.modules import merge_modules
from perdure.ops.lowrank import Delta, LowRank, Update, add, scale


def weighted_sum(deltas: Sequence[Delta], weights: Sequence[float]) -> Delta:
    """sum_i w_i dW_i; stacked factors while these are smaller than the dense matrix."""
    return reduce(add, [scale(delta, weight) for delta, weight in zip(deltas, weights, strict=True)])


def stacked_sum(deltas: Sequence[Delta], weights: Sequence[float]) -> Delta:
    """The same as stacked factors, whatever their rank, if all have factors: an exact adapter is made of them."""
    scaled = [scale(delta, weight) for delta, weight in zip(deltas, weights, strict=True)]
    factors = [delta for delta in scaled if isinstance(delta, LowRank)]
    if len(factors) < len(scaled):
        return reduce(add, scaled)
    return LowRank(torch.cat([delta.A for delta in factors]), torch.cat([delta.B for delta in factors], dim=1))


def checked_weights(weights: Sequence[float] | None, count: int) -> list[float]:
    """One weight per update, all 1 by default; a ConfigError if there are not `count`."""
    if weights is None:
        return [1.0] * count
    if len(weights) != count:
        raise ConfigError(f"{len(weights)} weights were given for {count} updates; give one for each, in order.")
    return list(weights)


def task_arithmetic_updates(
    updates: Sequence[Update], weights: Sequence[float] | None = None, factor: float = 1.0
) -> dict[str, Delta]:
    """Per module factor * sum_i w_i dW_i; a module missing from an update counts as zero there."""
    factors = [factor * weight for weight in checked_weights(weights, len(updates))]

    def merge(_module: str, deltas: list[Delta | None]) -> Delta:
        present = [(delta, w) for delta, w in zip(deltas, factors, strict=True) if delta is not None]
        return weighted_sum([delta for delta, _ in present], [w for _, w in present])

    return dict(merge_modules(updates, merge))


def sum_updates(updates: Sequence[Update]) -> dict[str, Delta]:
    """The sum, per module."""
    return task_arithmetic_updates(updates)


def average_updates(updates: Sequence[Update], weights: Sequence[float] | None = None) -> dict[str, Delta]:
    """The weighted mean per module, over ALL updates, those without the module included."""
    return task_arithmetic_updates(updates, weights, 1 / weight_total(checked_weights(weights, len(updates))))


def weight_total(weights: Sequence[float]) -> float:
    """The sum of the weights; a ConfigError if it is zero and cannot be divided by."""
    total = sum(weights)
    if total == 0:
        raise ConfigError("The weights of an average sum to zero; give weights with a sum other than zero.")
    return total

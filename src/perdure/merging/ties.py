"""TIES merge: trim, elect a sign, average those that agree (Yadav et al., arXiv 2306.01708, algorithm 1).

Symbols: dW_t an update, k the share of entries kept (density), lambda the scale.

    1. trim     dW_t <- dW_t where |dW_t| is among its k largest, else 0
    2. elect    gamma = sign(sum_t dW_t), position by position
    3. merge    dW = lambda * mean over { t : sign(dW_t) = gamma, dW_t != 0 } of dW_t

Settings: density .2 and lambda 1 as in the paper's recipe without validation data.
Trimming ranks the whole flattened update (`scope="model"`, the paper and its code) or over each module's matrix
(`scope="tensor"`, mergekit and PEFT): a model-wide threshold lets modules with large updates keep more.

Deviations, which only matter at exact ties: entries equal to the threshold are all kept; a sum of exactly 0 elects "+" (as
in mergekit and PEFT; the paper's code takes the majority sign of the whole model). With weights w_t the election sums
w_t dW_t, and the mean is sum w_t dW_t / sum w_t over the agreeing entries, as in mergekit with `normalize`.

Election and mean need only the sum and the weight of the positive and of the negative entries: four numbers per
position for any number of updates, so merging one by one is exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from perdure.merging.fold import Slots, Transform
from perdure.ops.lowrank import Update
from perdure.ops.magnitude import magnitude_threshold
from perdure.ops.tiling import Arena, choose, larger

Scope = Literal["model", "tensor"]


class Vote:
    """Steps 2 and 3 as a fold: sum and weight of the positive entries, and of the negative ones."""

    slots = ("positive", "positive_weight", "negative", "negative_weight")

    def add(self, slots: Slots, tile: Tensor, weight: float, arena: Arena) -> None:
        if weight < 0:  # flips the vote; the mean is divided by its magnitude
            tile, weight = tile.neg_(), -weight
        first = not slots
        for name, part in (
            ("positive_weight", torch.gt(tile, 0, out=arena.like(tile))),
            ("negative_weight", torch.lt(tile, 0, out=arena.like(tile))),
            ("positive", torch.clamp_min(tile, 0, out=arena.like(tile))),
            ("negative", tile.clamp_max_(0)),
        ):
            if first:
                slots[name] = part.mul_(weight) if weight != 1 else part
            else:
                slots[name].add_(part, alpha=weight)

    def result(self, slots: Slots, arena: Arena) -> Tensor:
        positive, negative = slots["positive"], slots["negative"]
        upwards = larger(positive, torch.neg(negative, out=arena.like(negative)), arena, or_equal=True)
        weight = choose(upwards, slots["positive_weight"], slots["negative_weight"], out=slots["positive_weight"])
        weight.clamp_min_(torch.finfo(weight.dtype).tiny)  # 0 / tiny = 0
        return choose(upwards, positive, negative, out=positive).div_(weight)


def thresholds(update: Update, density: float, scope: Scope) -> dict[str, float]:
    """Module -> the least magnitude of entries to keep."""
    if scope == "tensor":
        return {module: magnitude_threshold([delta], density) for module, delta in update.items()}
    threshold = magnitude_threshold(update.values(), density)
    return dict.fromkeys(update, threshold)


def trim(thresholds: Mapping[str, float]) -> Transform:
    """Step 1: entries below their module's threshold become 0."""

    def apply(module: str, _first_row: int, tile: Tensor) -> Tensor:
        threshold = torch.tensor(thresholds[module], dtype=tile.dtype)
        below = torch.nextafter(threshold, torch.zeros_like(threshold))  # hardshrink keeps what is strictly larger
        return torch.ops.aten.hardshrink.out(tile, float(below), out=tile) if threshold > 0 else tile

    return apply

"""TIES merge: trim, elect a sign, average those that agree (Yadav et al., arXiv 2306.01708, algorithm 1).

Symbols: dW_t an update, k the share of entries kept (density), lambda the scale.

    1. trim     dW_t <- dW_t where |dW_t| is among its k largest, else 0
    2. elect    gamma = sign(sum_t dW_t), position by position
    3. merge    dW = lambda * mean over { t : sign(dW_t) = gamma, dW_t != 0 } of dW_t

Settings: density .2 and lambda 1 as in the paper's recipe without validation data.
Trimming ranks the whole flattened update (`scope="model"`, the paper and its code) or over each module's matrix
(`scope="tensor"`, mergekit and PEFT): a model-wide threshold lets modules with large updates keep more.

Deviations, which only matter at exact ties: entries equal to the threshold are all kept (k = int(density n), at least 1; the
paper's code keeps one more); a sum of exactly 0 elects "+" (as in mergekit and PEFT; the paper's code takes the majority sign of
the whole model).

With weights w_t, which the paper has none of:
    elect    weighted   the sign of sum_t w_t dW_t (mergekit)        total, frequency   of sum_t dW_t, of sum_t sign(dW_t) (PEFT)
    divide   the sum of w_t dW_t over the agreeing entries by: weights, the sum of |w_t|; signed-weights, the sum of w_t, where a
             negative weight turns the mean's sign (mergekit's normalize); count, their number (PEFT); none, nothing

All need but the sum and the weight of the positive and of the negative entries, and for an unweighted election one sum more:
three to five numbers per position for any number of updates, so merging one by one is exact.
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
Elect = Literal["weighted", "total", "frequency"]
Divide = Literal["weights", "signed-weights", "count", "none"]


class Vote:
    """Steps 2 and 3 as a fold: sum and weight of the positive and of the negative entries; the vote, if it is another."""

    def __init__(self, elect: Elect = "weighted", divide: Divide = "weights") -> None:
        self.elect, self.divide = elect, divide
        counts = () if divide == "none" else ("positive_weight", "negative_weight")
        self.slots = (*(() if elect == "weighted" else ("vote",)), *counts, "positive", "negative")

    def add(self, slots: Slots, tile: Tensor, weight: float, arena: Arena) -> None:
        count = {"weights": abs(weight), "signed-weights": weight, "count": 1.0, "none": 0.0}[self.divide]
        if self.elect == "weighted" and weight < 0:  # flips the vote
            tile, weight = tile.neg_(), -weight
        first = not slots
        for name in self.slots:  # the negative entries last: they take over the tile
            part = self._part(name, tile, arena)
            factor = {"vote": 1.0, "positive": weight, "negative": weight}.get(name, count)
            if first:
                slots[name] = part.mul_(factor) if factor != 1 else part
            else:
                slots[name].add_(part, alpha=factor)

    def _part(self, name: str, tile: Tensor, arena: Arena) -> Tensor:
        match name:
            case "vote":
                return (torch.sign if self.elect == "frequency" else torch.clone)(tile)
            case "positive_weight":
                return torch.gt(tile, 0, out=arena.like(tile))
            case "negative_weight":
                return torch.lt(tile, 0, out=arena.like(tile))
            case "positive":
                return torch.clamp_min(tile, 0, out=arena.like(tile))
        return tile.clamp_max_(0)

    def result(self, slots: Slots, arena: Arena) -> Tensor:
        positive, negative = slots["positive"], slots["negative"]
        if self.elect == "weighted":
            upwards = larger(positive, torch.neg(negative, out=arena.like(negative)), arena, or_equal=True)
        else:
            upwards = torch.ge(slots["vote"], 0, out=arena.like(positive))
        merged = choose(upwards, positive, negative, out=positive)
        if self.divide == "none":
            return merged
        weight = choose(upwards, slots["positive_weight"], slots["negative_weight"], out=slots["positive_weight"])
        if self.divide == "signed-weights":
            return merged.div_(weight.masked_fill_(weight == 0, 1.0))
        return merged.div_(weight.clamp_min_(torch.finfo(weight.dtype).tiny))  # 0 / tiny = 0


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

"""RAM: what one update alone changes stays whole, what several change is averaged (arXiv 2601.13572).

    dW = mean of dW_i over { i : |dW_i| > epsilon }, position by position; 0 if there are none

Settings: epsilon 1e-5 as in mergekit, an absolute size: below it an entry counts as unchanged. LoRA updates are dense, so epsilon
must be chosen by their size. RAM+ (mergekit's ramplus_tl) is not here.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from perdure.merging.fold import Fold, Slots
from perdure.merging.rule import FoldRule
from perdure.ops.tiling import Arena


class MeanOfChanged:
    """The rule as a fold: the sum of the entries that count, and their number."""

    slots = ("total", "count")

    def __init__(self, epsilon: float) -> None:
        self.epsilon = epsilon

    def add(self, slots: Slots, tile: Tensor, weight: float, arena: Arena) -> None:
        counts = torch.gt(torch.abs(tile, out=arena.like(tile)), self.epsilon, out=arena.like(tile))
        changed = tile.mul_(counts)
        if not slots:
            slots |= {"total": changed, "count": counts}
            return
        slots["total"].add_(changed)
        slots["count"].add_(counts)

    def result(self, slots: Slots, arena: Arena) -> Tensor:
        return slots["total"].div_(slots["count"].clamp_min_(1))


class Ram(FoldRule):
    """At every position the mean of the updates that change it."""

    source: ClassVar[str] = "https://arxiv.org/abs/2601.13572"
    epsilon: float = Field(default=1e-5, ge=0)

    def fold(self) -> Fold:
        return MeanOfChanged(self.epsilon)

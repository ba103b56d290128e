"""NearSwap: from the first update towards the second, at every position by at most t.

    dW = dW_1 + clip(dW_2 - dW_1, -t, t)

Where the two are within t of each other the second one's entry is taken whole. The first is mergekit's base_model. `t` is an
absolute size, so it has no default. mergekit differs where t < 1e-6: it divides by at least that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from perdure.merging.covariance_gain import Moments
from perdure.merging.fold import Entry, Fold, Slots
from perdure.merging.modules import with_zeros
from perdure.merging.rule import FoldRule, Prepared
from perdure.ops.lowrank import Update
from perdure.ops.tiling import Arena


class StepTowards:
    """The rule as a fold over two updates."""

    slots = ("kept",)

    def __init__(self, t: float) -> None:
        self.t = t

    def add(self, slots: Slots, tile: Tensor, weight: float, arena: Arena) -> None:
        if not slots:
            slots["kept"] = tile
        else:
            slots["kept"].add_(tile.sub_(slots["kept"]).clamp_(-self.t, self.t))

    def result(self, slots: Slots, arena: Arena) -> Tensor:
        return slots["kept"]


class Nearswap(FoldRule):
    """The first update, moved towards the second by at most t at every position."""

    source: ClassVar[str] = "https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001"
    in_order: ClassVar[bool] = True
    incremental: ClassVar[bool] = False
    pair: ClassVar[bool] = True
    t: float = Field(gt=0)

    def fold(self) -> Fold:
        return StepTowards(self.t)

    def prepare(self, updates: Sequence[Update], moments: Sequence[Moments] | None = None) -> Prepared:
        self.check_count("nearswap", len(updates))
        return self.folding(lambda _module, deltas: [Entry(delta) for delta in with_zeros(deltas)])

"""MagMax: keep the entry of largest magnitude among all cumulative task vectors (Marczak et al., arXiv 2407.06322).

Symbols: theta_t the weights after task t, trained on from theta_{t-1}; tau_t = theta_t - theta_0 the CUMULATIVE task vector.

    tau_t = sum_{i <= t} dW_i
    dW = scale * tau_p,  p = argmax_t |tau_t| at every position

Max-magnitude compares what each task added; MagMax compares where the weights were after each task. It is meant for
updates trained one after another, each on the sum of the earlier ones, and depends on their order.
Settings: scale .5, and the later task on ties, as in the released code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from perdure.merging.fold import Slots
from perdure.ops.tiling import Arena, choose, larger


class KeepFarthest:
    """The rule as a fold over the updates dW_t: their running sum, and its value farthest from 0."""

    slots = ("cumulative", "kept")

    def add(self, slots: Slots, tile: Tensor, weight: float, arena: Arena) -> None:
        if not slots:
            slots |= {"cumulative": tile, "kept": arena.like(tile).copy_(tile)}
            return
        cumulative, kept = slots["cumulative"].add_(tile), slots["kept"]
        new, old = torch.abs(cumulative, out=tile), torch.abs(kept, out=arena.like(kept))
        choose(larger(new, old, arena, or_equal=True), cumulative, kept, out=kept)

    def result(self, slots: Slots, arena: Arena) -> Tensor:
        return slots["kept"]

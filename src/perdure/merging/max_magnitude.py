"""Max-magnitude merge: at every position keep the entry that is larger in magnitude (PS-LoRA, arXiv 2512.08960).

    M(X, Y)_ij = X_ij if |X_ij| >= |Y_ij| else Y_ij

M is associative, and commutative up to ties (equal magnitude, opposite sign: the earlier one stays). Merging tasks one by
one as they arrive thus gives exactly what merging all at the end gives, in the memory of one dense update.
"""

from __future__ import annotations

import torch
from torch import Tensor

from perdure.merging.fold import Slots
from perdure.ops.lowrank import Delta, Update, dense
from perdure.ops.tiling import Arena, choose, larger


def max_magnitude(earlier: Delta, later: Delta) -> Tensor:
    """The dense [O, I] matrix of the larger entries by magnitude; on a tie, the earlier one."""
    kept, new = dense(earlier), dense(later)
    return choose(larger(new.abs(), kept.abs(), Arena()), new, kept, torch.empty_like(new))


def max_magnitude_updates(earlier: Update, later: Update) -> dict[str, Tensor]:
    """`max_magnitude` per module; a module missing on one side counts as zero there."""
    merged = {
        name: max_magnitude(delta, later[name]) if name in later else dense(delta) for name, delta in earlier.items()
    }
    return merged | {name: dense(delta) for name, delta in later.items() if name not in earlier}


class KeepLarger:
    """The same rule as a fold (perdure.merging.fold): one number per position."""

    slots = ("kept",)

    def add(self, slots: Slots, tile: Tensor, weight: float, arena: Arena) -> None:
        if not slots:
            slots["kept"] = tile
            return
        kept = slots["kept"]
        new, old = torch.abs(tile, out=arena.like(tile)), torch.abs(kept, out=arena.like(kept))
        choose(larger(new, old, arena), tile, kept, out=kept)

    def result(self, slots: Slots, arena: Arena) -> Tensor:
        return slots["kept"]

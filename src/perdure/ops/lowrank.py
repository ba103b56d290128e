"""A module's update, low rank as long as that is smaller than dense.

Legend: O output features, I input features, K rank (of one adapter, or of several stacked).
A `Delta` is a `LowRank` or the dense tensor [O, I]; an `Update` maps module names to deltas. All functions are pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LowRank:
    """`delta_OI = B_OK @ A_KI`, every scaling inside `B`; same dtype and device."""

    A: Tensor
    B: Tensor

    def __post_init__(self) -> None:
        if self.A.ndim != 2 or self.B.ndim != 2 or self.A.shape[0] != self.B.shape[1]:
            raise ValueError(f"B @ A needs [O, K] @ [K, I], got {tuple(self.B.shape)} and {tuple(self.A.shape)}")

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I) of the dense matrix."""
        return self.B.shape[0], self.A.shape[1]

    @property
    def rank(self) -> int:
        """K, the number of stacked directions (an upper bound on the matrix rank)."""
        return self.A.shape[0]

    def to(self, device: torch.device) -> LowRank:
        """The update on `device`."""
        return LowRank(self.A.to(device), self.B.to(device))


Delta = LowRank | Tensor
Update = Mapping[str, Delta]


def dense(delta: Delta) -> Tensor:
    """The [O, I] matrix."""
    return delta.B @ delta.A if isinstance(delta, LowRank) else delta


def scale(delta: Delta, factor: float) -> Delta:
    """`factor * delta`."""
    return LowRank(delta.A, delta.B * factor) if isinstance(delta, LowRank) else delta * factor


def add(left: Delta, right: Delta) -> Delta:
    """`left + right`: stacked factors while they are smaller than the dense matrix, else dense."""
    if isinstance(left, LowRank) and isinstance(right, LowRank):
        out_features, in_features = left.shape
        if (left.rank + right.rank) * (out_features + in_features) <= out_features * in_features:
            return LowRank(torch.cat([left.A, right.A]), torch.cat([left.B, right.B], dim=1))
    return dense(left) + dense(right)


def add_updates(left: Update, right: Update) -> dict[str, Delta]:
    """Module by module `left + right`; a module missing on one side counts as zero."""
    both = {name: add(left[name], right[name]) for name in left if name in right}
    return {**left, **right, **both}

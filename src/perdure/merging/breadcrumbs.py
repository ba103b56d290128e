"""Model Breadcrumbs: drop an update's outliers as well as its small entries (Davari & Belilovsky, arXiv 2312.06795).

Symbols: n the entries of a module; density the share kept, gamma the share of outliers dropped above it.

    |dW| sorted, largest first:   gamma n dropped | density n kept | the rest dropped

then a weighted sum (the paper), or the election of TIES (mergekit's breadcrumbs_ties).
Settings: density .9 and gamma .01, mergekit's advice; the paper's beta and gamma are the shares below and above.
Deviations: entries equal to the smallest one kept are kept too, those equal to the smallest outlier dropped; matters at exact
ties only. Where density and gamma exceed 1 together, fewer outliers are dropped, as in mergekit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from perdure.merging.fold import Transform
from perdure.ops.lowrank import Delta
from perdure.ops.magnitude import kth_magnitude


def bounds(delta: Delta, density: float, gamma: float) -> tuple[float, float]:
    """(low, high): entries with low <= |entry| < high are kept."""
    total = math.prod(delta.shape)
    keep = max(1, int(density * total))
    outliers = min(int(gamma * total), total - keep)
    high = kth_magnitude([delta], outliers) if outliers else math.inf
    return kth_magnitude([delta], outliers + keep), high


def between(bounds: Mapping[str, tuple[float, float]]) -> Transform:
    """Entries outside their module's bounds become 0."""

    def apply(module: str, _first_row: int, tile: Tensor) -> Tensor:
        low, high = (torch.tensor(bound, dtype=tile.dtype) for bound in bounds[module])
        magnitudes = tile.abs()
        return tile.mul_((magnitudes >= low) & (magnitudes < high))

    return apply

"""Whether a module's update holds finite numbers only: what is derived from finite factors can overflow.

Legend: O output features, I input features, K rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from perdure.ops.lowrank import Delta, LowRank
from perdure.ops.parallel import over_rows
from perdure.ops.tiling import Arena, tile, working_dtype


def finite(delta: Delta) -> bool:
    """Whether the matrix [O, I] has neither NaN nor Inf in its working dtype; of factors also their product.

    No entry of B A, nor a partial sum of one, exceeds the longest row of B times the longest column of A. Only where that
    bound is out of range is the product itself looked at, in tiles.
    """
    if not isinstance(delta, LowRank):
        return all_finite(delta)
    if not (all_finite(delta.A) and all_finite(delta.B)):
        return False
    if 0 in (*delta.shape, delta.rank):
        return True
    dtype = working_dtype(delta)
    bound = float(delta.B.to(dtype).norm(dim=1).max()) * float(delta.A.to(dtype).norm(dim=0).max())
    return bound < torch.finfo(dtype).max / 2 or _product_is_finite(delta)


def all_finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or Inf; in one pass, without temporaries."""
    if tensor.numel() == 0 or not tensor.dtype.is_floating_point:
        return True
    if tensor.itemsize == 1:
        tensor = tensor.float()  # torch compares no 8-bit floats
    least, largest = tensor.aminmax()  # NaN if any entry is
    return bool(least.isfinite() & largest.isfinite())


def _product_is_finite(delta: LowRank) -> bool:
    found: list[bool] = []

    def look(start: int, stop: int, arena: Arena) -> None:
        found.append(all_finite(tile(delta, start, stop, arena)))

    over_rows(delta.shape, look)
    return all(found)

"""Row ranges whose tiles stay in a processor's cache, and tiles of updates in fp32 whatever they are stored in.

Legend: O output features, I input features, N rows of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from perdure.ops.lowrank import Delta, LowRank, tiles

TILE_ELEMENTS = 1 << 18
"""Positions of a tile when nothing else is asked for: a float32 tile of 1 MB."""


def row_tiles(shape: tuple[int, int], elements: int = TILE_ELEMENTS) -> Iterator[tuple[int, int]]:
    """Row ranges (start, stop) that cover `shape` [O, I] in tiles of about `elements` positions."""
    return tiles(shape[0], max(1, elements // max(1, shape[1])))


def tile(delta: Delta, start: int, stop: int) -> Tensor:
    """Rows `start:stop` as a fresh tensor [N, I], fp32 (float64 for a float64 update), that may be written to."""
    if isinstance(delta, LowRank):
        wide = torch.promote_types(delta.A.dtype, torch.float32)
        return delta.B[start:stop].to(wide) @ delta.A.to(wide)
    return delta[start:stop].to(torch.promote_types(delta.dtype, torch.float32), copy=True)


def widened(delta: Delta) -> Delta:
    """The update in fp32 at least, so that cutting tiles from it converts nothing again."""
    if isinstance(delta, LowRank):
        wide = torch.promote_types(delta.A.dtype, torch.float32)
        return LowRank(delta.A.to(wide), delta.B.to(wide))
    return delta.to(torch.promote_types(delta.dtype, torch.float32))


def entries(delta: Delta, rows_N: Tensor, columns_N: Tensor) -> Tensor:
    """The entries [N] at the given positions, without the rest of the matrix."""
    if isinstance(delta, LowRank):
        return (delta.B[rows_N].float() * delta.A.mT[columns_N].float()).sum(dim=1)
    return delta[rows_N, columns_N].float()

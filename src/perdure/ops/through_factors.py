"""Gradients of A and B of a penalty that acts position by position on the update, tile by tile: no dense [O, I] gradient.

Legend: O output features, I input features, R adapter rank, N rows of a tile. W effective update [O, I], G = dL/dW [O, I].

    L = sum_ij l_ij(W_ij),   G_ij = l_ij'(W_ij),   gA = s B^T G,   gB = s G A^T

A penalty is a kernel: from rows of W to its sum over them and to these rows of G.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from perdure.ops.factors import Factors
from perdure.ops.lowrank import LowRank
from perdure.ops.tiling import row_tiles

Kernel = Callable[[LowRank, slice, tuple[Tensor, ...]], tuple[Tensor, Tensor]]
"""(rows of W as factors, which rows they are, four tiles of scratch [N, I]) -> (sum over the rows, G of these rows).
G may be one of the scratch tiles."""

SCRATCH_TILES = 4


class Scratch:
    """Memory for tiles, allocated once and reused for every tile and module."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def take(self, rows: int, columns: int, like: Tensor) -> tuple[Tensor, ...]:
        """Four tiles [rows, columns] with undefined content, of `like`'s dtype and device."""
        size = SCRATCH_TILES * rows * columns
        if self._memory.numel() < size or self._memory.dtype != like.dtype or self._memory.device != like.device:
            self._memory = torch.empty(size, dtype=like.dtype, device=like.device)
        return self._memory[:size].view(SCRATCH_TILES, rows, columns).unbind(0)


def through_factors(
    kernel: Kernel, factors: Factors, tile: int | None = None, scratch: Scratch | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel's sum over all rows (scalar, float64), and the gradients of A [R, I] and B [O, R].

    `factors` are detached, in float32 or float64; `tile` is the number of rows per tile, by default chosen by width.
    """
    delta, A, B = factors.update(), factors.A, factors.B
    ranges = list(row_tiles(factors.shape, tile))
    memory = (scratch or Scratch()).take(ranges[0][1], factors.shape[1], A)
    value = torch.zeros((), dtype=torch.float64, device=A.device)
    grad_A, grad_B_RO = torch.zeros_like(A), A.new_empty(B.mT.shape)  # A G^T is faster than G A^T on CPUs
    for start, stop in ranges:
        here = tuple(tensor[: stop - start] for tensor in memory)
        part, G = kernel(LowRank(delta.A, delta.B[start:stop]), slice(start, stop), here)
        value += part
        grad_A.addmm_(B[start:stop].mT, G)
        torch.mm(A, G.mT, out=grad_B_RO[:, start:stop])
    return value, grad_A.mul_(factors.scaling), grad_B_RO.mT.mul(factors.scaling).contiguous()

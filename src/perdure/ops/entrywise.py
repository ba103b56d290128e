"""Penalties on the entries of the update: l1, and squares with a weight for each position.

Legend: O output features, I input features, R adapter rank. W effective update [O, I].

    l1                sum |W|              G = sign(W)
    weighted squares  sum Omega W^2        G = 2 Omega W
"""

from __future__ import annotations

import torch
from torch import Tensor

from perdure.ops.factors import Factors
from perdure.ops.frobenius import squared_norm_and_grads
from perdure.ops.lowrank import LowRank
from perdure.ops.precision import ValueAndGrads
from perdure.ops.through_factors import Scratch, through_factors
from perdure.ops.tiling import row_tiles


def l1_norm(factors: Factors, tile: int | None = None, scratch: Scratch | None = None) -> ValueAndGrads:
    """sum |W| and its sub-gradient (0 where W is 0), on row tiles."""

    def kernel(rows: LowRank, _: slice, memory: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        W = torch.mm(rows.B, rows.A, out=memory[0])
        return torch.linalg.vector_norm(W, 1), W.sign_()

    return through_factors(kernel, factors, tile, scratch)


def weighted_squares(
    factors: Factors, weights_OI: Tensor, tile: int | None = None, scratch: Scratch | None = None
) -> ValueAndGrads:
    """sum Omega W^2 and its gradient, on row tiles; `weights_OI` is Omega, contiguous."""

    def kernel(rows: LowRank, at: slice, memory: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        W = torch.mm(rows.B, rows.A, out=memory[0])
        G = torch.mul(W, weights_OI[at], out=memory[1])
        return torch.dot(W.view(-1), G.view(-1)), G.mul_(2)

    return through_factors(kernel, factors, tile, scratch)


def small_share(factors: Factors, threshold: float) -> float:
    """Share of positions where |W| is at most `threshold` times W's own root mean square; 1 for an update of zero.

    Relative to the update's size, so it tells sparse from small; threshold 0 gives the share of exact zeros. For
    comparison: a Gaussian W has 8.0 % of its entries below 0.1.
    """
    count = factors.shape[0] * factors.shape[1]
    limit = threshold * float(squared_norm_and_grads(factors)[0] / count) ** 0.5
    tiles = (factors.rows(start, stop).abs_() for start, stop in row_tiles(factors.shape))
    return sum(int(torch.count_nonzero(tile <= limit)) for tile in tiles) / count

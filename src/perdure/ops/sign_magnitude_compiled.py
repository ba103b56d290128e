"""The elementwise tile kernel of `sign_magnitude`, product of the factors included, fused into one pass by torch.compile.

Legend: N rows of a tile, I input features, K stacked rank, W effective update, S = tanh(alpha H).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from perdure.ops.lowrank import LowRank
from perdure.ops.through_factors import Kernel

UNROLL = 16
"""Up to this rank the product is written out as outer products, which the compiler fuses: W never leaves the registers."""


def _product(A_KI: Tensor, B_NK: Tensor) -> Tensor:
    if A_KI.shape[0] > UNROLL:
        return B_NK @ A_KI
    W = B_NK[:, :1] * A_KI[:1]
    for k in range(1, A_KI.shape[0]):
        W = W + B_NK[:, k : k + 1] * A_KI[k : k + 1]
    return W


def _fused(A_KI: Tensor, B_NK: Tensor, S: Tensor, alpha: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """sum W^2 (1 - T S), and G / 2 written to `out`."""
    W = _product(A_KI, B_NK)
    p = torch.sigmoid(2 * alpha * W)
    kept = W * (1 - (2 * p - 1) * S)
    out.copy_(kept - 2 * alpha * W * W * S * p * (1 - p))
    return (W * kept).sum(), out


@cache
def _compiled() -> Callable[..., tuple[Tensor, Tensor]]:
    """Compiled for the first shape it runs on, and again for all shapes at the second one."""
    return torch.compile(_fused, fullgraph=True)


def compiled_tile(signs_OI: Tensor, alpha: float) -> Kernel:
    """`sign_magnitude.elementwise_tile`, compiled."""
    sharpness = torch.tensor(alpha, dtype=signs_OI.dtype)

    def kernel(rows: LowRank, at: slice, scratch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        return _compiled()(rows.A, rows.B, signs_OI[at], sharpness, scratch[0])

    return kernel

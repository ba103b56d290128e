"""The elementwise tile kernel of `sign_magnitude`, fused into one pass by torch.compile.

Legend: N rows of a tile, I input features, W effective update, S = tanh(alpha H).
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from perdure.ops.sign_magnitude import Kernel


def _fused(W: Tensor, S: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """sum W^2 (1 - T S), and G / 2 in place of W; flat tensors."""
    p = torch.sigmoid(2 * alpha * W)
    kept = W * (1 - (2 * p - 1) * S)
    value = (W * kept).sum()
    W.copy_(kept - 2 * alpha * W * W * S * p * (1 - p))
    return value, W


@cache
def compiled_tile() -> Kernel:
    """The kernel; compiled when it is first run, once for all tile shapes."""
    fused = torch.compile(_fused, dynamic=True, fullgraph=True)

    def kernel(W: Tensor, S: Tensor, alpha: float, scratch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        del scratch  # the compiled kernel keeps its intermediates in registers
        value, G = fused(W.view(-1), S.view(-1), torch.tensor(alpha, dtype=W.dtype))
        return value, G.view_as(W)

    return kernel

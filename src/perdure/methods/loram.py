"""LoRAM: start both factors as fixed sine bases at the magnitude of the weight (Zhang et al., arXiv 2507.06558).

    loram = loram (Loram) + sum, lora.alpha 2

    D_m[k, i] = sqrt(2 / (m + 1)) sin((i + 1)(k + 1) pi / (m + 1))     the type-I discrete sine basis of R^m, orthonormal
    A = D_I[:r],  B = D_O[:r]^T
    rho = log_min(O, I)(r)                                             the logarithmic magnification
    A, B <- (rho Var(W) / Var(B A))^(1/4) A, B                         so that Var(B A) = rho Var(W)
    W <- W - s B A                                                     the function is unchanged

Var is the unbiased variance over all entries. Needs no data and no gradient.
Source: the form in SLICE's released code (the authors' own was not found); settings: none.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from perdure.errors import ConfigError, TrainingError
from perdure.methods.contract.context import Context, Need
from perdure.methods.contract.parts import Init, Start
from perdure.methods.lora_ga import offset_start


def sine_basis(count: int, size: int) -> Tensor:
    """The first `count` orthonormal sine vectors of length `size`, as rows [count, size] fp32 (computed in fp64)."""
    k = torch.arange(1, count + 1, dtype=torch.float64)[:, None]
    i = torch.arange(1, size + 1, dtype=torch.float64)[None, :]
    return (math.sqrt(2 / (size + 1)) * torch.sin(i * k * math.pi / (size + 1))).float()


def product_variance(A: Tensor, B: Tensor) -> float:
    """Unbiased variance of all entries of B A, from r x r matrices only; `A` [R, I], `B` [O, R]."""
    A, B = A.double(), B.double()
    entries = B.shape[0] * A.shape[1]
    square_sum = float(((B.mT @ B) * (A @ A.mT)).sum())
    plain_sum = float(B.sum(dim=0) @ A.sum(dim=1))
    return (square_sum - plain_sum**2 / entries) / (entries - 1)


def rescaled(A: Tensor, B: Tensor, weight_OI: Tensor, module: str) -> tuple[Tensor, Tensor]:
    """Both factors times (rho Var(W) / Var(B A))^(1/4), rho = log r / log min(O, I): then Var(B A) = rho Var(W).

    Raises:
        ConfigError: rank 1: rho and both factors would be 0 and never train.
        TrainingError: B A is constant, so no factor gives it a variance.
    """
    rank, smaller = A.shape[0], min(weight_OI.shape)
    if rank < 2:
        raise ConfigError(
            "lora.rank: an init scaled by rho = log(r) / log(min(O, I)) starts at 0 for rank 1; use 2 or more."
        )
    variance = product_variance(A, B)
    if not variance > 0:
        raise TrainingError(f"The adapter of '{module}' cannot be scaled to its weight: B A has no variance.")
    rho = math.log(rank) / math.log(smaller)
    factor = (rho * float(weight_OI.float().var()) / variance) ** 0.25
    return A * factor, B * factor


class Loram(Init):
    """The adapter starts from fixed sine bases at the weight's magnitude; the base is offset."""

    needs: ClassVar[frozenset[Need]] = frozenset({Need.DENSE_BASE, Need.RANK_OF_TWO})
    offsets: ClassVar[bool] = True

    def start(self, ctx: Context) -> Start:
        """Sine rows for both sides, rescaled to the current weight."""
        starts: dict[str, tuple[Tensor, Tensor]] = {}
        for module, pair in ctx.factors.items():
            (out_features, in_features), rank, weight = pair.shape, pair.A.shape[0], ctx.weight(module)
            A, B = sine_basis(rank, in_features), sine_basis(rank, out_features).mT
            starts[module] = rescaled(A.to(weight.device), B.to(weight.device), weight, module)
        return offset_start(starts, ctx.factors)

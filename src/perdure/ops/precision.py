"""Penalties are computed in fp32 or float64 whatever the adapter's dtype; gradients are returned in that dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from perdure.ops.factors import Factors

ValueAndGrads = tuple[Tensor, Tensor, Tensor]
"""A penalty's value (scalar) and its gradients of A [R, I] and B [O, R]."""


def precise(factors: Factors) -> Factors:
    """The same factors, detached, in fp32 (or float64 if they are); without a copy if nothing changes."""
    dtype = torch.promote_types(factors.A.dtype, torch.float32)
    A0, B0 = (None if tensor is None else tensor.detach().to(dtype) for tensor in (factors.A0, factors.B0))
    return Factors(factors.A.detach().to(dtype), factors.B.detach().to(dtype), factors.scaling, A0, B0)


def divided(penalty: ValueAndGrads, count: float, factors: Factors) -> ValueAndGrads:
    """A penalty divided by `count`, its gradients in the dtypes of `factors`."""
    value, grad_A, grad_B = penalty
    return value / count, (grad_A / count).to(factors.A.dtype), (grad_B / count).to(factors.B.dtype)


def no_penalty(factors: Factors) -> ValueAndGrads:
    """0, with zero gradients: a penalty with nothing to compare to."""
    zero = torch.zeros((), dtype=torch.float64, device=factors.A.device)
    return zero, torch.zeros_like(factors.A), torch.zeros_like(factors.B)

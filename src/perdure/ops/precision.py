"""Penalties are computed in fp32 or better, whatever the adapter is stored in; gradients are given back as it is stored."""

from __future__ import annotations

import torch
from torch import Tensor

from perdure.ops.factors import Factors

ValueAndGrads = tuple[Tensor, Tensor, Tensor]
"""A penalty's value (scalar) and its gradients of A [R, I] and B [O, R]."""


def precise(factors: Factors) -> Factors:
    """The same factors, detached, in fp32 (in float64 if they are); no copy where nothing changes."""
    dtype = torch.promote_types(factors.A.dtype, torch.float32)
    tensors = (factors.A, factors.B, factors.A0, factors.B0)
    A, B, A0, B0 = (None if tensor is None else tensor.detach().to(dtype) for tensor in tensors)
    assert A is not None
    assert B is not None
    return Factors(A, B, factors.scaling, A0, B0)


def divided(found: ValueAndGrads, count: float, factors: Factors) -> ValueAndGrads:
    """A penalty over `count`, its gradients in the dtypes of `factors`."""
    value, grad_A, grad_B = found
    return value / count, (grad_A / count).to(factors.A.dtype), (grad_B / count).to(factors.B.dtype)


def no_penalty(factors: Factors) -> ValueAndGrads:
    """A penalty that has nothing to compare with: 0, and no gradient."""
    zero = torch.zeros((), dtype=torch.float64, device=factors.A.device)
    return zero, torch.zeros_like(factors.A), torch.zeros_like(factors.B)

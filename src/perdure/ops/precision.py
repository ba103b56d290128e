"""Penalties are computed in fp32 or better, whatever the adapter is stored in."""

from __future__ import annotations

import torch

from perdure.ops.factors import Factors


def precise(factors: Factors) -> Factors:
    """The same factors, detached, in fp32 (in float64 if they are); no copy where nothing changes."""
    dtype = torch.promote_types(factors.A.dtype, torch.float32)
    tensors = (factors.A, factors.B, factors.A0, factors.B0)
    A, B, A0, B0 = (None if tensor is None else tensor.detach().to(dtype) for tensor in tensors)
    assert A is not None
    assert B is not None
    return Factors(A, B, factors.scaling, A0, B0)

"""bf16 products on CPUs without bf16 instructions: operands and results are rounded to bf16, the product runs in fp32.

torch's bf16 kernels multiply number by number there, some ten times slower than in fp32 (benchmarks/bf16_step). A bf16
product with sums in fp32 is, by definition,

    Y = bf16( fp32(bf16(X)) @ fp32(bf16(W)) )

and that is computed here, forward and backward, with the fast fp32 kernels: the results differ from native bf16 only in the
order of sums. Inside attention as one kernel (SDPA) the probabilities are not rounded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

PRODUCTS: frozenset[Callable[..., Any]] = frozenset(
    {
        functional.linear,
        functional.scaled_dot_product_attention,
        functional.conv2d,
        torch.conv2d,
        *(getattr(torch, name) for name in ("matmul", "mm", "bmm", "addmm", "baddbmm")),
        *(getattr(Tensor, name) for name in ("matmul", "__matmul__", "mm", "bmm", "addmm", "baddbmm")),
    }
)
"""What autocast computes in bf16 and the models here use; anything else is left to torch: slower, but correct."""


@functools.cache
def has_fast_bf16() -> bool:
    """Whether torch has fast bf16 kernels for this CPU; a torch built without oneDNN cannot be asked."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class RoundedProducts(TorchFunctionMode):
    """Under autocast to bf16 on a CPU, compute products as in the module's docstring."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in PRODUCTS or not torch.is_autocast_enabled("cpu"):
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            args, kwargs = tree_map_only(Tensor, _rounded, (args, kwargs))
            product = func(*args, **kwargs)
        return product.to(torch.bfloat16) if product.dtype == torch.float32 else product


@contextmanager
def rounded_autocast() -> Iterator[None]:
    """torch's autocast to bf16 on a CPU, with `RoundedProducts`."""
    with torch.autocast("cpu", torch.bfloat16), RoundedProducts():
        yield


def cpu_autocast() -> AbstractContextManager[Any]:
    """Compute products on the CPU in bf16, by the faster of the two ways."""
    return torch.autocast("cpu", torch.bfloat16) if has_fast_bf16() else rounded_autocast()


def recomputation() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """For activation checkpointing: the contexts of a layer's first computation and of its recomputation in backward.

    torch restores autocast for the second, but no other mode; without it bf16 products would differ.
    """
    return nullcontext(), nullcontext() if has_fast_bf16() else RoundedProducts()


def _rounded(tensor: Tensor) -> Tensor:
    """The values rounded to bf16, in fp32; masks, indices and float64 unchanged, like under autocast."""
    rounds = tensor.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return tensor.to(torch.bfloat16).float() if rounds else tensor

"""Truncated SVD by random projection and subspace iteration (Halko, Martinsson and Tropp, arXiv 0909.4061, alg. 4.4, 5.1).

Legend: O output features, I input features, Q sketch width, R kept rank.
"""

from __future__ import annotations

import torch
from torch import Tensor


def randomized_svd(
    matrix_OI: Tensor, rank: int, generator: torch.Generator, *, width: int | None = None, iterations: int = 4
) -> tuple[Tensor, Tensor, Tensor]:
    """The leading singular triplets: U [O, R], S [R] descending, Vh [R, I] with R = min(rank, O, I).

    Computed in the matrix's dtype (fp32 or wider). The same generator state gives the same bits; signs are fixed, so equal
    inputs give equal factors on every machine up to rounding.

    Args:
        width: sketch width Q; default min(4 rank, O, I), as in LoRA-GA and SLICE.
        iterations: subspace iterations; each reads the matrix twice.
    """
    rank = min(rank, *matrix_OI.shape)
    width = min(max(width or 4 * rank, rank), *matrix_OI.shape)
    shape = (matrix_OI.shape[1], width)
    omega_IQ = torch.randn(shape, generator=generator, dtype=matrix_OI.dtype, device=generator.device)
    basis_OQ = torch.linalg.qr(matrix_OI @ omega_IQ.to(matrix_OI.device)).Q
    for _ in range(iterations):
        basis_IQ = torch.linalg.qr(matrix_OI.mT @ basis_OQ).Q
        basis_OQ = torch.linalg.qr(matrix_OI @ basis_IQ).Q
    U_QQ, S, Vh = torch.linalg.svd(basis_OQ.mT @ matrix_OI, full_matrices=False)
    U, Vh = fixed_signs(basis_OQ @ U_QQ, Vh)
    return U[:, :rank], S[:rank], Vh[:rank]


def fixed_signs(U: Tensor, Vh: Tensor) -> tuple[Tensor, Tensor]:
    """The same triplets with the largest entry of every left vector positive: U [O, Q], Vh [Q, I]."""
    largest = U.gather(0, U.abs().argmax(dim=0, keepdim=True))
    signs = torch.where(largest < 0, -1.0, 1.0).to(U.dtype)
    return U * signs, Vh * signs.mT

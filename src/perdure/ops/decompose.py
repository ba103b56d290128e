"""Exact spectra of updates through their factors: singular values, best approximation of a rank, inner products.

Legend: O output features, I input features, K stacked rank, S singular directions kept.

A stacked update delta = B_OK A_KI has at most K singular values. With the thin QR decompositions B = Q_B R_B and
A^T = Q_A R_A, delta = Q_B (R_B R_A^T) Q_A^T, so the SVD of the K x K core R_B R_A^T, rotated by Q_B and Q_A, is the SVD
of delta: exact, in O((O + I) K^2) instead of O(O I min(O, I)), without the [O, I] matrix. It runs in float64 (the factors
are thin), so rounding does not pass for a direction, nor hide one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from perdure.ops.lowrank import Delta, LowRank, dense
from perdure.ops.randomized_svd import randomized_svd
from perdure.ops.tiling import row_tiles, working_dtype

LARGE = 1024
"""Dense updates whose smaller side exceeds this are truncated by a randomised SVD, if the rank is small in comparison."""


@dataclass(frozen=True, eq=False)
class SVD:
    """delta = U diag(s) V^T: `U` [O, S], `s` [S] descending, `V` [I, S]; float64."""

    U: Tensor
    s: Tensor
    V: Tensor


def svd(delta: Delta) -> SVD:
    """The thin SVD; through the factors, if any, unless their rank is that of the matrix."""
    if not isinstance(delta, LowRank) or delta.rank >= min(delta.shape):
        # factors are multiplied in float64, or rounding would look like more directions
        full = delta.B.double() @ delta.A.double() if isinstance(delta, LowRank) else delta.double()
        U, s, Vt = torch.linalg.svd(full, full_matrices=False)
        return SVD(U, s, Vt.mT)
    Q_B, R_B = torch.linalg.qr(delta.B.double())
    Q_A, R_A = torch.linalg.qr(delta.A.mT.double())
    U, s, Vt = torch.linalg.svd(R_B @ R_A.mT)
    return SVD(Q_B @ U, s, Q_A @ Vt.mT)


def numerical_rank(s: Tensor, shape: tuple[int, int], eps: float = torch.finfo(torch.float64).eps) -> int:
    """How many singular values `s` (descending) exceed rounding: s > eps max(O, I) s_1."""
    return int((s > eps * max(shape) * s[0]).sum()) if s.numel() else 0


def rounding(delta: Delta) -> float:
    """The eps for `numerical_rank`: float64's for factors, which `svd` multiplies in float64, else the working dtype's."""
    return torch.finfo(torch.float64 if isinstance(delta, LowRank) else working_dtype(delta)).eps


def balanced(parts: SVD, rank: int, dtype: torch.dtype) -> LowRank:
    """The first `rank` directions as factors of equal norm, A = sqrt(s) V^T and B = U sqrt(s), zero-padded to `rank`."""
    kept = min(rank, parts.s.numel())
    root = parts.s[:kept].sqrt()
    A = torch.zeros(rank, parts.V.shape[0], dtype=dtype, device=parts.s.device)
    B = torch.zeros(parts.U.shape[0], rank, dtype=dtype, device=parts.s.device)
    A[:kept] = (root[:, None] * parts.V[:, :kept].mT).to(dtype)
    B[:, :kept] = (parts.U[:, :kept] * root).to(dtype)
    return LowRank(A, B)


def compress(delta: Delta) -> LowRank:
    """The same update with no more directions than it has (at least one); in fp32, or float64 for a float64 update.

    For a dense update, directions within the rounding of its dtype do not count.
    """
    parts = svd(delta)
    rank = numerical_rank(parts.s, (delta.shape[0], delta.shape[1]), rounding(delta))
    return balanced(parts, max(rank, 1), working_dtype(delta))


def truncate(delta: Delta, rank: int) -> tuple[LowRank, float]:
    """The best approximation with `rank` directions, and the share of the energy it keeps.

    A stacked update is decomposed through its factors, a dense one by a dense SVD: both exact. A dense SVD takes 1.3 s at
    2048 x 2048, so a dense update larger than `LARGE` is approximated by a randomised SVD with a fixed seed. The energy is
    always that of the approximation returned.

    Args:
        rank: 1 or more; above the update's rank the factors are zero-padded, so that all modules of an adapter can share
            one rank.

    Returns:
        (factors of exactly `rank` directions, ||kept||_F^2 / ||delta||_F^2 in [0, 1]; 1 for a zero update).
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    if isinstance(delta, LowRank) or min(delta.shape) <= LARGE or 8 * rank > min(delta.shape):
        parts = svd(delta)
    else:
        # U diag(s) V^T is Q Q^T delta cut to `rank` for an orthonormal Q, so sum s^2 is exactly the energy it keeps
        U, s, Vt = randomized_svd(delta.to(working_dtype(delta)), rank, torch.Generator().manual_seed(0))
        parts = SVD(U.double(), s.double(), Vt.mT.double())
    total = float(squared_norm(delta))
    kept = float(parts.s[:rank].square().sum())
    return balanced(parts, rank, working_dtype(delta)), min(kept / total, 1.0) if total > 0 else 1.0


def inner(left: Delta, right: Delta) -> Tensor:
    """Frobenius inner product <left, right>, a float64 scalar; K x K work for two stacked updates.

    <B1 A1, B2 A2> = sum of (B1^T B2) * (A1 A2^T), elementwise.
    """
    if isinstance(left, LowRank) and isinstance(right, LowRank):
        return ((left.B.mT.double() @ right.B.double()) * (left.A.double() @ right.A.mT.double())).sum()
    if isinstance(right, LowRank):
        left, right = right, left
    if isinstance(left, LowRank):  # <B A, D> = sum of A * (B^T D): one thin product, no dense B A
        return (left.A.double() * (left.B.mT @ dense(right)).double()).sum()
    right, total = dense(right), torch.zeros((), dtype=torch.float64)
    for i, j in row_tiles((left.shape[0], left.shape[1])):
        total = total + (left[i:j].double() * right[i:j].double()).sum()
    return total


def squared_norm(delta: Delta) -> Tensor:
    """||delta||_F^2, a float64 scalar."""
    return inner(delta, delta)


def effective_rank(s: Tensor) -> float:
    """exp of the entropy of the singular values' shares s_i / sum s (Roy & Vetterli, 2007); 0 for a zero update.

    Between 1 (one direction carries everything) and the rank (all directions weigh the same).
    """
    total = s.sum()
    if total <= 0:
        return 0.0
    shares = s / total
    return float(torch.exp(-torch.xlogy(shares, shares).sum()))

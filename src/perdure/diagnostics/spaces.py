"""What two updates share as matrices: directions, energies, angles. Exact, at the cost of the factors.

Legend: R, S ranks of two updates, O output features, I input features. dW = B A with the scaling inside B.

    cosine        <dW_1, dW_2> / (||dW_1||_F ||dW_2||_F)
    OO            ||A_1 A_2^T||_F^2 (O-LoRA's orthogonality, arXiv 2310.14152; depends on the scaling of the factorisation)
    AWOM          ||dW_2^T dW_1||_F^2 (N-LoRA, arXiv 2410.10179)
    AWOM, norm.   AWOM / (||dW_1||_F^2 ||dW_2||_F^2), between 0 (outputs orthogonal) and 1
    angles        principal angles between the row spaces (inputs both read) and the column spaces (outputs both write)
    overlap       mean of the squared cosines of these angles over the smaller rank, between 0 and 1
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from perdure.ops.decompose import SVD, effective_rank, inner, numerical_rank, rounding, svd
from perdure.ops.lowrank import Delta, LowRank, dense


@dataclass(frozen=True)
class Sizes:
    """One update at a module: number of entries, ||dW||_F^2, sum of the singular values, number of directions, and exp of the
    entropy of the singular values' shares (0 for a zero update)."""

    count: int
    squared: float
    nuclear_norm: float
    rank: int
    effective_rank: float


@dataclass(frozen=True, eq=False)
class Space:
    """One update at a module, its SVD cut to its nonzero directions, and its sizes."""

    delta: Delta
    parts: SVD
    sizes: Sizes


def space(delta: Delta) -> Space:
    """The directions and sizes of an update; in a dense one, directions within the rounding of its dtype do not count."""
    parts = svd(delta)
    rank = numerical_rank(parts.s, (delta.shape[0], delta.shape[1]), rounding(delta))
    s = parts.s[:rank]
    sizes = Sizes(math.prod(delta.shape), float(parts.s.square().sum()), float(s.sum()), s.numel(), effective_rank(s))
    return Space(delta, SVD(parts.U[:, :rank], s, parts.V[:, :rank]), sizes)


@dataclass(frozen=True)
class Between:
    """Two updates at one module; angles in degrees, None where an update is zero or (OO) dense."""

    inner: float
    oo: float | None
    awom: float
    smallest_input_angle: float | None
    smallest_output_angle: float | None
    input_overlap: float | None
    output_overlap: float | None


def between(one: Space, two: Space) -> Between:
    """Everything this file defines for two updates at one module."""
    inputs, outputs = cosines(one.parts.V, two.parts.V), cosines(one.parts.U, two.parts.U)
    return Between(
        inner=float(inner(one.delta, two.delta)),
        oo=factor_overlap(one.delta, two.delta),
        awom=float(output_overlap_energy(one.delta, two.delta)),
        smallest_input_angle=_smallest_angle(inputs),
        smallest_output_angle=_smallest_angle(outputs),
        input_overlap=float(inputs.square().mean()) if inputs.numel() else None,
        output_overlap=float(outputs.square().mean()) if outputs.numel() else None,
    )


def cosines(basis_1: Tensor, basis_2: Tensor) -> Tensor:
    """Cosines [min(R, S)], descending, of the principal angles between spaces with orthonormal bases [n, R] and [n, S]."""
    if not basis_1.shape[1] or not basis_2.shape[1]:
        return basis_1.new_zeros(0)
    return torch.linalg.svdvals(basis_1.mT @ basis_2).clamp(max=1.0)


def factor_overlap(one: Delta, two: Delta) -> float | None:
    """OO = ||A_1 A_2^T||_F^2 of the factors as given; None if an update is dense."""
    if not isinstance(one, LowRank) or not isinstance(two, LowRank):
        return None
    return float((one.A.double() @ two.A.mT.double()).square().sum())


def output_overlap_energy(one: Delta, two: Delta) -> Tensor:
    """AWOM = ||dW_2^T dW_1||_F^2, a float64 scalar; for two stacked updates from R x S matrices.

    With M = B_2^T B_1:  ||A_2^T M A_1||_F^2 = <M (A_1 A_1^T), (A_2 A_2^T) M>.
    """
    if isinstance(one, LowRank) and isinstance(two, LowRank):
        M = two.B.mT.double() @ one.B.double()
        gram_1, gram_2 = one.A.double() @ one.A.mT.double(), two.A.double() @ two.A.mT.double()
        return ((M @ gram_1) * (gram_2 @ M)).sum()
    return (dense(two).mT.double() @ dense(one).double()).square().sum()


def generalised_sparsity(l1_norm: float, frobenius: float, count: int) -> float | None:
    """||dW||_1 / (sqrt(m n) ||dW||_F): 1 if all entries are equal in size, .80 for Gaussian ones, towards 0 for few."""
    return l1_norm / (math.sqrt(count) * frobenius) if frobenius > 0 else None


def _smallest_angle(values: Tensor) -> float | None:
    return math.degrees(math.acos(min(1.0, float(values[0])))) if values.numel() else None

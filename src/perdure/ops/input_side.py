"""Penalties on the input side: overlap with old A, and drift of the outputs on old inputs.

Legend: O output features, I input features, R adapter rank, K stacked rank. dW effective update [O, I].

    overlap   sum_i ||A_i A^T||_F^2 = tr(A M A^T), M = sum_i A_i^T A_i                  gA = 2 A M
    drift     tr(F dW C dW^T) = E x^T dW^T F dW x over inputs x with C = E[x x^T]       gA = 2 s B^T F dW C,  gB = 2 s F dW C A^T
              F [O, O] weighs the outputs' directions; without it the identity: E ||dW x||^2
"""

from __future__ import annotations

import torch
from torch import Tensor

from perdure.ops.factors import Factors
from perdure.ops.low_rank_diagonal import LowRankDiagonal


def remembered(old: Tensor | None, new_RI: Tensor) -> Tensor:
    """What `overlap` needs of all old A: the stack [K, I] while K is at most I / 2, then M [I, I], which is cheaper.

    Time and memory are bounded for any number of tasks.
    """
    width = new_RI.shape[1]
    if old is not None and old.shape[0] == width:
        return old + (new_RI.mT @ new_RI).to(old)
    stacked = new_RI if old is None else torch.cat([old, new_RI.to(old)])
    return stacked if 2 * stacked.shape[0] <= width else stacked.mT @ stacked


def overlap(A_RI: Tensor, old: Tensor) -> tuple[Tensor, Tensor]:
    """sum_i ||A_i A^T||_F^2 (scalar) and its gradient of A [R, I]; `old` comes from `remembered`."""
    if old.shape[0] == old.shape[1]:
        read_RI = A_RI @ old
        return (read_RI * A_RI).sum(), 2 * read_RI
    shared_KR = old @ A_RI.mT
    return shared_KR.square().sum(), 2 * (shared_KR.mT @ old)


def absolute_overlap(A_RI: Tensor, old_KI: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of |A_i A^T| over the rows of all old A, and its sub-gradient of A [R, I]; cost grows with the stored rows."""
    shared_KR = old_KI @ A_RI.mT
    return torch.linalg.vector_norm(shared_KR, 1), shared_KR.sign().mT @ old_KI


def drift(
    factors: Factors, moment_II: Tensor | LowRankDiagonal, metric_OO: Tensor | LowRankDiagonal | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """tr(F dW C dW^T) (scalar, float64), and its gradients of A [R, I] and B [O, R]; never forms [O, I].

    The value is summed in float64, because products of an update's rank-one terms can be larger than their sum.
    """
    delta = factors.update()
    read_KI = delta.A @ moment_II
    weighed_OK = delta.B if metric_OO is None else metric_OO @ delta.B
    seen_KK, written_KK = read_KI.double() @ delta.A.double().mT, delta.B.double().mT @ weighed_OK.double()
    grad_A = 2 * factors.scaling * ((factors.B.mT @ weighed_OK) @ read_KI)
    grad_B = 2 * factors.scaling * (weighed_OK @ (read_KI @ factors.A.mT))
    return (written_KK * seen_KK.mT).sum(), grad_A, grad_B

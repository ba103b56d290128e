"""Penalties on the input side of the update: overlap with old A, and drift of the outputs on old inputs.

Legend: O output features, I input features, R adapter rank, K stacked rank or rows of a root. dW effective update [O, I].

    overlap   sum_i ||A_i A^T||_F^2 = ||S A^T||_F^2 with S^T S = sum_i A_i^T A_i        gA = 2 (S A^T)^T S
    drift     tr(dW C dW^T) = E ||dW x||^2 over inputs x with C = E[x x^T]              gA = 2 s B^T dW C,  gB = 2 s dW C A^T
"""

from __future__ import annotations

import torch
from torch import Tensor

from perdure.ops.factors import Factors


def grown_root(root_KI: Tensor | None, new_RI: Tensor) -> Tensor:
    """S' [K', I] with S'^T S' = S^T S + A^T A and K' at most I: stacked while that is smaller, else its R of a QR.

    A penalty that needs the A of all tasks only through sum_i A_i^T A_i thus costs at most what the [I, I] sum would.
    """
    stacked = new_RI if root_KI is None else torch.cat([root_KI, new_RI.to(root_KI)])
    return stacked if stacked.shape[0] <= stacked.shape[1] else torch.linalg.qr(stacked, mode="r").R


def overlap(A_RI: Tensor, root_KI: Tensor) -> tuple[Tensor, Tensor]:
    """||S A^T||_F^2 (scalar) and its gradient of A [R, I]."""
    shared_KR = root_KI @ A_RI.mT
    return shared_KR.square().sum(), 2 * (shared_KR.mT @ root_KI)


def absolute_overlap(A_RI: Tensor, old_KI: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of |A_i A^T| over the rows of all old A, and its sub-gradient of A [R, I]; cost grows with the rows kept."""
    shared_KR = old_KI @ A_RI.mT
    return torch.linalg.vector_norm(shared_KR, 1), shared_KR.sign().mT @ old_KI


def drift(factors: Factors, moment_II: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """tr(dW C dW^T) (scalar, float64), and its gradients of A [R, I] and B [O, R]; never forms [O, I].

    The value is summed in float64 because under an offset it is a small difference of large numbers.
    """
    delta = factors.update()
    read_KI = delta.A @ moment_II
    seen_KK, written_KK = read_KI.double() @ delta.A.double().mT, delta.B.double().mT @ delta.B.double()
    grad_A = 2 * factors.scaling * ((factors.B.mT @ delta.B) @ read_KI)
    grad_B = 2 * factors.scaling * (delta.B @ (read_KI @ factors.A.mT))
    return (written_KK * seen_KK.mT).sum(), grad_A, grad_B

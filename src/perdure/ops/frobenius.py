"""||dW||_F^2 of a low-rank update and its gradient, through R x R matrices only.

Legend: R adapter rank, K stacked rank (R, or 2R with an offset), O output features, I input features.
"""

from __future__ import annotations

from torch import Tensor

from perdure.ops.factors import Factors


def squared_norm_and_grads(factors: Factors) -> tuple[Tensor, Tensor, Tensor]:
    """||dW||_F^2 (scalar, float64) of the effective update, and its gradients of A [R, I] and B [O, R].

    With dW = B_OK A_KI:  ||dW||_F^2 = sum_kl (B^T B)_kl (A A^T)_kl,  gA = 2 s B^T dW,  gB = 2 s dW A^T.
    Costs O(K R (O + I)); no [O, I] matrix is formed. The value is summed in float64, because products of an update's
    rank-one terms can be larger than their sum.
    """
    delta = factors.update()
    stacked_A, stacked_B = delta.A.double(), delta.B.double()
    value = ((stacked_B.mT @ stacked_B) * (stacked_A @ stacked_A.mT)).sum()
    grad_A = 2 * factors.scaling * ((factors.B.mT @ delta.B) @ delta.A)
    grad_B = 2 * factors.scaling * (delta.B @ (delta.A @ factors.A.mT))
    return value, grad_A, grad_B

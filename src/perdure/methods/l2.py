"""L2: keep the task's update small. The ablation every sign or subspace penalty has to beat.

    l2 = kaiming + l2 (SquaredNorm) + sum

    L = L_task + lambda sum_modules ||dW_t||_F^2        ops.frobenius.squared_norm_and_grads
    dW_t   effective update of the task being trained, scaling and offset included

PS-LoRA's penalty (ps_lora.py) is this without history, and nearly this at rank 8: there entries shrink rather than change sign,
because the elementwise gradient vanishes at 0. Unlike weight decay of A and B it acts on the update itself.

Settings: `reduction` sum over a module's positions, or mean (the sum over O I).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from perdure.methods.contract.parts import WeightPenalty
from perdure.methods.contract.past import Past
from perdure.ops.factors import Factors
from perdure.ops.frobenius import squared_norm_and_grads
from perdure.ops.precision import divided, precise


class SquaredNorm(WeightPenalty):
    """||dW||_F^2, summed over modules; costs R x R products only."""

    reduction: Literal["sum", "mean"] = "sum"
    """sum over a module's positions, or their mean."""

    def value_and_grad(self, module: str, factors: Factors, past: Past) -> tuple[Tensor, Tensor, Tensor]:
        count = factors.shape[0] * factors.shape[1] if self.reduction == "mean" else 1
        return divided(squared_norm_and_grads(precise(factors)), count, factors)

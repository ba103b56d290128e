"""ELLA: spare the positions where the past put its energy. Das Biswas et al., arXiv 2601.02232.

    ella = kaiming + past-energy (PastEnergy) + sum

Symbols (paper -> here)                                                          [O, I] = the module's weight
    dW_t     W   effective update of the task being trained, scaling and offset included
    W_past   P   the sum of the earlier updates: one matrix, whatever the number of tasks

Equation
    L_ELLA = ||dW_t * W_past||_F^2 = sum_ij P_ij^2 W_ij^2,    G = 2 P^2 W            ops.entrywise.weighted_squares
    (element-wise product)

Settings: `reduction` sum over a module's positions, or mean. Deviations: the equation was read second-hand, and the aggregate is
taken as the sum of the updates (`history: merged` takes what answers queries instead); whether scaling is inside dW, lambda and
the reduction were not found. Without history the penalty is 0.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from perdure.methods.contract.past import Past
from perdure.methods.measured.history_update import HistoryKind, HistoryPenalty
from perdure.ops.entrywise import weighted_squares
from perdure.ops.factors import Factors
from perdure.ops.precision import divided, no_penalty, precise


class PastEnergy(HistoryPenalty):
    """sum P^2 W^2 over positions and modules. P^2 is computed once a stage."""

    needs_past: ClassVar[bool] = True

    reduction: Literal["sum", "mean"] = "sum"
    """sum over a module's positions, or their mean."""
    history: HistoryKind = "sum"
    """P is the sum of the earlier updates, or the merged update that answers queries."""
    tile: int | None = Field(default=None, gt=0)
    """rows per tile; chosen by the module's width when not given."""

    def value_and_grad(self, module: str, factors: Factors, past: Past) -> tuple[Tensor, Tensor, Tensor]:
        exact = precise(factors)
        energy = self._of_history(module, exact.A, past, torch.square)
        if energy is None:
            return no_penalty(factors)
        count = exact.shape[0] * exact.shape[1] if self.reduction == "mean" else 1
        return divided(weighted_squares(exact, energy, self.tile, self._scratch), count, factors)

"""Covariance gain: keep of each update what its own task's inputs need and earlier tasks' inputs do not feel. This project.

    covariance-gain = kaiming + covariance-gain (CovarianceGain)

Symbols (perdure.merging.covariance_gain has the derivation)                        [O, I] = the module's weight
    C_t     mean of x x^T over the module's inputs on the task just learnt, with the trained model [I, I]
    C_<t    sum of the earlier tasks' C_i
    kappa   how much the past counts,   eps = ridge * mean diagonal of (C_t + kappa C_<t)

    dW_t <- dW_t P_t,   P_t = C_t (C_t + kappa C_<t + eps I)^-1,   I if there is nothing to spare: at t = 1, or with kappa 0
    carry = deployed = the sum of what is kept

Each update was trained on top of the earlier ones, so only their inputs have to be spared. The rank stays R. No examples are
kept, and the statistics do not grow with the number of tasks. Nothing was published to deviate from.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from perdure.merging.covariance_gain import covariance_gain
from perdure.methods.contract.context import Context, Need
from perdure.methods.contract.parts import Consolidate, TensorMemory
from perdure.methods.contract.past import Folded, Past
from perdure.methods.measured.input_moments import add_moments, input_moments
from perdure.ops.lowrank import Update, add_updates


class CovarianceGain(TensorMemory, Consolidate):
    """The sum of the updates, each turned away from the earlier tasks' inputs before it is added.

    Memory: C_<t [I, I] fp32 by module.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.TRAINING_DATA, Need.PAST_DATA, Need.MODULE_INPUTS})
    protects: ClassVar[str] = "it turns updates away from old tasks' inputs"

    kappa: float = Field(default=1.0, ge=0)
    """weight of the past's outputs against the new task's; 0 is the plain sum."""
    ridge: float = Field(default=1e-3, gt=0)
    """relative to the mean diagonal; keeps directions that no input uses from being inverted."""
    batches: int | None = Field(default=None, ge=1)
    """on how many batches of a task's training examples its inputs are measured; None = all."""
    batch_size: int = Field(default=32, ge=1)
    """examples in each."""

    def fold(self, ctx: Context, past: Past, update: Update) -> Folded:
        """Measure the new task's inputs, and add them to the past's."""
        batches = list(ctx.batches(ctx.stage.train, self.batch_size, "covariance-gain"))[: self.batches]
        own = input_moments(ctx, batches)
        kept = {
            module: covariance_gain(delta, own[module], self._memory.get(module), self.kappa, self.ridge)
            for module, delta in update.items()
        }
        add_moments(self._memory, {module: moment.float() for module, moment in own.items()})
        total = add_updates(past.carry, kept)
        return Folded(carry=total, deployed=total)

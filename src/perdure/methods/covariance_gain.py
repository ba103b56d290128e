"""Covariance gain: of each update keep what its own task's inputs need and earlier tasks' inputs do not feel. This project.

    covariance-gain = kaiming + covariance-gain (CovarianceGain)

Symbols (perdure.merging.covariance_gain has the derivation)                        [O, I] = the module's weight
    C_t     mean of x x^T over the module's inputs on the task just learnt, by the model as trained [I, I]
    C_<t    sum of the earlier tasks' C_i
    kappa   how much the past counts,   eps = ridge * mean diagonal of (C_t + kappa C_<t)

    dW_t <- dW_t P_t,   P_t = C_t (C_t + kappa C_<t + eps I)^-1,   I where nothing is to be spared: at t = 1, or with kappa 0
    carry = deployed = the sum of what is kept

Each update was trained on top of the earlier ones, so only their inputs are to be spared. The rank stays R; no examples are
kept, and the statistics do not grow with the number of tasks. There is no published version to deviate from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, PrivateAttr
from torch import Tensor

from perdure.merging.covariance_gain import covariance_gain
from perdure.methods.contract.context import Need
from perdure.methods.contract.parts import Consolidate
from perdure.methods.contract.past import Folded
from perdure.methods.measured.input_moments import add_moments, input_moments
from perdure.ops.lowrank import add_updates

if TYPE_CHECKING:
    from perdure.methods.contract.context import Context
    from perdure.methods.contract.parts import Method
    from perdure.methods.contract.past import Past
    from perdure.ops.lowrank import Update


class CovarianceGain(Consolidate):
    """The sum of the updates, each turned away from the earlier tasks' inputs before it is added."""

    needs: ClassVar[frozenset[Need]] = frozenset({Need.TRAINING_DATA, Need.PAST_DATA})

    kappa: float = Field(default=1.0, ge=0)
    """weight of the past's outputs against the new task's; 0 is the plain sum."""
    ridge: float = Field(default=1e-3, gt=0)
    """relative to the mean diagonal, keeps directions no input uses from being inverted."""
    batches: int | None = Field(default=None, ge=1)
    """on how many batches of a task's training examples its inputs are measured; None = all."""
    batch_size: int = Field(default=32, ge=1)
    """examples in each."""

    _past: dict[str, Tensor] = PrivateAttr(default_factory=dict)

    def conflicts(self, method: Method) -> str | None:
        """Refused where there is no past to spare."""
        reason = method.out_of_reach()
        return reason and f"it turns updates away from old tasks' inputs, but {reason}"

    def fold(self, ctx: Context, past: Past, update: Update) -> Folded:
        """See `Consolidate`; measures the new task's inputs and adds them to the past's."""
        batches = list(ctx.batches(ctx.stage.train, self.batch_size, "covariance-gain"))[: self.batches]
        own = input_moments(ctx, batches)
        kept = {
            module: covariance_gain(delta, own[module], self._past.get(module), self.kappa, self.ridge)
            for module, delta in update.items()
        }
        add_moments(self._past, {module: moment.float() for module, moment in own.items()})
        total = add_updates(past.carry, kept)
        return Folded(carry=total, deployed=total)

    def state(self) -> dict[str, Tensor]:
        """C_<t [I, I] by module."""
        return dict(self._past)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        self._past = dict(state)

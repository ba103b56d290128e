"""EWC, online: hold back the weights old tasks are sensitive to. arXiv 1612.00796 (Kirkpatrick et al.), 1805.06370 (online).

    ewc = kaiming + fisher (FisherPenalty) + sum

Symbols (paper -> here)                                                          [O, I] = the module's weight
    theta - theta*   W       effective update of the task being trained: what it changes of the weights it started from
    F_i              F       diagonal of task i's Fisher matrix over the full weight: mean over examples of (d loss / d weight)^2
    F~               Omega   running Fisher, one matrix whatever the number of tasks
    gamma            `decay`

Equations
    L     = 1/2 sum_ij Omega_ij W_ij^2,    G = Omega W             ops.entrywise.weighted_squares
    Omega <- gamma Omega + F_t             after task t, on the trained model

The papers keep theta* = theta_{t-1}, the weights after the last task. Here the base a task trains on is exactly that if the
consolidation carries the sum. The penalty is on the update, so the number of trained parameters does not matter.

Settings: see `FisherPenalty`. Deviations
    - F is the empirical Fisher (the task's own labels), as in most implementations; the definition samples labels from the model.
    - `batch_size` above 1 squares the mean gradient of a batch, which is cheaper but underestimates F; 1 is the definition.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, PrivateAttr
from torch import Tensor

from perdure.methods.contract.context import Context, Need
from perdure.methods.contract.parts import Method, TensorMemory, WeightPenalty
from perdure.methods.contract.past import Past
from perdure.methods.measured.input_moments import check_finite
from perdure.ops.entrywise import weighted_squares
from perdure.ops.factors import Factors
from perdure.ops.lowrank import Update
from perdure.ops.precision import divided, no_penalty, precise
from perdure.ops.through_factors import Scratch


class FisherPenalty(TensorMemory, WeightPenalty):
    """1/2 sum Omega W^2 over positions and modules; 0 on the first task.

    Memory: Omega, one dense fp32 [O, I] for each module.
    """

    needs: ClassVar[frozenset[Need]] = frozenset(
        {Need.TRAINING_DATA, Need.PAST_DATA, Need.DENSE_BASE, Need.FULL_GRADIENTS}
    )
    needs_past: ClassVar[bool] = True
    holds_base: ClassVar[bool] = True
    protects: ClassVar[str] = "it protects what the past needs"

    decay: float = Field(default=1.0, ge=0, le=1)
    """gamma; 1 sums the Fishers of all tasks, less forgets the oldest."""
    examples: int | None = Field(default=128, ge=1)
    """on how many training examples of each task F is measured; None = all."""
    batch_size: int = Field(default=1, ge=1)
    """examples whose mean gradient is squared."""
    tile: int | None = Field(default=None, gt=0)
    """rows per tile; chosen by the module's width when not given."""

    caches: ClassVar[frozenset[str]] = frozenset({"_scratch"})

    _scratch: Scratch = PrivateAttr(default_factory=Scratch)

    def conflicts(self, method: Method) -> str | None:
        """Also refused if the base does not hold the past: the update is then not a change from it."""
        if (reason := super().conflicts(method)) or method.consolidate.keeps == "carried":
            return reason
        return (
            "it holds back changes from the weights after the last task, but this consolidation carries nothing into the "
            "base, so an update is a change from the pretrained weights. Use the consolidation `sum`"
        )

    def value_and_grad(self, module: str, factors: Factors, past: Past) -> tuple[Tensor, Tensor, Tensor]:
        exact, fisher = precise(factors), self._memory.get(module)
        if fisher is None:
            return no_penalty(factors)
        return divided(weighted_squares(exact, fisher.to(exact.A), self.tile, self._scratch), 2, factors)

    def after_task(self, ctx: Context, update: Update) -> None:
        """Measure F [O, I] fp32 on the trained model (mean over batches of the squared gradient), and update Omega."""
        wanted = len(ctx.stage.train) if self.examples is None else min(self.examples, len(ctx.stage.train))
        batches = list(ctx.batches(ctx.stage.train, self.batch_size, "ewc"))[: max(1, wanted // self.batch_size)]
        sums: dict[str, Tensor] = {}

        def sink(module: str, grad_OI: Tensor) -> None:
            if module in sums:
                sums[module].addcmul_(grad_OI, grad_OI)
            else:
                sums[module] = grad_OI.square()

        ctx.stream(batches, "gradients", sink)
        for module, total in sums.items():
            fisher, old = total.div_(len(batches)), self._memory.get(module)
            check_finite(f"Fisher of {module}", fisher)
            self._memory[module] = fisher if old is None else old.to(fisher) * self.decay + fisher

"""Output drift: change each layer's outputs little on the inputs old tasks gave it. This project; no examples are kept.

    output-drift = kaiming + output-drift (OutputDrift) + sum

Symbols                                                                            [O, I] = the module's weight
    dW     effective update of the task being trained (scaling and offset included)
    C_i    mean of x x^T over the module's inputs x on task i's training examples, with the model trained on it [I, I]
    C      sum_{i<t} C_i: statistics, of a size that does not depend on the number of tasks
    W      the weight the task trains on: pretrained + carry

Equations
    drift        tr(dW C dW^T) = sum_{i<t} E_i ||dW x||^2                              ops.input_side.drift
    normalised   mean over modules of tr(dW C dW^T) / tr(W C W^T)                      a share of the outputs' energy
    plain        sum over modules of tr(dW C dW^T)

It vanishes on inputs the past never used, whatever dW does there. Related: the hard projections of GPM (arXiv 2103.09762) and
InfLoRA (inf_lora.py); RegMean's merge (arXiv 2212.09849) minimises the same distance after training.

Settings: see `OutputDrift`. Nothing was published to deviate from.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from perdure.methods.contract.context import Context, Need
from perdure.methods.contract.parts import TensorMemory
from perdure.methods.contract.past import Past
from perdure.methods.measured.history_update import PastPenalty
from perdure.methods.measured.input_moments import add_moments, input_moments
from perdure.ops.factors import Factors
from perdure.ops.input_side import drift
from perdure.ops.lowrank import Update
from perdure.ops.precision import divided, no_penalty, precise


class OutputDrift(TensorMemory, PastPenalty):
    """Energy of the outputs' change on old tasks' inputs; 0 on the first task.

    Memory, by module: `moment.`, C [I, I] fp32; `energy.`, tr(W C W^T) of the stage (`normalised` only).
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.TRAINING_DATA, Need.PAST_DATA, Need.MODULE_INPUTS})
    needs_past: ClassVar[bool] = True
    holds_base: ClassVar[bool] = True
    protects: ClassVar[str] = "it protects outputs on old inputs"

    normalised: bool = True
    """as a share of the energy of the outputs themselves, a mean over modules: one lambda then fits models of any
    size. Otherwise the plain sum over modules, which also works on a quantised base."""
    batches: int | None = Field(default=None, ge=1)
    """on how many batches of a task's training examples its inputs are measured; None = all."""
    batch_size: int = Field(default=32, ge=1)
    """examples in each."""

    def requires(self) -> frozenset[Need]:
        """A share of the outputs' energy needs the weights themselves."""
        return self.needs | {Need.DENSE_BASE} if self.normalised else self.needs

    def _moments(self) -> dict[str, Tensor]:
        return {key.removeprefix("moment."): C for key, C in self._memory.items() if key.startswith("moment.")}

    def before_task(self, ctx: Context) -> None:
        """Energy of the outputs on old inputs, tr(W C W^T), for the weights this task trains on."""
        if not self.normalised:
            return
        for module, moment in self._moments().items():
            W = ctx.weight(module)
            self._memory[f"energy.{module}"] = torch.linalg.vecdot(W @ moment.to(W), W).double().sum()

    def value_and_grad(self, module: str, factors: Factors, past: Past) -> tuple[Tensor, Tensor, Tensor]:
        exact, moment = precise(factors), self._memory.get(f"moment.{module}")
        if moment is None:
            return no_penalty(factors)
        size = float(self._memory[f"energy.{module}"]) * len(self._moments()) if self.normalised else 1.0
        if size <= 0:  # no input ever reached this module
            return no_penalty(factors)
        return divided(drift(exact, moment.to(exact.A)), size, factors)

    def after_task(self, ctx: Context, update: Update) -> None:
        """Measure the task's inputs on the trained model, and add them to the past's."""
        batches = list(ctx.batches(ctx.stage.train, self.batch_size, "output-drift"))[: self.batches]
        measured = input_moments(ctx, batches)
        add_moments(self._memory, {f"moment.{module}": moment.float() for module, moment in measured.items()})

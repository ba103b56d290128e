"""Score drift: change the scores of old tasks' labels little on the inputs old tasks had. This project; no examples are kept.

    perdure = kaiming + ScoreDrift + LwF (lwf.py) + sum, the mean of the last half of the steps, half the rate after task 1

Symbols                                                                            [O, I] = the module's weight
    dW     effective update of the task being trained (scaling and offset included)
    x, g   a module's input at a position, and the gradient of the example's scores with respect to its output there
    C_i    mean of x x^T over the positions that task i's scores depend on, of texts and of labels alike [I, I]
    F_i    sum of g g^T over an example's positions, mean over task i's training examples [O, O]
    C, F   sum_{i<t} C_i and sum_{i<t} F_i: statistics, of a size that does not depend on the number of tasks

Equation
    L    = lambda sum_modules tr(F dW C dW^T) / (t - 1)             ops.input_side.drift

To first order an update changes an example's scores by sum g^T dW x over modules and positions. Its mean square, with positions,
modules, inputs and gradients taken as independent, is sum tr(F_i dW C_i dW^T): the Gauss-Newton matrix of the scores in
Kronecker factors, a curvature of old tasks' losses that does not vanish when they are fitted. F and C are summed apart, which
takes sum_i F_i (x) C_i for (sum_i F_i) (x) (sum_i C_i) / (t - 1).

It is `output_drift` with two things more: directions of the output that no score depends on are free, and modules and tasks are
weighed by what their change does to the scores, so that one lambda serves all. Labels count because their texts are embedded by
the same model. Related: Kronecker-factored Laplace approximations (Ritter et al., arXiv 1805.07810), of the Fisher matrix.

Settings: see `ScoreDrift`. There is no published version to deviate from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from perdure.methods.parts import Need, WeightPenalty
from perdure.ops.input_side import drift
from perdure.ops.precision import precise

if TYPE_CHECKING:
    from perdure.history import Past
    from perdure.methods.parts import Context, Method
    from perdure.ops.factors import Factors
    from perdure.ops.lowrank import Update


class ScoreDrift(WeightPenalty):
    """Mean square of the scores' change on old tasks, to first order and in Kronecker factors; 0 on the first task.

    Args:
        weight, gradient_share: lambda, or what share of the task loss's gradient the penalty's is (see `Penalty`).
        batches: on how many batches of a task's training examples C and F are measured; None = all.
        batch_size: examples in each.

    Memory: [I, I] and [O, O] in fp32 for each module.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.TRAINING_DATA, Need.PAST_DATA, Need.LABELS})

    batches: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=32, ge=1)

    _inputs: dict[str, Tensor] = PrivateAttr(default_factory=dict)
    _outputs: dict[str, Tensor] = PrivateAttr(default_factory=dict)

    def conflicts(self, method: Method) -> str | None:
        """Without a past, or where the update holds what the old tasks learnt."""
        if reason := method.out_of_reach():
            return f"it protects old tasks' scores, but {reason}"
        if method.init.continues:
            return (
                "this init goes on from the last adapter, so its update holds what the old tasks learnt, and the penalty would "
                "undo it. Use the init `kaiming` with a consolidation that carries, like `sum`"
            )
        return None

    def value_and_grad(self, module: str, factors: Factors, past: Past) -> tuple[Tensor, Tensor, Tensor]:
        """See `WeightPenalty`."""
        exact = precise(factors)
        if module not in self._inputs:
            zero = torch.zeros((), dtype=torch.float64, device=exact.A.device)
            return zero, torch.zeros_like(factors.A), torch.zeros_like(factors.B)
        inputs, outputs = self._inputs[module].to(exact.A), self._outputs[module].to(exact.A)
        value, grad_A, grad_B = drift(exact, inputs, outputs)
        tasks = max(1, len(past))
        return value / tasks, (grad_A / tasks).to(factors.A.dtype), (grad_B / tasks).to(factors.B.dtype)

    def after_task(self, ctx: Context, update: Update) -> None:
        """Measure the task on the model as trained, and add it to the past."""
        inputs, outputs, positions = {}, {}, {}

        def sink(module: str, x: Tensor, g: Tensor) -> None:
            inputs[module] = inputs.get(module, 0) + (x.mT @ x).double()
            outputs[module] = outputs.get(module, 0) + (g.mT @ g).double()
            positions[module] = positions.get(module, 0) + len(x)

        batches = list(ctx.batches(ctx.stage.train, self.batch_size, "score-drift"))[: self.batches]
        ctx.stream_scores(batches, sink)
        examples = sum(map(len, batches))
        for module, count in positions.items():
            _add(self._inputs, module, inputs[module] / max(1, count))
            _add(self._outputs, module, outputs[module] / examples)

    def state(self) -> dict[str, Tensor]:
        """C [I, I] and F [O, O] by module."""
        inputs = {f"inputs.{module}": moment for module, moment in self._inputs.items()}
        return inputs | {f"outputs.{module}": moment for module, moment in self._outputs.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        groups: dict[str, dict[str, Tensor]] = {"inputs": {}, "outputs": {}}
        for key, tensor in state.items():
            group, _, module = key.partition(".")
            groups[group][module] = tensor
        self._inputs, self._outputs = groups["inputs"], groups["outputs"]


def _add(sums: dict[str, Tensor], module: str, new: Tensor) -> None:
    sums[module] = sums[module] + new.float() if module in sums else new.float()

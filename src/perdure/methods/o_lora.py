"""O-LoRA: new adapters read inputs in directions orthogonal to those of the old ones. Wang et al., arXiv 2310.14152.

    o-lora = kaiming + overlap (InputOverlap) + sum        with l2 on the factors, as released: + factor-norm (FactorNorm)

Symbols (paper -> here; the paper writes A [d, r] and B [r, k] for W + A B, PEFT the other way round)
    A_i^T     A_i  [R, I]   the matrix of task i that reads the inputs, frozen
    A_t^T     A    [R, I]   that of the task being trained
    lambda_1  weight of `InputOverlap`,   lambda_2  weight of `FactorNorm`

Equations
    square    L_orth = sum_{i<t} sum_jk |A_i A^T|_jk^2 = tr(A M A^T),  M = sum_i A_i^T A_i
    absolute  L_orth = sum_{i<t} sum_jk |A_i A^T|_jk                 both in ops.input_side
    L_2       = sum_modules ||A||_F + ||B||_F   (not squared)        `FactorNorm`

Settings: `form` square (the paper's equation) or absolute (the released code). Deviations
    - square is computed from M [I, I] (or the stacked A_i, while these are smaller): bounded whatever the number of tasks.
      absolute needs every old A: per task and module R I numbers and 4 R^2 I multiplications and additions a step.
    - The released code scans all named parameters for each module at every micro-batch; here it is once a step.
    - The code keeps all adapters in the forward pass; here they are summed (consolidate: sum), which is the same function.
    - The published lambdas (0.5; per data set in the longer order) belong to the absolute form.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import PrivateAttr
from torch import Tensor

from perdure.methods.contract.parts import WeightPenalty
from perdure.methods.measured.history_update import no_history
from perdure.ops.input_side import absolute_overlap, overlap, remembered
from perdure.ops.lowrank import LowRank
from perdure.ops.precision import no_penalty, precise

if TYPE_CHECKING:
    from perdure.methods.contract.context import Context
    from perdure.methods.contract.parts import Method
    from perdure.methods.contract.past import Past
    from perdure.ops.factors import Factors
    from perdure.ops.lowrank import Update


class InputOverlap(WeightPenalty):
    """Overlap of A with the A of all earlier tasks, summed over modules; 0 on the first task."""

    needs_past: ClassVar[bool] = True

    form: Literal["square", "absolute"] = "square"
    """square (the paper's equation, bounded cost) or absolute (the released code, cost grows with the tasks)."""

    _old: dict[str, Tensor] = PrivateAttr(default_factory=dict)

    def conflicts(self, method: Method) -> str | None:
        """Refused without a past, with an init that starts from the past's own A, and where A is frozen."""
        if (reason := no_history(method)) is None and method.init.trains == "B":
            return "it turns A away from the earlier ones, but this init keeps A frozen. Leave the penalty out"
        return reason

    def value_and_grad(self, module: str, factors: Factors, past: Past) -> tuple[Tensor, Tensor, Tensor]:
        """See `WeightPenalty`; B has no part in it."""
        exact, old = precise(factors), self._old.get(module)
        if old is None:
            return no_penalty(factors)
        measure = overlap if self.form == "square" else absolute_overlap
        value, grad_A = measure(exact.A, old.to(exact.A))
        return value, grad_A.to(factors.A.dtype), torch.zeros_like(factors.B)

    def after_task(self, ctx: Context, update: Update) -> None:
        """Remember the A just trained; where the init offsets the base A and A - A0, which together read what the update reads.

        From the update rather than from `ctx.factors`: a history given as adapters has no other factors.
        """
        for module, delta in update.items():
            assert isinstance(delta, LowRank)  # a stage's own update always is
            A = delta.A.detach().to(torch.promote_types(delta.A.dtype, torch.float32))
            old = self._old.get(module)
            if self.form == "square":
                self._old[module] = remembered(old, A)
            else:
                self._old[module] = A if old is None else torch.cat([old, A.to(old)])

    def state(self) -> dict[str, Tensor]:
        """All old A stacked, or their M once that is smaller (square only), by module."""
        return dict(self._old)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        self._old = dict(state)


class FactorNorm(WeightPenalty):
    """||A||_F + ||B||_F, summed over modules: the released code's second term. At 0 its gradient is taken as 0."""

    def conflicts(self, method: Method) -> str | None:
        """Refused where the init offsets the base: there small factors are no small update."""
        if not method.init.offsets:
            return None
        return (
            "the init offsets the base, so the update is s (B A - B0 A0), and small A and B pull it towards -s B0 A0. Use the "
            "penalty `l2`, or an init that starts at zero, like `kaiming`"
        )

    def value_and_grad(self, module: str, factors: Factors, past: Past) -> tuple[Tensor, Tensor, Tensor]:
        """See `WeightPenalty`."""
        exact = precise(factors)
        norms = [torch.linalg.matrix_norm(matrix) for matrix in (exact.A, exact.B)]
        grads = [
            (matrix / norm if norm > 0 else torch.zeros_like(matrix)).to(factors.A.dtype)
            for matrix, norm in zip((exact.A, exact.B), norms, strict=True)
        ]
        return norms[0] + norms[1], grads[0], grads[1]

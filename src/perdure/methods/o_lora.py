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
    - square is computed from M [I, I] (or the stacked A_i, while these are smaller): bounded, whatever the number of tasks.
      absolute needs every old A: per task and module R I numbers, and 4 R^2 I multiplications and additions a step.
    - The released code scans all named parameters for each module at every micro-batch; here the penalty is added once a step.
    - The code keeps all adapters in the forward pass; here they are summed (consolidate: sum), which is the same function.
    - The published lambdas (0.5; per data set in the longer order) belong to the absolute form.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from perdure.methods.contract.context import Context
from perdure.methods.contract.parts import Method, TensorMemory, WeightPenalty
from perdure.methods.contract.past import Past
from perdure.methods.measured.history_update import PastPenalty
from perdure.ops.factors import Factors
from perdure.ops.input_side import absolute_overlap, overlap, remembered
from perdure.ops.lowrank import LowRank, Update
from perdure.ops.precision import no_penalty, precise


class InputOverlap(TensorMemory, PastPenalty):
    """Overlap of A with the A of all earlier tasks, summed over modules; 0 on the first task.

    Memory: by module, all old A stacked, or their M once that is smaller (square only).
    """

    needs_past: ClassVar[bool] = True
    protects: ClassVar[str] = "it compares a task's update with those before it"

    form: Literal["square", "absolute"] = "square"
    """square (the paper's equation, bounded cost) or absolute (the released code, cost grows with the tasks)."""

    def conflicts(self, method: Method) -> str | None:
        """Also refused if A is frozen."""
        if (reason := super().conflicts(method)) is None and method.init.trains == "B":
            return "it turns A away from the earlier ones, but this init keeps A frozen. Leave the penalty out"
        return reason

    def grows(self) -> str | None:
        return None if self.form == "square" else "a step reads the A of every old task (bounded with form: square)"

    def value_and_grad(self, module: str, factors: Factors, past: Past) -> tuple[Tensor, Tensor, Tensor]:
        exact, old = precise(factors), self._memory.get(module)
        if old is None:
            return no_penalty(factors)
        measure = overlap if self.form == "square" else absolute_overlap
        value, grad_A = measure(exact.A, old.to(exact.A))
        return value, grad_A.to(factors.A.dtype), torch.zeros_like(factors.B)

    def after_task(self, ctx: Context, update: Update) -> None:
        """Remember the A just trained; if the init offsets the base, A and A - A0, which together read what the update reads.

        A comes from the update, not from `ctx.factors`: a history given as adapters has no other factors.
        """
        for module, delta in update.items():
            assert isinstance(delta, LowRank)  # a single stage's update always is
            A = delta.A.detach().to(torch.promote_types(delta.A.dtype, torch.float32))
            old = self._memory.get(module)
            if self.form == "square":
                self._memory[module] = remembered(old, A)
            else:
                self._memory[module] = A if old is None else torch.cat([old, A.to(old)])


class FactorNorm(WeightPenalty):
    """||A||_F + ||B||_F, summed over modules: the released code's second term. Its gradient at 0 is defined as 0."""

    def conflicts(self, method: Method) -> str | None:
        """Refused if the init offsets the base: small factors are then not a small update."""
        if not method.init.offsets:
            return None
        return (
            "the init offsets the base, so the update is s (B A - B0 A0), and small A and B pull it towards -s B0 A0. Use the "
            "penalty `l2`, or an init that starts at zero, like `kaiming`"
        )

    def value_and_grad(self, module: str, factors: Factors, past: Past) -> tuple[Tensor, Tensor, Tensor]:
        exact = precise(factors)
        norms = [torch.linalg.matrix_norm(matrix) for matrix in (exact.A, exact.B)]
        grads = [
            (matrix / norm if norm > 0 else torch.zeros_like(matrix)).to(factors.A.dtype)
            for matrix, norm in zip((exact.A, exact.B), norms, strict=True)
        ]
        return norms[0] + norms[1], grads[0], grads[1]

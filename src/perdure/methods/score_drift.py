"""Score drift: change the scores of old tasks' answers little on the inputs old tasks had. This project; no examples are kept.

    perdure = kaiming + score-drift (ScoreDrift) + sum, training.average last-half, training.later_learning_rate_factor 0.5

Symbols                                                                            [O, I] = the module's weight
    dW     effective update of the task being trained (scaling and offset included)
    u      a use of the module for the scores: an encoder reads texts, then labels' texts; most models have one use
    x, g   the module's input at a position, and the gradient of an example's scores with respect to its output there
    scores of an example: those of its task's labels; of free text those of every next token, at the answer's tokens
    C_ui   mean of x x^T over the positions of use u that task i's scores depend on [I, I]
    F_ui   sum of g g^T over these positions, mean over task i's training examples [O, O]
    C, F   sums over earlier tasks: statistics, of a size that does not depend on the number of tasks
    t - 1  number of earlier tasks; a base that is protected (`protect.base`) is one of them

Equation
    L    = lambda / (t - 1) sum_modules sum_u tr(F_u dW C_u dW^T)             ops.input_side.drift

To first order an update changes an example's scores by the sum of g^T dW x over modules, uses and positions. Its mean
square, if all of these, inputs and gradients are independent, is sum tr(F_ui dW C_ui dW^T): the Gauss-Newton matrix of the
scores in Kronecker factors, a curvature of old tasks' losses that does not vanish when they are fitted. F and C are summed
separately, which approximates sum_i F_i (x) C_i by (sum_i F_i) (x) (sum_i C_i) / (t - 1).

With labels the mean square is a mean over labels. For free text it is a mean over the answer's tokens, each under the model's
own softmax (the Fisher matrix: twice the KL divergence), by tokens drawn from it. A mean, not a sum: what is trained is the mean
loss of a token, so that lambda weighs a decision of old tasks against one of the new task, however long answers are.

It adds three things to `output_drift`: output directions that no score depends on are free; modules and tasks are weighted by
what their change does to the scores, so that one lambda serves all; and an encoder's labels stay in place.
Related: Kronecker-factored Laplace approximations (Ritter et al., arXiv 1805.07810), of the Fisher matrix.

Settings: see `ScoreDrift`. Nothing was published to deviate from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from perdure.errors import ConfigError
from perdure.methods.contract.context import Context, Need
from perdure.methods.contract.parts import TensorMemory
from perdure.methods.contract.past import Past
from perdure.methods.measured.history_update import PastPenalty
from perdure.methods.measured.input_moments import add_moments, check_finite
from perdure.ops.factors import Factors
from perdure.ops.input_side import drift
from perdure.ops.low_rank_diagonal import LowRankDiagonal, added, nothing
from perdure.ops.lowrank import Update
from perdure.ops.precision import divided, precise

BASE = "base"
"""In the memory if one of the tasks is the base itself."""
SMALL = 128 * 2**20
"""Bytes of whole statistics, one use of every module, up to which they are kept whole when no rank is given."""
BOUNDED = 64
"""The rank of larger ones, when none is given."""


class ScoreDrift(TensorMemory, PastPenalty):
    """Mean square of the scores' change on old tasks, to first order and in Kronecker factors; 0 on the first task.

    Memory, by use and module: `inputs.`, C [I, I]; `outputs.`, F [O, O]; fp32. In the bounded form of each `rows.` [K, N] and
    `rest.` [N] (perdure.ops.low_rank_diagonal). An encoder has two uses.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.TRAINING_DATA, Need.PAST_DATA, Need.MODULE_INPUTS})
    needs_past: ClassVar[bool] = True
    holds_base: ClassVar[bool] = True
    protects: ClassVar[str] = "it protects old tasks' scores"

    batches: int | None = Field(default=None, ge=1)
    """on how many batches of a task's training examples C and F are measured; None = all."""
    batch_size: int = Field(default=32, ge=1)
    """examples in each."""
    statistics_rank: Annotated[int, Field(ge=1)] | Literal["all"] | None = None
    """keep of each C and F only this many directions and the diagonal: (rank + 1) x (in + out) numbers a module and use instead
    of in^2 + out^2, also while they are measured. all = both whole; None = whole up to 128 MiB in all (of one use of the
    modules), else 64."""

    def value_and_grad(self, module: str, factors: Factors, past: Past) -> tuple[Tensor, Tensor, Tensor]:
        exact, tasks = precise(factors), max(1, len(past) + (BASE in self._memory))
        value = torch.zeros((), dtype=torch.float64, device=exact.A.device)
        grad_A, grad_B = torch.zeros_like(exact.A), torch.zeros_like(exact.B)
        for use in (f"0.{module}", f"1.{module}"):
            if (C := self._moment(f"inputs.{use}", exact.A)) is not None:
                F = self._moment(f"outputs.{use}", exact.A)
                drifted = drift(exact, C, F)
                value, grad_A, grad_B = value + drifted[0], grad_A + drifted[1], grad_B + drifted[2]
        return divided((value, grad_A, grad_B), tasks, factors)

    def after_task(self, ctx: Context, update: Update) -> None:
        """Measure C and F on the trained model, and add them to the past's."""
        inputs, outputs, positions = {}, {}, {}
        rank = self._rank(ctx.factors)

        def sink(module: str, use: int, x: Tensor, g: Tensor) -> None:
            key = f"{min(use, 1)}.{module}"  # after the texts come labels, in one piece or several
            for sums, rows in ((inputs, x), (outputs, g)):
                if rank:
                    sums[key] = added(sums[key] if key in sums else nothing(rows), rows, rank)
                else:
                    sums[key] = sums.get(key, 0) + (rows.mT @ rows).double()
            positions[key] = positions.get(key, 0) + len(x)

        batches = list(ctx.batches(ctx.stage.train, self.batch_size, "score-drift"))[: self.batches]
        ctx.stream_scores(batches, sink)
        examples = sum(map(len, batches))
        C = {f"inputs.{key}": inputs[key] / max(1, count) for key, count in positions.items()}
        F = {f"outputs.{key}": outputs[key] / examples for key in positions}
        self._add(C | F, rank)
        if ctx.index < 0:
            self._memory[BASE] = torch.ones(())

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Also refuses statistics of the other form than `statistics_rank` asks for: they would count as none."""
        bounded = _bounded(state)
        if None not in (bounded, self.statistics_rank) and bounded != (self.statistics_rank != "all"):
            kept = "low rank" if bounded else "whole"
            raise ConfigError(
                f"score-drift: what is remembered of earlier tasks is {kept}, but statistics_rank is {self.statistics_rank}. Set "
                "it as it was when they were learnt."
            )
        super().load(state)

    def _moment(self, key: str, like: Tensor) -> Tensor | LowRankDiagonal | None:
        """C or F of the past in `like`'s dtype and on its device; None if nothing was measured there."""
        if f"rows.{key}" in self._memory:
            return LowRankDiagonal(self._memory[f"rows.{key}"], self._memory[f"rest.{key}"]).to(like)
        return self._memory[key].to(like) if key in self._memory else None

    def _rank(self, factors: Mapping[str, Factors]) -> int | None:
        """K, or None for whole statistics: as given, else as remembered, else by their size."""
        if self.statistics_rank is not None:
            return None if self.statistics_rank == "all" else self.statistics_rank
        if (bounded := _bounded(self._memory)) is None:
            bounded = sum(4 * width**2 for pair in factors.values() for width in pair.shape) > SMALL
        return BOUNDED if bounded else None

    def _add(self, moments: Mapping[str, Any], rank: int | None) -> None:
        """Add a task's C and F to the past's."""
        if not rank:
            add_moments(self._memory, {key: moment.float() for key, moment in moments.items()})
            return
        for key, moment in moments.items():
            check_finite(key, moment.rest)
            check_finite(key, moment.rows)
        for key, moment in moments.items():
            past = self._moment(key, moment.rest)
            total = moment if past is None else past.plus(moment, rank)  # pyright: ignore[reportAttributeAccessIssue]
            self._memory |= {f"rows.{key}": total.rows, f"rest.{key}": total.rest}


def _bounded(memory: Mapping[str, Tensor]) -> bool | None:
    """Whether statistics are of the bounded form; None: there are none."""
    forms = {key.split(".")[0] for key in memory} - {BASE}
    return "rows" in forms if forms else None

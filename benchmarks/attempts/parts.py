"""Three ideas against forgetting, each one part: tried beside the preset perdure, and not better (README.md has the figures).

A part that is no more than an attempt lives beside its record, not in src; a configuration names it as
`benchmarks.attempts.parts:Class`.

Symbols as in perdure.methods.score_drift: D an update [O, I]; F_t, C_t the statistics of the task just learnt, F_o, C_o the
sums over earlier ones, for every use u of a module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import ClassVar

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from perdure.methods.contract.context import Context, Gradients, Need
from perdure.methods.contract.parts import Consolidate, StepRule
from perdure.methods.contract.past import Folded, Past
from perdure.methods.replay import ExampleBuffer
from perdure.methods.score_drift import ScoreDrift
from perdure.ops.factors import Factors
from perdure.ops.lowrank import Update, add_updates, dense
from perdure.tasks.suites import load_suite
from perdure.tasks.task import Example

NEEDS = frozenset({Need.TRAINING_DATA, Need.PAST_DATA, Need.MODULE_INPUTS})
Use = tuple[Tensor, Tensor]
"""F [O, O] and C [I, I] of one use of a module."""


def measured(ctx: Context, update: Update) -> ScoreDrift:
    """The statistics of the task just learnt alone."""
    own = ScoreDrift(weight=0.0)
    own.after_task(ctx, update)
    return own


def uses(statistics: Mapping[str, Tensor], module: str) -> list[Use]:
    """F and C of every use of a module, float64."""
    found = [key for u in "01" if f"inputs.{(key := f'{u}.{module}')}" in statistics]
    return [(statistics[f"outputs.{key}"].double(), statistics[f"inputs.{key}"].double()) for key in found]


class Recalibrated(Consolidate):
    """The sum of the updates, each first moved to where it costs the old tasks less than it costs its own.

    D = argmin sum_u tr(F_t (D - D_t) C_t (D - D_t)^T) + kappa / (t - 1) sum_u tr(F_o D C_o D^T)
    """

    needs: ClassVar[frozenset[Need]] = NEEDS
    protects: ClassVar[str] = "it moves updates away from old tasks' scores"

    kappa: float = Field(default=1.0, ge=0)
    """1: the scores of every old task count as much as those of the new one."""

    _old: ScoreDrift = PrivateAttr(default_factory=lambda: ScoreDrift(weight=0.0))

    def fold(self, ctx: Context, past: Past, update: Update) -> Folded:
        own, old = measured(ctx, update).state(), self._old.state()
        kept, moved = {}, []
        for module, delta in update.items():
            trained = dense(delta).double()
            pasts = [(F, self.kappa / max(1, len(past)) * C) for F, C in uses(old, module)]
            found = recalibrated(trained, uses(own, module), pasts) if pasts and self.kappa else trained
            moved.append(float((found - trained).norm() / trained.norm()))
            kept[module] = found.float()
        ctx.note("recalibrated/moved", sum(moved) / len(moved))
        self._old.load(own if not old else {key: old[key] + own[key] for key in own})
        total = add_updates(past.carry, kept)
        return Folded(carry=total, deployed=total)

    def state(self) -> dict[str, Tensor]:
        return self._old.state()

    def load(self, state: Mapping[str, Tensor]) -> None:
        self._old.load(state)


def recalibrated(trained: Tensor, own: Sequence[Use], old: Sequence[Use], steps: int = 60) -> Tensor:
    """The D of `Recalibrated` [O, I]: elementwise in the eigenbases that the first uses' own and old statistics share.

    With one use that is the answer; with two it is where conjugate gradients start a step from, until the residual is 1e-6.
    """
    U, f = shared_basis(own[0][0], old[0][0])
    V, c = shared_basis(own[0][1], old[0][1])
    weights = f[0][:, None] * c[0] + f[1][:, None] * c[1]
    weights = weights + 1e-9 * weights.max()

    def solved(right: Tensor) -> Tensor:
        return U @ ((U.T @ right @ V) / weights) @ V.T

    def applied(D: Tensor) -> Tensor:
        return sum((F @ D @ C for F, C in (*own, *old)), torch.zeros_like(D))

    D = trained.clone()
    residual = sum((F @ trained @ C for F, C in own), torch.zeros_like(D)) - applied(D)
    limit = 1e-6 * residual.norm()
    step = direction = solved(residual)
    for _ in range(steps):
        image, before = applied(direction), (residual * step).sum()
        length = before / (direction * image).sum()
        D, residual = D + length * direction, residual - length * image
        if residual.norm() <= limit:
            break
        step = solved(residual)
        direction = step + (residual * step).sum() / before * direction
    return D


def shared_basis(one: Tensor, other: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """U with U^T one U and U^T other U diagonal, and both diagonals; a thousandth of the mean keeps the sum invertible."""
    both = one / one.trace() + other / other.trace()
    lower = torch.linalg.cholesky(both + 1e-3 * both.trace() / len(both) * torch.eye(len(both), dtype=both.dtype))
    inverse = torch.linalg.inv(lower)
    U = inverse.T @ torch.linalg.eigh(inverse @ (one / one.trace()) @ inverse.T).eigenvectors
    return U, (((U.T @ one) * U.T).sum(dim=1), ((U.T @ other) * U.T).sum(dim=1))


class ProjectedSteps(StepRule):
    """What the optimiser really did, less along what old tasks read and write.

    A <- A - dA + dA (I + kappa C)^-1,   B <- B - dB + (I + kappa F)^-1 dB,   C and F over their mean diagonals
    """

    needs: ClassVar[frozenset[Need]] = NEEDS
    needs_past: ClassVar[bool] = True
    protects: ClassVar[str] = "it turns steps away from what old tasks read and write"
    caches: ClassVar[frozenset[str]] = frozenset({"_before", "_damping", "_stage"})

    kappa: float = Field(default=1.0, gt=0)
    """how much a direction that old tasks use as the average one is damped: by 1 / (1 + kappa)."""

    _old: ScoreDrift = PrivateAttr(default_factory=lambda: ScoreDrift(weight=0.0))
    _before: dict[str, tuple[Tensor, Tensor]] = PrivateAttr(default_factory=dict)
    _damping: dict[str, tuple[Tensor, Tensor]] = PrivateAttr(default_factory=dict)
    _stage: int | None = PrivateAttr(default=None)

    def gradients(self, ctx: Context, grads: Gradients) -> Gradients:
        self._before = {module: (pair.A.clone(), pair.B.clone()) for module, pair in ctx.factors.items()}
        return grads

    def stepped(self, ctx: Context, factors: Mapping[str, Factors], learning_rate: float) -> None:
        if self._stage != ctx.index:
            self._stage, self._damping = ctx.index, self._dampings(factors)
        for module, (read, write) in self._damping.items():
            pair, (A, B) = factors[module], self._before[module]
            pair.A.copy_(A + (pair.A - A) @ read.to(A))
            pair.B.copy_(B + write.to(B) @ (pair.B - B))

    def _dampings(self, factors: Mapping[str, Factors]) -> dict[str, tuple[Tensor, Tensor]]:
        found = {}
        for module in factors:
            if pasts := uses(self._old.state(), module):
                write, read = (
                    torch.stack([each / each.trace() for each in side]).sum(0) for side in zip(*pasts, strict=True)
                )
                found[module] = (self._damped(read), self._damped(write))
        return found

    def _damped(self, moment: Tensor) -> Tensor:
        eye = torch.eye(len(moment), dtype=moment.dtype)
        return torch.linalg.inv(eye + self.kappa * len(moment) / moment.trace() * moment)

    def after_task(self, ctx: Context, update: Update) -> None:
        self._old.after_task(ctx, update)

    def state(self) -> dict[str, Tensor]:
        return self._old.state()

    def load(self, state: Mapping[str, Tensor]) -> None:
        self._old.load(state)


@cache
def unlabelled() -> tuple[str, ...]:
    """512 texts of sets that no sequence here has: headlines and tweets."""
    tasks = load_suite("text-24", order="nyt,tweets", train=256, validation=1, test=1, seed=0).tasks
    return tuple(example.text for task in tasks for example in task.train)


class AnsweredTexts(ExampleBuffer):
    """Distillation on unlabelled text: what is replayed are texts of no task, with labels drawn from the model's own answers.

    In expectation over the draws their cross-entropy is that with the old model's probabilities.
    """

    def remember(self, ctx: Context, examples: Sequence[Example]) -> None:
        for task in ctx.stage.tasks:
            texts = [Example(text, "", task.name) for text in unlabelled()]
            drawn = torch.multinomial(ctx.chances(texts, task.name).float(), 1, generator=ctx.generator("answered"))
            labels = [*task.labels]
            answered = [Example(e.text, labels[i], task.name) for e, i in zip(texts, drawn[:, 0].tolist(), strict=True)]
            super().remember(ctx, answered)

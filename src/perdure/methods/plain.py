"""The plain choices: new adapters from kaiming or from the last one; updates summed, replaced or kept separately.

inc-lora = kaiming (Kaiming) + sum (Sum)                   a new adapter for each task, all summed
seq-lora = continue (Continue) + latest (Latest)           one adapter, trained on and on
per-task = kaiming (Kaiming) + per-task (PerTaskAdapters)  an upper bound: every task is answered by its own update
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from perdure.methods.contract.context import Context
from perdure.methods.contract.parts import Consolidate, Init, Keeps, Method, Start
from perdure.methods.contract.past import Folded, Past, PerTask
from perdure.ops.factors import Factors
from perdure.ops.lowrank import Update, add_updates


def kaiming_uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """A matrix [R, I] as `torch.nn.Linear` and PEFT start A: uniform in +-1/sqrt(I) (kaiming with a = sqrt 5).

    Drawn in fp32 on the CPU, so that device and dtype of `like` do not change the draw.
    """
    bound = 1 / math.sqrt(like.shape[1])
    drawn = torch.empty(like.shape, dtype=torch.float32).uniform_(-bound, bound, generator=generator)
    return drawn.to(like)


class Kaiming(Init):
    """A kaiming-uniform, B zero: the update starts at zero. LoRA's own start (arXiv 2106.09685)."""

    def start(self, ctx: Context) -> Start:
        """Modules draw one after another from the stage's generator 'init'."""
        generator = ctx.generator("init")
        return Start(
            {
                module: Factors(kaiming_uniform(pair.A, generator), torch.zeros_like(pair.B), pair.scaling)
                for module, pair in ctx.factors.items()
            }
        )


class Continue(Init):
    """Continue from the last stage's trained factors; kaiming on the first. Use with `Latest`, which folds nothing."""

    continues: ClassVar[bool] = True
    consolidation: ClassVar[str] = "latest"
    """The consolidation it belongs with."""

    def conflicts(self, method: Method) -> str | None:
        """Refused if the consolidation carries: the past would count twice."""
        if method.consolidate.keeps != "carried":
            return None
        return (
            "it starts from the last adapter, which this consolidation also folds into the base, so the past would count "
            f"twice. Use the consolidation `{self.consolidation}`, or the init `kaiming`"
        )

    def start(self, ctx: Context) -> Start:
        """The last A, `_restarted`, and a copy of the last B."""
        last = ctx.past.factors
        if not last:
            return Kaiming().start(ctx)
        return Start(
            {
                module: Factors(
                    self._restarted(last[module].A).to(pair.A), last[module].B.detach().clone().to(pair.B), pair.scaling
                )
                for module, pair in ctx.factors.items()
            }
        )

    def _restarted(self, last_RI: Tensor) -> Tensor:
        return last_RI.detach().clone()


class Sum(Consolidate):
    """Carry and answer with the sum of all updates."""

    def fold(self, ctx: Context, past: Past, update: Update) -> Folded:
        """past.carry + update, for both."""
        total = add_updates(past.carry, update)
        return Folded(carry=total, deployed=total)


class Latest(Consolidate):
    """Nothing is folded: the next task trains on the pretrained base and the newest adapter answers."""

    @property
    def keeps(self) -> Keeps:
        return "newest"

    def fold(self, ctx: Context, past: Past, update: Update) -> Folded:
        """No carry; the new update is deployed alone."""
        return Folded(carry={}, deployed=update)


class PerTaskAdapters(Consolidate):
    """Every task keeps its own update on the pretrained base; memory grows with the number of tasks."""

    @property
    def keeps(self) -> Keeps:
        return "per-task"

    def grows(self) -> str | None:
        return "an adapter of every task is kept and deployed"

    def fold(self, ctx: Context, past: Past, update: Update) -> Folded:
        """The past's updates, and this one for every task of the stage."""
        before = past.deployed.updates if isinstance(past.deployed, PerTask) else {}
        return Folded(carry={}, deployed=PerTask({**before, **{task.name: update for task in ctx.stage.tasks}}))

"""Merging rules as consolidations: queries are answered by the merge of all updates so far.

    average, ties, dare, magmax = kaiming + no penalty + the rule of that name          equations: perdure.merging.<rule>

What the next task trains on is a separate choice, `trains_on`:
    pretrained  nothing is carried: every adapter starts from the pretrained weights, as in the papers of TIES and DARE, which
                merge models trained separately
    sum         all updates are carried: fine-tuning continues, as in MagMax
    merged      what answers queries is carried too; an update is then a change from the merge, not from the pretrained weights

After each task a rule reads every update again from the store: T low-rank adapters, a cost that grows with T, once per task.
What is deployed is dense, except for the average.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from perdure.merging import rules
from perdure.merging.dare import Consensus
from perdure.merging.linear import average_updates
from perdure.merging.modules import merge_modules
from perdure.merging.ties import Scope
from perdure.methods.contract.context import Context, Need
from perdure.methods.contract.parts import Consolidate, Keeps, Method
from perdure.methods.contract.past import Folded, Past
from perdure.ops.lowrank import Update, add_updates

TrainsOn = Literal["pretrained", "sum", "merged"]


class MergeRule(Consolidate):
    """`rule`, with this part's settings, applied to all updates so far; the base of the rules below."""

    rule: ClassVar[type[rules.Rule]]

    trains_on: TrainsOn = "pretrained"
    """what the next task trains on (see the top of the file)."""

    @property
    def keeps(self) -> Keeps:
        return "merged" if self.trains_on == "pretrained" else "carried"

    def grows(self) -> str | None:
        return "a merge reads the update of every task"

    def _merged(self, ctx: Context, updates: Sequence[Update]) -> Update:
        """Module by module what `perdure merge` would give."""
        rule = self.rule(**self.model_dump(exclude={"trains_on"}), **self._drawn(ctx))
        return dict(merge_modules(updates, rule.prepare(updates).merge))

    def _drawn(self, ctx: Context) -> dict[str, Any]:
        """Settings of the rule that depend on the stage."""
        return {}

    def fold(self, ctx: Context, past: Past, update: Update) -> Folded:
        """The rule's result is deployed; `trains_on` decides the carry."""
        merged = self._merged(ctx, [*past.updates(), update])
        if self.trains_on == "sum":
            return Folded(carry=add_updates(past.total, update), deployed=merged)
        return Folded(carry=merged if self.trains_on == "merged" else {}, deployed=merged)


class Average(MergeRule):
    """The mean of all updates."""

    protects: ClassVar[str] = "it is the mean of several tasks' updates"

    def _merged(self, ctx: Context, updates: Sequence[Update]) -> Update:
        return average_updates(updates)


class Ties(MergeRule):
    """TIES: trim each update, elect a sign at every position, average what agrees with it (arXiv 2306.01708)."""

    rule: ClassVar[type[rules.Rule]] = rules.Ties
    needs: ClassVar[frozenset[Need]] = frozenset({Need.DENSE_BASE})

    density: float = Field(default=0.2, gt=0, le=1)
    """share of entries an update keeps."""
    scope: Scope = "model"
    """where the largest entries are chosen: over the whole model (the paper), or per module."""
    scale: float = Field(default=1.0, gt=0)
    """lambda."""


class Dare(MergeRule):
    """DARE: drop entries at random, rescale the rest, then sum or elect as TIES does (arXiv 2311.03099)."""

    rule: ClassVar[type[rules.Rule]] = rules.Dare
    needs: ClassVar[frozenset[Need]] = frozenset({Need.DENSE_BASE})

    density: float = Field(default=0.5, gt=0, le=1)
    """share of entries kept (the paper's 1 - p)."""
    consensus: Consensus = "sum"
    """sum (the paper's default) or ties."""
    rescale: bool = True
    """divide what is kept by `density`; off for ablation only."""
    scale: float = Field(default=1.0, gt=0)
    """factor of the result."""

    def _drawn(self, ctx: Context) -> dict[str, Any]:
        """Masks depend on the run's seed and the stage."""
        return {"seed": int(torch.randint(2**31, (), generator=ctx.generator("dare")))}


class MagMax(MergeRule):
    """MagMax: of the cumulative updates after each task, the entry of largest magnitude (arXiv 2407.06322)."""

    rule: ClassVar[type[rules.Rule]] = rules.MagMax
    needs: ClassVar[frozenset[Need]] = frozenset({Need.DENSE_BASE})

    trains_on: TrainsOn = "sum"
    scale: float = Field(default=0.5, gt=0)
    """factor of the result, .5 in the released code."""

    def conflicts(self, method: Method) -> str | None:
        """Refused if training does not continue from the sum: the updates then do not add up to one model's."""
        if self.trains_on == "sum":
            return None
        return (
            "its cumulative updates theta_t - theta_0 are sums of the updates only if training continues from the sum, not "
            f"with trains_on: {self.trains_on}. Use trains_on: sum"
        )

"""Merging rules as consolidations: queries are answered by the merge of all updates so far.

    average, ties, dare, magmax = kaiming + no penalty + the rule of that name          equations: perdure.merging.<rule>

What the next task trains on is a choice of its own, `trains_on`:
    pretrained  nothing is carried: every adapter starts from the pretrained weights, as the papers of average, TIES and DARE
                have it for models trained apart
    sum         all updates are carried: fine-tuning goes on, as MagMax has it
    merged      what answers queries is carried too; then an update is a change from the merge, not from the pretrained weights

A rule is given every update again after each task, read from the store: T low-rank adapters, a cost that grows with T but
only once a task. What is deployed is dense, except for the average.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field

from perdure.merging import rules
from perdure.merging.dare import Consensus
from perdure.merging.linear import average_updates
from perdure.merging.modules import merge_modules
from perdure.merging.ties import Scope
from perdure.methods.contract.context import Need
from perdure.methods.contract.parts import Consolidate, Keeps
from perdure.methods.contract.past import Folded
from perdure.ops.lowrank import add_updates

if TYPE_CHECKING:
    from perdure.methods.contract.context import Context
    from perdure.methods.contract.parts import Method
    from perdure.methods.contract.past import Past
    from perdure.ops.lowrank import Update

TrainsOn = Literal["pretrained", "sum", "merged"]


class MergeRule(Consolidate):
    """A rule applied to all updates so far; the base of the rules below."""

    trains_on: TrainsOn = "pretrained"
    """what the next task trains on (see the file's head)."""

    @property
    def keeps(self) -> Keeps:
        """See `Consolidate`."""
        return "merged" if self.trains_on == "pretrained" else "carried"

    def _merged(self, ctx: Context, updates: Sequence[Update]) -> Update:
        raise NotImplementedError

    def fold(self, ctx: Context, past: Past, update: Update) -> Folded:
        """The rule's result is deployed; carried is what `trains_on` says."""
        merged = self._merged(ctx, [*past.updates(), update])
        match self.trains_on:
            case "pretrained":
                carry: Update = {}
            case "sum":
                carry = add_updates(past.total, update)
            case _:
                carry = merged
        return Folded(carry=carry, deployed=merged)


class Average(MergeRule):
    """The mean of all updates."""

    def conflicts(self, method: Method) -> str | None:
        """Refused where there is no second update."""
        reason = method.out_of_reach()
        return reason and f"it is the mean of several tasks' updates, but {reason}"

    def _merged(self, ctx: Context, updates: Sequence[Update]) -> Update:
        return average_updates(updates)


class Ties(MergeRule):
    """TIES: trim each update, elect a sign at every position, average what agrees with it (arXiv 2306.01708)."""

    needs: ClassVar[frozenset[Need]] = frozenset({Need.DENSE_BASE})

    density: float = Field(default=0.2, gt=0, le=1)
    """share of entries an update keeps."""
    scope: Scope = "model"
    """over what the largest entries are chosen: the whole model (the paper), or each module."""
    scale: float = Field(default=1.0, gt=0)
    """lambda."""

    def _merged(self, ctx: Context, updates: Sequence[Update]) -> Update:
        return _by(rules.Ties(density=self.density, scope=self.scope, scale=self.scale), updates)


class Dare(MergeRule):
    """DARE: drop entries at random, rescale the rest, then sum or elect as TIES does (arXiv 2311.03099)."""

    needs: ClassVar[frozenset[Need]] = frozenset({Need.DENSE_BASE})

    density: float = Field(default=0.5, gt=0, le=1)
    """share of entries kept (the paper's 1 - p)."""
    consensus: Consensus = "sum"
    """sum (the paper's default) or ties."""
    rescale: bool = True
    """divide what is kept by `density`; off for ablation only."""
    scale: float = Field(default=1.0, gt=0)
    """factor of the result."""

    def _merged(self, ctx: Context, updates: Sequence[Update]) -> Update:
        """Masks depend on the run's seed and the stage."""
        seed = int(torch.randint(2**31, (), generator=ctx.generator("dare")))
        rule = rules.Dare(
            density=self.density, seed=seed, consensus=self.consensus, rescale=self.rescale, scale=self.scale
        )
        return _by(rule, updates)


class MagMax(MergeRule):
    """MagMax: of the cumulative updates after each task, the entry of largest magnitude (arXiv 2407.06322)."""

    needs: ClassVar[frozenset[Need]] = frozenset({Need.DENSE_BASE})

    trains_on: TrainsOn = "sum"
    scale: float = Field(default=0.5, gt=0)
    """factor of the result, .5 in the released code."""

    def conflicts(self, method: Method) -> str | None:
        """Refused where training does not go on from the sum: the updates then do not add up to one model's."""
        if self.trains_on == "sum":
            return None
        return (
            "its cumulative updates theta_t - theta_0 are sums of the updates only where training goes on from the sum, not "
            f"with trains_on: {self.trains_on}. Use trains_on: sum"
        )

    def _merged(self, ctx: Context, updates: Sequence[Update]) -> Update:
        return _by(rules.MagMax(scale=self.scale), updates)


def _by(rule: rules.Rule, updates: Sequence[Update]) -> Update:
    """Module by module what `perdure merge` would give."""
    return dict(merge_modules(updates, rule.prepare(updates).merge))

"""Every merge rule in one table, each with its settings and its source. The mathematics is in the file named beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from perdure.errors import ConfigError, UnknownName
from perdure.merging import covariance_gain as gain
from perdure.merging.directions import Karcher, ModelStock, Multislerp, Slerp
from perdure.merging.elsewhere import hint
from perdure.merging.fold import Fold
from perdure.merging.linear import weight_total
from perdure.merging.magmax import KeepFarthest
from perdure.merging.max_magnitude import KeepLarger
from perdure.merging.nearswap import Nearswap
from perdure.merging.peft_factors import PeftFactors
from perdure.merging.ram import Ram
from perdure.merging.rule import FoldRule, LinearRule, Prepared, Rule
from perdure.merging.sce import Sce
from perdure.merging.slao import slao_chain
from perdure.merging.sparse import Breadcrumbs, Dare, Della, MagnitudePrune, Ties
from perdure.ops.lowrank import Update
from perdure.settings.read import validate


class Sum(LinearRule):
    """The sum of all updates."""

    source: ClassVar[str] = "https://arxiv.org/abs/2212.04089"


class Average(LinearRule):
    """The (weighted) mean over all updates."""

    source: ClassVar[str] = "https://arxiv.org/abs/2203.05482"
    weights: tuple[float, ...] | None = None

    def factor(self, total_weight: float) -> float:
        return 1 / weight_total([total_weight])


class Arithmetic(LinearRule):
    """Task arithmetic: scale times the weighted sum."""

    source: ClassVar[str] = "https://arxiv.org/abs/2212.04089"
    weights: tuple[float, ...] | None = None
    scale: float = 1.0

    def factor(self, total_weight: float) -> float:
        return self.scale


class MaxMagnitude(FoldRule):
    """At every position the entry larger in magnitude (max_magnitude.py, PS-LoRA)."""

    source: ClassVar[str] = "https://arxiv.org/abs/2512.08960"
    fold_type: ClassVar[type[Fold]] = KeepLarger


class MagMax(FoldRule):
    """At every position the cumulative vector farthest from 0 (magmax.py)."""

    source: ClassVar[str] = "https://arxiv.org/abs/2407.06322"
    fold_type: ClassVar[type[Fold]] = KeepFarthest
    in_order: ClassVar[bool] = True
    scale: float = 0.5


class Slao(Rule):
    """The latest A, a slow average of B (slao.py); for adapters that start from each other."""

    source: ClassVar[str] = "https://arxiv.org/abs/2512.23017"
    low_rank: ClassVar[bool] = True
    in_order: ClassVar[bool] = True

    def prepare(self, updates: Sequence[Update], moments: Sequence[gain.Moments] | None = None) -> Prepared:
        return Prepared(slao_chain)


class CovarianceGain(Rule):
    """Of each update, what its own inputs need and the others' inputs do not feel (covariance_gain.py).

    perdure's own; `source` is RegMean, which it is with kappa 1 against all others.
    """

    source: ClassVar[str] = "https://arxiv.org/abs/2212.09849"
    low_rank: ClassVar[bool] = True
    incremental: ClassVar[bool] = False
    kappa: float = Field(default=1.0, ge=0)
    ridge: float = Field(default=1e-3, gt=0)
    against: gain.Against = "others"

    def prepare(self, updates: Sequence[Update], moments: Sequence[gain.Moments] | None = None) -> Prepared:
        if moments is None or len(moments) != len(updates):
            raise ConfigError(
                "covariance-gain weighs updates by their inputs: give the input second moments of every adapter "
                "(--moments FILE for each, in their order), or measure them on text of each task (docs/merging.md)."
            )
        return Prepared(
            lambda module, deltas: gain.gained_sum(module, deltas, moments, self.kappa, self.ridge, self.against)
        )


RULES: Mapping[str, type[Rule]] = {
    "sum": Sum,
    "average": Average,
    "arithmetic": Arithmetic,
    "ties": Ties,
    "magnitude-prune": MagnitudePrune,
    "breadcrumbs": Breadcrumbs,
    "dare": Dare,
    "della": Della,
    "sce": Sce,
    "ram": Ram,
    "nearswap": Nearswap,
    "slerp": Slerp,
    "multislerp": Multislerp,
    "karcher": Karcher,
    "model-stock": ModelStock,
    "max-magnitude": MaxMagnitude,
    "magmax": MagMax,
    "slao": Slao,
    "covariance-gain": CovarianceGain,
    "peft-factors": PeftFactors,
}


def rule_named(name: str, settings: Mapping[str, Any] | None = None) -> Rule:
    """The rule of that name with these settings.

    Raises:
        UnknownName: no such rule; says which one another tool means by the name.
        ConfigError: a setting it does not have, or a bad value.
    """
    if name not in RULES:
        known = [*RULES, "guarded"]
        raise UnknownName("merge rule", name, known, hint=hint(name, known) or "")
    if name == "sum" and settings:
        raise ConfigError(f"'sum' takes no {next(iter(settings))}; use 'arithmetic', which takes weights and a scale.")
    return validate(RULES[name], dict(settings or {}), f"rule {name}")


def name_of(rule: Rule) -> str:
    """The rule's name in the table."""
    return next(name for name, kind in RULES.items() if kind is type(rule))

"""Every merge rule in one table, each with its settings and its source. The mathematics is in the file named beside it.

A rule is a set of validated settings that can `prepare` itself for given updates, finding whatever must be known of a whole
update first (TIES' thresholds). A prepared rule merges module by module: `merge` gives a module's delta, low rank where
the rule allows it; `rows` gives the same a few rows at a time, without holding a dense matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from pydantic import Field

from perdure.errors import ConfigError, UnknownName
from perdure.merging import covariance_gain as gain
from perdure.merging.dare import Consensus, dropping, random_mask
from perdure.merging.fold import Entry, Fold, RowsOf, Total, Transform, merged, rows_of
from perdure.merging.linear import checked_weights, stacked_sum, weight_total
from perdure.merging.magmax import KeepFarthest
from perdure.merging.max_magnitude import KeepLarger
from perdure.merging.slao import slao_chain
from perdure.merging.ties import Scope, Vote, thresholds, trim
from perdure.ops.lowrank import Delta, Update
from perdure.ops.tiling import tile
from perdure.settings.read import Settings, validate

Deltas = Sequence[Delta | None]
"""One module's delta [O, I] in each update, in their order; None where an update lacks the module."""


@dataclass(frozen=True)
class Prepared:
    """A rule ready for given updates: `merge` gives a module's merged delta [O, I], `by_rows` the same without forming it."""

    merge: Callable[[str, Deltas], Delta]
    by_rows: Callable[[str, Deltas], RowsOf] | None = None

    def rows(self, module: str, deltas: Deltas) -> RowsOf:
        """The merged delta of one module, by rows."""
        return self.by_rows(module, deltas) if self.by_rows else partial(tile, self.merge(module, deltas))


class Rule(Settings):
    """What all rules share.

    Attributes:
        source: link to the paper that defines the rule.
        low_rank: the result is low rank, so it exports exactly as an adapter.
        in_order: the result depends on the order of the updates.
        incremental: merging one by one in constant memory gives what merging all at once gives.
    """

    source: ClassVar[str]
    low_rank: ClassVar[bool] = False
    in_order: ClassVar[bool] = False
    incremental: ClassVar[bool] = True

    def prepare(self, updates: Sequence[Update], moments: Sequence[gain.Moments] | None = None) -> Prepared:
        """Look at whole updates, and at `moments` (one per update) where the rule uses input statistics."""
        raise NotImplementedError


class LinearRule(Rule):
    """A weighted sum (linear.py)."""

    low_rank: ClassVar[bool] = True

    def factor(self, total_weight: float) -> float:
        """What the weighted sum is multiplied by, given the sum of the weights."""
        return 1.0

    def prepare(self, updates: Sequence[Update], moments: Sequence[gain.Moments] | None = None) -> Prepared:
        weights = checked_weights(getattr(self, "weights", None), len(updates))
        factor = self.factor(sum(weights))

        def merge(_module: str, deltas: Deltas) -> Delta:
            present = [(d, factor * w) for d, w in zip(deltas, weights, strict=True) if d is not None]
            return stacked_sum([delta for delta, _ in present], [weight for _, weight in present])

        return Prepared(merge)


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


class FoldRule(Rule):
    """A dense rule that decides position by position (fold.py)."""

    scale: float = 1.0

    fold_type: ClassVar[type[Fold]]

    def fold(self) -> Fold:
        """What is remembered at every position, and how an update changes it."""
        return self.fold_type()

    def transform(self, update: Update, index: int) -> Transform | None:
        """What happens to the tiles of the `index`-th update (from 0) before they are folded in."""
        return None

    def prepare(self, updates: Sequence[Update], moments: Sequence[gain.Moments] | None = None) -> Prepared:
        fold, weights = self.fold(), checked_weights(getattr(self, "weights", None), len(updates))
        transforms = [self.transform(update, index) for index, update in enumerate(updates)]

        def entries(deltas: Deltas) -> list[Entry]:
            given = zip(deltas, weights, transforms, strict=True)
            return [Entry(delta, weight, transform) for delta, weight, transform in given if delta is not None]

        return Prepared(
            lambda module, deltas: merged(fold, module, entries(deltas), self.scale),
            lambda module, deltas: rows_of(fold, module, entries(deltas), self.scale),
        )


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


class Ties(FoldRule):
    """Trim, elect a sign, average the entries that agree (ties.py)."""

    source: ClassVar[str] = "https://arxiv.org/abs/2306.01708"
    fold_type: ClassVar[type[Fold]] = Vote
    density: float = Field(default=0.2, gt=0, le=1)
    scope: Scope = "model"
    weights: tuple[float, ...] | None = None

    def transform(self, update: Update, index: int) -> Transform | None:
        return trim(thresholds(update, self.density, self.scope)) if self.density < 1 else None


class Dare(FoldRule):
    """Drop entries at random, rescale the rest, then sum or vote (dare.py)."""

    source: ClassVar[str] = "https://arxiv.org/abs/2311.03099"
    density: float = Field(default=0.5, gt=0, le=1)
    seed: int = 0
    consensus: Consensus = "sum"
    rescale: bool = True
    weights: tuple[float, ...] | None = None

    def fold(self) -> Fold:
        return Total() if self.consensus == "sum" else Vote()

    def transform(self, update: Update, index: int) -> Transform | None:
        return dropping(random_mask(self.seed, index, self.density), self.density, self.rescale)


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
    "dare": Dare,
    "max-magnitude": MaxMagnitude,
    "magmax": MagMax,
    "slao": Slao,
    "covariance-gain": CovarianceGain,
}


ELSEWHERE: Mapping[str, str] = {
    **dict.fromkeys(("linear", "task_arithmetic", "cat", "svd"), "arithmetic"),
    "ties_svd": "ties",
    **dict.fromkeys(("dare_linear", "dare_linear_svd"), "dare"),
    **dict.fromkeys(("dare_ties", "dare_ties_svd"), "dare with consensus=ties"),
}
"""A rule's name in PEFT's add_weighted_adapter or mergekit -> its name here, where it acts on whole updates."""


def rule_named(name: str, settings: Mapping[str, Any] | None = None) -> Rule:
    """The rule of that name with these settings.

    Raises:
        UnknownName: no such rule.
        ConfigError: a setting it does not have, or a bad value.
    """
    if name not in RULES:
        raise UnknownName("merge rule", name, [*RULES, "guarded"], ELSEWHERE.get(name))
    if name == "sum" and settings:
        raise ConfigError(f"'sum' takes no {next(iter(settings))}; use 'arithmetic', which takes weights and a scale.")
    return validate(RULES[name], dict(settings or {}), f"rule {name}")


def name_of(rule: Rule) -> str:
    """The rule's name in the table."""
    return next(name for name, kind in RULES.items() if kind is type(rule))

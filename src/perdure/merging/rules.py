"""Every merge rule in one visible table, each with its settings. The mathematics is in the file named beside it.

A rule is settings (frozen, validated) that can `prepare` itself for given updates: whatever must be known of a whole update
first (TIES' thresholds) is found there. What is prepared then merges module by module: `merge` gives a module's delta,
low rank where the rule allows it; `rows` gives the same a few rows at a time, without holding a dense matrix.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Protocol

from pydantic import Field

from perdure.errors import ConfigError, UnknownName
from perdure.merging import covariance_gain as gain
from perdure.merging.dare import Consensus, consensus_fold, dropping, random_mask
from perdure.merging.fold import Entry, Fold, RowsOf, Transform, merged, rows_of
from perdure.merging.linear import checked_weights, stacked_sum, weight_total
from perdure.merging.magmax import KeepFarthest
from perdure.merging.max_magnitude import KeepLarger
from perdure.merging.slao import slao_chain
from perdure.merging.ties import Scope, Vote, thresholds, trim
from perdure.ops.lowrank import Delta, Update
from perdure.ops.tiling import tile
from perdure.settings.read import Settings, validate


class Prepared(Protocol):
    """A rule ready for particular updates; `deltas` are one an update, in their order, None where it has no such module."""

    def merge(self, module: str, deltas: Sequence[Delta | None]) -> Delta:
        """The merged delta of one module."""
        ...

    def rows(self, module: str, deltas: Sequence[Delta | None]) -> RowsOf:
        """The same, by rows."""
        ...


class Rule(Settings):
    """What all rules share.

    Attributes:
        low_rank: the result is low rank, so it exports exactly as an adapter.
        in_order: the result depends on the order of the updates.
        incremental: merging one by one in constant memory gives what merging all at once gives.
    """

    low_rank: ClassVar[bool] = False
    in_order: ClassVar[bool] = False
    incremental: ClassVar[bool] = True

    def prepare(self, updates: Sequence[Update], moments: Sequence[gain.Moments] | None = None) -> Prepared:
        """Find out what must be known of whole updates; `moments` are for rules that use input statistics."""
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
        return _Linear([factor * weight for weight in weights])


class Sum(LinearRule):
    """The sum of all updates."""


class Average(LinearRule):
    """The (weighted) mean over all updates."""

    weights: tuple[float, ...] | None = None

    def factor(self, total_weight: float) -> float:
        return 1 / weight_total([total_weight])


class Arithmetic(LinearRule):
    """Task arithmetic: scale times the weighted sum."""

    weights: tuple[float, ...] | None = None
    scale: float = 1.0

    def factor(self, total_weight: float) -> float:
        return self.scale


class FoldRule(Rule):
    """A dense rule that decides position by position (fold.py)."""

    scale: float = 1.0

    def fold(self) -> Fold:
        """What is remembered at every position, and how an update changes it."""
        raise NotImplementedError

    def transform(self, update: Update, index: int) -> Transform | None:
        """What happens to the tiles of the `index`-th update (from 0) before they are folded in."""
        return None

    def prepare(self, updates: Sequence[Update], moments: Sequence[gain.Moments] | None = None) -> Prepared:
        weights = checked_weights(getattr(self, "weights", None), len(updates))
        transforms = [self.transform(update, index) for index, update in enumerate(updates)]
        return _Folded(self.fold(), weights, transforms, self.scale)


class MaxMagnitude(FoldRule):
    """At every position the entry larger in magnitude (max_magnitude.py, PS-LoRA)."""

    def fold(self) -> Fold:
        return KeepLarger()


class MagMax(FoldRule):
    """At every position the cumulative vector farthest from 0 (magmax.py)."""

    in_order: ClassVar[bool] = True
    scale: float = 0.5

    def fold(self) -> Fold:
        return KeepFarthest()


class Ties(FoldRule):
    """Trim, elect a sign, average those that agree (ties.py)."""

    density: float = Field(default=0.2, gt=0, le=1)
    scope: Scope = "model"
    weights: tuple[float, ...] | None = None

    def fold(self) -> Fold:
        return Vote()

    def transform(self, update: Update, index: int) -> Transform | None:
        return trim(thresholds(update, self.density, self.scope)) if self.density < 1 else None


class Dare(FoldRule):
    """Drop entries at random, rescale the rest, then sum or vote (dare.py)."""

    density: float = Field(default=0.5, gt=0, le=1)
    seed: int = 0
    consensus: Consensus = "sum"
    rescale: bool = True
    weights: tuple[float, ...] | None = None

    def fold(self) -> Fold:
        return consensus_fold(self.consensus)

    def transform(self, update: Update, index: int) -> Transform | None:
        return dropping(random_mask(self.seed, index, self.density), self.density, self.rescale)


class Slao(Rule):
    """The latest A, a slow average of B (slao.py); for adapters that start from each other."""

    low_rank: ClassVar[bool] = True
    in_order: ClassVar[bool] = True

    def prepare(self, updates: Sequence[Update], moments: Sequence[gain.Moments] | None = None) -> Prepared:
        return _Chained()


class CovarianceGain(Rule):
    """Of each update what its own inputs need and the others' inputs do not feel (covariance_gain.py)."""

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
        return _Gained(self, moments)


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
    "linear": "arithmetic",
    "task_arithmetic": "arithmetic",
    "cat": "arithmetic",
    "svd": "arithmetic",
    "ties_svd": "ties",
    "dare_linear": "dare",
    "dare_linear_svd": "dare",
    "dare_ties": "dare with consensus=ties",
    "dare_ties_svd": "dare with consensus=ties",
}
"""What PEFT's add_weighted_adapter and mergekit call a rule -> what it is here, applied to whole updates."""


def unknown_rule(name: str, known: Iterable[str] = ()) -> UnknownName:
    """What is said of a name that no rule has."""
    return UnknownName("merge rule", name, [*RULES, *known], ELSEWHERE.get(name))


def rule_named(name: str, settings: Mapping[str, Any] | None = None) -> Rule:
    """The rule of that name with these settings.

    Raises:
        UnknownName: no such rule.
        ConfigError: a setting it does not have, or a bad value.
    """
    if name not in RULES:
        raise unknown_rule(name)
    if name == "sum" and settings:
        raise ConfigError(f"'sum' takes no {next(iter(settings))}: it is 'arithmetic' that takes weights and a scale.")
    return validate(RULES[name], dict(settings or {}), f"rule {name}")


def name_of(rule: Rule) -> str:
    """The rule's name in the table."""
    return next(name for name, kind in RULES.items() if kind is type(rule))


class _Whole:
    """Rows of a merge that is made at once, since it is of low rank."""

    def merge(self, module: str, deltas: Sequence[Delta | None]) -> Delta:
        raise NotImplementedError

    def rows(self, module: str, deltas: Sequence[Delta | None]) -> RowsOf:
        return partial(tile, self.merge(module, deltas))


@dataclass(frozen=True)
class _Linear(_Whole):
    coefficients: Sequence[float]

    def merge(self, module: str, deltas: Sequence[Delta | None]) -> Delta:
        present = [(d, c) for d, c in zip(deltas, self.coefficients, strict=True) if d is not None]
        return stacked_sum([delta for delta, _ in present], [c for _, c in present])


@dataclass(frozen=True)
class _Folded:
    fold: Fold
    weights: Sequence[float]
    transforms: Sequence[Transform | None]
    scale: float

    def _entries(self, deltas: Sequence[Delta | None]) -> list[Entry]:
        given = zip(deltas, self.weights, self.transforms, strict=True)
        return [Entry(delta, weight, transform) for delta, weight, transform in given if delta is not None]

    def merge(self, module: str, deltas: Sequence[Delta | None]) -> Delta:
        return merged(self.fold, module, self._entries(deltas), self.scale)

    def rows(self, module: str, deltas: Sequence[Delta | None]) -> RowsOf:
        return rows_of(self.fold, module, self._entries(deltas), self.scale)


class _Chained(_Whole):
    def merge(self, module: str, deltas: Sequence[Delta | None]) -> Delta:
        return slao_chain(module, deltas)


@dataclass(frozen=True)
class _Gained(_Whole):
    rule: CovarianceGain
    moments: Sequence[gain.Moments]

    def merge(self, module: str, deltas: Sequence[Delta | None]) -> Delta:
        rule = self.rule
        return gain.gained_sum(module, deltas, self.moments, rule.kappa, rule.ridge, rule.against)

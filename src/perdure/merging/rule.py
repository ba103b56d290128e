"""What every merge rule is: validated settings that prepare themselves for given updates, and then merge module by module.

A rule first finds whatever must be known of a whole update (TIES' thresholds). Prepared, `merge` gives a module's delta, low
rank where the rule allows it; `rows` gives the same a few rows at a time, without holding a dense matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from perdure.errors import ConfigError
from perdure.merging.covariance_gain import Moments
from perdure.merging.fold import Entry, Fold, RowsOf, Transform, merged, rows_of
from perdure.merging.linear import checked_weights, stacked_sum
from perdure.ops.lowrank import Delta, Update
from perdure.ops.tiling import tile
from perdure.settings.read import Settings

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
        source: link to the paper (or page) that defines the rule.
        low_rank: the result is low rank, so it exports exactly as an adapter.
        in_order: the result depends on the order of the updates.
        incremental: merging one by one in constant memory gives what merging all at once gives.
        pair: it merges exactly two updates.
    """

    source: ClassVar[str]
    low_rank: ClassVar[bool] = False
    in_order: ClassVar[bool] = False
    incremental: ClassVar[bool] = True
    pair: ClassVar[bool] = False

    def prepare(self, updates: Sequence[Update], moments: Sequence[Moments] | None = None) -> Prepared:
        """Look at whole updates, and at `moments` (one per update) where the rule uses input statistics."""
        raise NotImplementedError

    def check_count(self, name: str, count: int) -> None:
        """Raise a ConfigError unless the rule merges `count` updates."""
        if self.pair and count != 2:
            raise ConfigError(
                f"'{name}' merges exactly two adapters, not {count}; use another rule, or merge two by two."
            )


class LinearRule(Rule):
    """A weighted sum (linear.py)."""

    low_rank: ClassVar[bool] = True

    def factor(self, total_weight: float) -> float:
        """What the weighted sum is multiplied by, given the sum of the weights."""
        return 1.0

    def prepare(self, updates: Sequence[Update], moments: Sequence[Moments] | None = None) -> Prepared:
        weights = checked_weights(getattr(self, "weights", None), len(updates))
        factor = self.factor(sum(weights))

        def merge(_module: str, deltas: Deltas) -> Delta:
            present = [(d, factor * w) for d, w in zip(deltas, weights, strict=True) if d is not None]
            return stacked_sum([delta for delta, _ in present], [weight for _, weight in present])

        return Prepared(merge)


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

    def prepare(self, updates: Sequence[Update], moments: Sequence[Moments] | None = None) -> Prepared:
        weights = checked_weights(getattr(self, "weights", None), len(updates))
        transforms = [self.transform(update, index) for index, update in enumerate(updates)]

        def entries(_module: str, deltas: Deltas) -> list[Entry]:
            given = zip(deltas, weights, transforms, strict=True)
            return [Entry(delta, weight, transform) for delta, weight, transform in given if delta is not None]

        return self.folding(entries)

    def folding(self, entries: Callable[[str, Deltas], list[Entry]]) -> Prepared:
        """The rule prepared, given what is folded in at a module."""
        fold = self.fold()
        return Prepared(
            lambda module, deltas: merged(fold, module, entries(module, deltas), self.scale),
            lambda module, deltas: rows_of(fold, module, entries(module, deltas), self.scale),
        )

"""Rules that drop entries of each update, then add the updates up or let them elect a sign at every position.

    rule               keeps of each update                                                        equations
    ties               its largest entries, over the model or per module                           ties.py
    magnitude-prune    the same, then a weighted sum                                               ties.py, step 1
    breadcrumbs        its largest entries but for the outliers above them, per module             breadcrumbs.py
    dare               entries drawn at random                                                     dare.py
    della              entries drawn at random, in each row the larger ones more often             della.py

`keep_l1` then scales what is left of a module until its entries' magnitudes sum to what they did before (mergekit's `rescale`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

from pydantic import Field, model_validator
from torch import Tensor

from perdure.merging.breadcrumbs import between, bounds
from perdure.merging.dare import Consensus, drawn, dropping, random_mask
from perdure.merging.della import ranked_dropping
from perdure.merging.fold import Fold, Total, Transform
from perdure.merging.rule import FoldRule
from perdure.merging.ties import Divide, Elect, Scope, Vote, thresholds, trim
from perdure.ops.lowrank import Delta, Update
from perdure.ops.parallel import over_rows
from perdure.ops.tiling import Arena, tile, widened


class MagnitudePrune(FoldRule):
    """The weighted sum of the largest entries of each update (PEFT's magnitude_prune_svd)."""

    source: ClassVar[str] = "https://huggingface.co/docs/peft/developer_guides/model_merging"
    density: float = Field(default=0.2, gt=0, le=1)
    scope: Scope = "tensor"
    weights: tuple[float, ...] | None = None

    def fold(self) -> Fold:
        return Total()

    def transform(self, update: Update, index: int) -> Transform | None:
        return trim(thresholds(update, self.density, self.scope)) if self.density < 1 else None


class Sparse(FoldRule):
    """What the rules with an election share; `elect` and `divide`: ties.py."""

    weights: tuple[float, ...] | None = None
    elect: Elect = "weighted"
    divide: Divide = "weights"
    keep_l1: bool = False

    def fold(self) -> Fold:
        return Vote(self.elect, self.divide)

    def kept(self, update: Update, index: int) -> Transform | None:
        """What drops entries of the `index`-th update; None if all are kept."""
        raise NotImplementedError

    def transform(self, update: Update, index: int) -> Transform | None:
        kept = self.kept(update, index)
        return keeping_l1(update, kept) if kept and self.keep_l1 else kept


class Ties(Sparse):
    """Trim, elect a sign, average the entries that agree (ties.py)."""

    source: ClassVar[str] = "https://arxiv.org/abs/2306.01708"
    density: float = Field(default=0.2, gt=0, le=1)
    scope: Scope = "model"

    def kept(self, update: Update, index: int) -> Transform | None:
        return trim(thresholds(update, self.density, self.scope)) if self.density < 1 else None


class SumOrVote(Sparse):
    """A sparse rule that adds up, or elects as TIES does."""

    consensus: Consensus = "sum"

    def fold(self) -> Fold:
        return Total() if self.consensus == "sum" else super().fold()

    @model_validator(mode="after")
    def _election(self) -> Self:
        if self.consensus == "sum" and (self.elect, self.divide) != ("weighted", "weights"):
            raise ValueError("elect and divide belong to consensus=ties; a sum neither elects nor divides")
        return self


class Dare(SumOrVote):
    """Drop entries at random, rescale the rest, then sum or vote (dare.py)."""

    source: ClassVar[str] = "https://arxiv.org/abs/2311.03099"
    density: float = Field(default=0.5, gt=0, le=1)
    seed: int = 0
    rescale: bool = True

    def kept(self, update: Update, index: int) -> Transform | None:
        return dropping(random_mask(self.seed, index, self.density), self.density, self.rescale)


class Della(SumOrVote):
    """Drop small entries of a row more often than large ones, rescale the rest, then vote or sum (della.py)."""

    source: ClassVar[str] = "https://arxiv.org/abs/2406.11617"
    density: float = Field(default=0.5, gt=0, le=1)
    epsilon: float = Field(default=0.15, ge=0)
    seed: int = 0
    consensus: Consensus = "ties"
    rescale: bool = True

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if self.density < 1 and not self.epsilon < min(self.density, 1 - self.density):
            raise ValueError(
                "the share kept runs from density - epsilon to density + epsilon, which must lie within 0 and 1; choose a "
                f"smaller epsilon than {min(self.density, 1 - self.density):.3g}"
            )
        return self

    def kept(self, update: Update, index: int) -> Transform | None:
        if self.density == 1:
            return None
        return ranked_dropping(drawn(self.seed, index), self.density, self.epsilon, self.rescale)


class Breadcrumbs(SumOrVote):
    """Drop a module's outliers and its small entries, then sum or vote (breadcrumbs.py)."""

    source: ClassVar[str] = "https://arxiv.org/abs/2312.06795"
    density: float = Field(default=0.9, gt=0, le=1)
    gamma: float = Field(default=0.01, ge=0, lt=1)

    def kept(self, update: Update, index: int) -> Transform | None:
        if self.density == 1:
            return None
        return between({module: bounds(delta, self.density, self.gamma) for module, delta in update.items()})


def keeping_l1(update: Update, kept: Transform) -> Transform:
    """`kept`, then each module scaled so that the sum of its magnitudes is what it was before; one pass over the update."""
    ratios: Mapping[str, float] = {module: _l1_ratio(module, delta, kept) for module, delta in update.items()}

    def apply(module: str, first_row: int, rows: Tensor) -> Tensor:
        return kept(module, first_row, rows).mul_(ratios[module])

    return apply


def _l1_ratio(module: str, delta: Delta, kept: Transform) -> float:
    """The sum of magnitudes before over that after; 1 if nothing is left."""
    wide, sums = widened(delta), {}

    def work(start: int, stop: int, arena: Arena) -> None:
        rows = tile(wide, start, stop, arena)
        before = float(rows.abs().double().sum())
        sums[start] = before, float(kept(module, start, rows).abs().double().sum())

    over_rows((delta.shape[0], delta.shape[1]), work)
    before, after = (sum(part) for part in zip(*(sums[start] for start in sorted(sums)), strict=True))
    return before / after if after > 0 else 1.0

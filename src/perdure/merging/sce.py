"""SCE: select, calculate, erase (Wan et al., FuseChat, arXiv 2408.07990).

Symbols, per module: dW_i an update; V the variance of its entries over the updates, position by position.

    select      dW_i <- dW_i where V is among its `select` largest (a share of the positions where V > 0), else 0
    calculate   w_i = ||dW_i||_F^2 / sum_j ||dW_j||_F^2
    erase       gamma = sign(sum_i dW_i);  dW = sum_i w_i dW_i / sum_i w_i over { i : sign(dW_i) = gamma }

Settings: select 1, all positions, as in mergekit; the paper selects 10 %. An update that lacks the module counts as 0.
`equal_below`: updates whose mean squares sum to less than this weigh equally. mergekit has 1e-6 there, which the updates of most
adapters are below, so that its second step does nothing for them; 0 here.
The variance of one module at a time is held dense; three passes over it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from perdure.errors import ConfigError
from perdure.merging.covariance_gain import Moments
from perdure.merging.fold import Entry, Fold, Transform, whole
from perdure.merging.modules import with_zeros
from perdure.merging.rule import Deltas, FoldRule, Prepared
from perdure.merging.ties import Vote
from perdure.ops.lowrank import Delta, Update
from perdure.ops.magnitude import kth_magnitude
from perdure.ops.parallel import over_rows
from perdure.ops.tiling import Arena, tile, widened, working_dtype


class Sce(FoldRule):
    """Where the updates differ most: their mean, weighted by size, of the entries that agree in sign."""

    source: ClassVar[str] = "https://arxiv.org/abs/2408.07990"
    incremental: ClassVar[bool] = False
    select: float = Field(default=1.0, gt=0, le=1)
    equal_below: float = Field(default=0.0, ge=0)

    def fold(self) -> Fold:
        return Vote("total", "weights")

    def prepare(self, updates: Sequence[Update], moments: Sequence[Moments] | None = None) -> Prepared:
        if self.select < 1 and len(updates) < 2:
            raise ConfigError("'sce' selects where adapters differ, so it needs two or more; or give select=1.")

        def entries(module: str, deltas: Deltas) -> list[Entry]:
            given = with_zeros(deltas)
            kept = selected(given, self.select) if self.select < 1 else None
            return [
                Entry(delta, weight, kept)
                for delta, weight in zip(given, sizes(module, given, kept, self.equal_below), strict=True)
            ]

        return self.folding(entries)


def selected(deltas: Sequence[Delta], share: float) -> Transform:
    """The transform that keeps the positions of largest variance."""
    wide, (height, width) = [widened(delta) for delta in deltas], deltas[0].shape

    def variances(start: int, stop: int, _arena: Arena | None = None) -> Tensor:
        return torch.stack([tile(delta, start, stop) for delta in wide]).var(dim=0, unbiased=False)

    variance_OI = whole(variances, (height, width), working_dtype(wide[0]))
    keep = int(share * int(torch.count_nonzero(variance_OI)))
    threshold = kth_magnitude([variance_OI], keep) if keep else torch.inf

    def apply(_module: str, first_row: int, rows: Tensor) -> Tensor:
        variance = variance_OI[first_row : first_row + rows.shape[0]]
        return rows.mul_((variance >= threshold) & (variance > 0))

    return apply


def sizes(module: str, deltas: Sequence[Delta], kept: Transform | None, equal_below: float) -> list[float]:
    """w_i: each update's share of the squares."""
    squares = [_squares(module, delta, kept) for delta in deltas]
    positions = deltas[0].shape[0] * deltas[0].shape[1]
    if sum(squares) == 0 or sum(squares) / positions < equal_below:
        return [1 / len(squares)] * len(squares)
    return [one / sum(squares) for one in squares]


def _squares(module: str, delta: Delta, kept: Transform | None) -> float:
    wide, found = widened(delta), {}

    def work(start: int, stop: int, arena: Arena) -> None:
        rows = tile(wide, start, stop, arena)
        found[start] = float((kept(module, start, rows) if kept else rows).double().square().sum())

    over_rows((delta.shape[0], delta.shape[1]), work)
    return sum(found[start] for start in sorted(found))

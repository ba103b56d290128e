"""Dense merge rules as folds: what a rule remembers at every position, and how one more update changes it.

Legend: O output features, I input features, N rows of a tile.

A dense rule (max-magnitude, TIES, ...) decides position by position. Written as a fold over the updates it needs a few
numbers a position, whatever the number of updates, so that
- merging all at once works on row tiles, no dense [O, I] input is ever formed, and
- merging one by one (`perdure merge --into`) keeps the same numbers on disk and gives the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from perdure.ops.lowrank import Delta
from perdure.ops.tiling import row_tiles, tile, widened, working_dtype

Slots = dict[str, Tensor]
"""Slot name -> [N, I]: what a rule remembers at the positions of a tile; empty before the first update."""

Transform = Callable[[str, int, Tensor], Tensor]
"""(module, first row, tile [N, I]) -> the tile as the rule is to see it (trimmed, masked); may write to it.
Tiles of a module come in order from row 0, each once."""


class Fold(Protocol):
    """One dense rule."""

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the numbers it keeps at every position."""
        ...

    def add(self, slots: Slots, tile: Tensor, weight: float) -> None:
        """Take one more update's tile [N, I] into the slots (fill them, if they are empty); `tile` becomes the fold's own."""
        ...

    def result(self, slots: Slots) -> Tensor:
        """The merged tile [N, I]."""
        ...


class Total:
    """The weighted sum; what DARE does after dropping entries."""

    slots = ("total",)

    def add(self, slots: Slots, tile: Tensor, weight: float) -> None:
        if not slots:
            slots["total"] = tile.mul_(weight) if weight != 1 else tile
        else:
            slots["total"].add_(tile, alpha=weight)

    def result(self, slots: Slots) -> Tensor:
        return slots["total"]


@dataclass(frozen=True, eq=False)
class Entry:
    """One update at one module, as a rule is to see it."""

    delta: Delta
    weight: float = 1.0
    transform: Transform | None = None


def fold_rows(fold: Fold, slots: Slots, module: str, entries: Sequence[Entry], start: int, stop: int) -> None:
    """Take rows `start:stop` of every entry into `slots`, in order."""
    for entry in entries:
        rows = tile(entry.delta, start, stop)
        if entry.transform is not None:
            rows = entry.transform(module, start, rows)
        fold.add(slots, rows, entry.weight)


def merged_tiles(fold: Fold, module: str, entries: Sequence[Entry]) -> Iterator[tuple[int, int, Tensor]]:
    """(start, stop, merged rows [N, I]) from the first row to the last."""
    entries = [replace(entry, delta=widened(entry.delta)) for entry in entries]
    height, width = entries[0].delta.shape
    for start, stop in row_tiles((height, width)):
        slots: Slots = {}
        fold_rows(fold, slots, module, entries, start, stop)
        yield start, stop, fold.result(slots)


def merged(fold: Fold, module: str, entries: Sequence[Entry], scale: float = 1.0) -> Tensor:
    """`scale` times the merged matrix [O, I]; beside it only tiles are in memory."""
    matrix_OI = torch.empty(tuple(entries[0].delta.shape), dtype=working_dtype(entries[0].delta))
    for start, stop, rows in merged_tiles(fold, module, entries):
        torch.mul(rows, scale, out=matrix_OI[start:stop])
    return matrix_OI

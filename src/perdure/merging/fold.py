"""Dense merge rules as folds: what a rule remembers at every position, and how one more update changes it.

Legend: O output features, I input features, N rows of a tile.

A dense rule (max-magnitude, TIES, ...) decides position by position. Written as a fold over the updates it needs a few
numbers per position, however many updates there are, so that
- merging all at once works on row tiles and never forms a dense [O, I] input, and
- merging one by one (`perdure merge --into`) keeps the same numbers on disk and gives the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Protocol

import torch
from torch import Tensor

from perdure.ops.lowrank import Delta
from perdure.ops.parallel import over_rows
from perdure.ops.tiling import Arena, tile, widened, working_dtype

Slots = dict[str, Tensor]
"""Slot name -> [N, I]: what a rule remembers at the positions of a tile; empty before the first update."""

Transform = Callable[[str, int, Tensor], Tensor]
"""(module, first row, tile [N, I]) -> the tile to fold in (trimmed, masked); may modify it in place. Tiles come in any order,
several at once."""


RowsOf = Callable[..., Tensor]
"""(start, stop, arena=None) -> rows `start:stop` [N, I] of a merged matrix, writable, in memory of `arena` if given; may be
called from several threads."""


class Fold(Protocol):
    """One dense rule."""

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the numbers it keeps at every position."""
        ...

    def add(self, slots: Slots, tile: Tensor, weight: float, arena: Arena) -> None:
        """Fold one more update's tile [N, I] into the slots (or fill them, if empty); takes over `tile`."""

    def result(self, slots: Slots, arena: Arena) -> Tensor:
        """The merged tile [N, I]; may overwrite the slots."""
        ...


class Total:
    """The weighted sum, for DARE after dropping entries."""

    slots = ("total",)

    def add(self, slots: Slots, tile: Tensor, weight: float, arena: Arena) -> None:
        if not slots:
            slots["total"] = tile.mul_(weight) if weight != 1 else tile
        else:
            slots["total"].add_(tile, alpha=weight)

    def result(self, slots: Slots, arena: Arena) -> Tensor:
        return slots["total"]


@dataclass(frozen=True, eq=False)
class Entry:
    """One update at one module, as a fold takes it."""

    delta: Delta
    weight: float = 1.0
    transform: Transform | None = None


def fold_rows(
    fold: Fold, slots: Slots, module: str, entries: Sequence[Entry], start: int, stop: int, arena: Arena
) -> None:
    """Fold rows `start:stop` of every entry into `slots`, in order."""
    for entry in entries:
        rows = tile(entry.delta, start, stop, arena)
        if entry.transform is not None:
            rows = entry.transform(module, start, rows)
        fold.add(slots, rows, entry.weight, arena)


def rows_of(fold: Fold, module: str, entries: Sequence[Entry], scale: float = 1.0) -> RowsOf:
    """`scale` times the merged matrix [O, I], by rows."""
    dtype = _common_dtype(entries)  # a fold writes one update's tile over another's
    entries = [replace(entry, delta=widened(entry.delta, dtype)) for entry in entries]

    def rows(start: int, stop: int, arena: Arena | None = None) -> Tensor:
        arena, slots = arena or Arena(), {}
        fold_rows(fold, slots, module, entries, start, stop, arena)
        merged = fold.result(slots, arena)
        return merged.mul_(scale) if scale != 1 else merged

    return rows


def whole(rows: RowsOf, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    """The matrix [O, I] that `rows` gives; apart from it only tiles are in memory."""
    matrix_OI = torch.empty(shape, dtype=dtype)

    def fill(start: int, stop: int, arena: Arena) -> None:
        matrix_OI[start:stop] = rows(start, stop, arena)

    over_rows(shape, fill)
    return matrix_OI


def merged(fold: Fold, module: str, entries: Sequence[Entry], scale: float = 1.0) -> Tensor:
    """`scale` times the merged matrix [O, I]."""
    height, width = entries[0].delta.shape
    return whole(rows_of(fold, module, entries, scale), (height, width), _common_dtype(entries))


def _common_dtype(entries: Sequence[Entry]) -> torch.dtype:
    """float64 if any update is stored so, else fp32."""
    return reduce(torch.promote_types, [working_dtype(entry.delta) for entry in entries])

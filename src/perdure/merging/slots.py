"""What merging one by one keeps of a module, for each kind of rule; read and written as tensors `<module>/<slot>`.

dense rules   the fold's slots, [O, I] each, however many updates there are
linear rules  the weighted sum: A [K, I] and B [O, K] while these are smaller than the matrix, then `dense` [O, I]
slao          the merged A [R, I] and B [O, R]
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial, reduce

import torch
from torch import Tensor

from perdure.adapters.folder import Adapter
from perdure.errors import AdapterError
from perdure.merging.fold import Entry, RowsOf, Transform, fold_rows, whole
from perdure.merging.rules import FoldRule, LinearRule, Rule, Slao
from perdure.merging.slao import slao, slao_missing
from perdure.merging.tensor_files import TensorReader, TensorWriter
from perdure.ops.finite import finite
from perdure.ops.lowrank import Delta, LowRank
from perdure.ops.parallel import over_rows
from perdure.ops.tiling import Arena, tile

Shape = tuple[int, int]
Layout = dict[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True, eq=False)
class Added:
    """The adapter to merge in, how many came before, its weight, and the transform of its tiles."""

    adapter: Adapter
    count: int
    weight: float
    transform: Transform | None


class Keeper:
    """What is kept for one kind of rule; `old` is None before the first adapter."""

    def layout(self, old: TensorReader | None, module: str, shape: Shape, added: Added) -> Layout:
        """Names, dtypes and shapes of what will be kept of a module."""
        raise NotImplementedError

    def extend(self, old: TensorReader | None, new: TensorWriter, module: str, shape: Shape, added: Added) -> None:
        """Write what is kept of a module once the adapter is merged in."""
        raise NotImplementedError

    def merge(self, kept: TensorReader, module: str, shape: Shape, total_weight: float) -> Delta:
        """The merged delta [O, I]."""
        raise NotImplementedError

    def rows(self, kept: TensorReader, module: str, shape: Shape, total_weight: float) -> RowsOf:
        """The same, by rows."""
        return partial(tile, self.merge(kept, module, shape, total_weight))


def keeper_for(rule: Rule) -> Keeper:
    """The keeper of a rule that merges one by one."""
    if isinstance(rule, FoldRule):
        return FoldKeeper(rule)
    if isinstance(rule, LinearRule):
        return LinearKeeper(rule)
    assert isinstance(rule, Slao), rule
    return SlaoKeeper()


@dataclass(frozen=True)
class FoldKeeper(Keeper):
    """The slots of a dense rule."""

    rule: FoldRule

    def layout(self, old: TensorReader | None, module: str, shape: Shape, added: Added) -> Layout:
        return {f"{module}/{slot}": ("F32", shape) for slot in self.rule.fold().slots}

    def extend(self, old: TensorReader | None, new: TensorWriter, module: str, shape: Shape, added: Added) -> None:
        fold, delta = self.rule.fold(), added.adapter.get(module)
        keys = {slot: f"{module}/{slot}" for slot in fold.slots}
        known = old if old is not None and all(key in old.tensors for key in keys.values()) else None
        if delta is None:
            assert known is not None, "a module is either in the state or in the new adapter"
            for key in keys.values():
                new.copy(key, known)
            return
        single = LowRank(delta.A.float(), delta.B.float())  # as the slots are
        entries = [Entry(single, added.weight, added.transform)]

        def work(start: int, stop: int, arena: Arena) -> None:
            slots = {s: known.rows(key, start, stop, arena) for s, key in keys.items()} if known is not None else {}
            fold_rows(fold, slots, module, entries, start, stop, arena)
            for slot, key in keys.items():
                new.write_rows(key, start, slots[slot])

        over_rows(shape, work)

    def merge(self, kept: TensorReader, module: str, shape: Shape, total_weight: float) -> Delta:
        return whole(self.rows(kept, module, shape, total_weight), shape)

    def rows(self, kept: TensorReader, module: str, shape: Shape, total_weight: float) -> RowsOf:
        fold, scale = self.rule.fold(), self.rule.scale

        def rows(start: int, stop: int, arena: Arena | None = None) -> Tensor:
            arena = arena or Arena()
            slots = {slot: kept.rows(f"{module}/{slot}", start, stop, arena) for slot in fold.slots}
            merged = fold.result(slots, arena)
            return merged.mul_(scale) if scale != 1 else merged

        return rows


@dataclass(frozen=True)
class LinearKeeper(Keeper):
    """The weighted sum of a linear rule."""

    rule: LinearRule

    def layout(self, old: TensorReader | None, module: str, shape: Shape, added: Added) -> Layout:
        (height, width), new = shape, added.adapter.modules.get(module)
        if old is not None and f"{module}/dense" in old.tensors:
            return {f"{module}/dense": ("F32", shape)}
        kept = old.tensors.get(f"{module}/A") if old else None
        rank = (kept.height if kept else 0) + (new.rank if new else 0)
        if rank * (height + width) > height * width:
            return {f"{module}/dense": ("F32", shape)}
        return _factors_layout(module, shape, rank)

    def extend(self, old: TensorReader | None, new: TensorWriter, module: str, shape: Shape, added: Added) -> None:
        parts = [_kept(old, module)] if old is not None else []
        if (delta := added.adapter.get(module)) is not None:
            parts.append(LowRank(delta.A.float(), delta.B.float() * added.weight))
        present = [part for part in parts if part is not None]
        if f"{module}/dense" in new.tensors:

            def work(start: int, stop: int, arena: Arena) -> None:
                parts = [tile(part, start, stop, arena) for part in present]
                new.write_rows(f"{module}/dense", start, reduce(Tensor.add_, parts))

            over_rows(shape, work)
            return
        factors = [part for part in present if isinstance(part, LowRank)]
        _write_factors(new, module, torch.cat([p.A for p in factors]), torch.cat([p.B for p in factors], dim=1))

    def merge(self, kept: TensorReader, module: str, shape: Shape, total_weight: float) -> Delta:
        delta, factor = _kept(kept, module), self.rule.factor(total_weight)
        assert delta is not None
        return LowRank(delta.A, delta.B * factor) if isinstance(delta, LowRank) else delta.mul_(factor)


class SlaoKeeper(Keeper):
    """SLAO's merged factors."""

    def layout(self, old: TensorReader | None, module: str, shape: Shape, added: Added) -> Layout:
        rank = added.adapter.modules[module].rank if module in added.adapter.modules else 0
        if rank == 0 or (old is not None and f"{module}/A" not in old.tensors):
            raise slao_missing(module, added.count + 1 if rank == 0 else 1)
        return _factors_layout(module, shape, rank)

    def extend(self, old: TensorReader | None, new: TensorWriter, module: str, shape: Shape, added: Added) -> None:
        before = _kept(old, module) if old is not None else None
        assert before is None or isinstance(before, LowRank)
        merged = slao(before, added.adapter[module], added.count + 1, module)
        _write_factors(new, module, merged.A, merged.B)

    def merge(self, kept: TensorReader, module: str, shape: Shape, total_weight: float) -> Delta:
        delta = _kept(kept, module)
        assert delta is not None
        return delta


def _write_factors(new: TensorWriter, module: str, A: Tensor, B: Tensor) -> None:
    new.write_rows(f"{module}/A", 0, A)
    new.write_rows(f"{module}/B", 0, B)
    if not finite(LowRank(A, B)):
        raise AdapterError(
            f"With this adapter the merged update of '{module}' overflows: it has NaN or Inf. The adapter or its weight is too "
            "large; the state is unchanged."
        )


def _factors_layout(module: str, shape: Shape, rank: int) -> Layout:
    return {f"{module}/A": ("F32", (rank, shape[1])), f"{module}/B": ("F32", (shape[0], rank))}


def _kept(kept: TensorReader, module: str) -> Delta | None:
    def matrix(slot: str) -> Tensor:
        return kept.rows(f"{module}/{slot}", 0, kept.tensors[f"{module}/{slot}"].height)

    if f"{module}/dense" in kept.tensors:
        return matrix("dense")
    return LowRank(matrix("A"), matrix("B")) if f"{module}/A" in kept.tensors else None

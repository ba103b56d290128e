"""Several updates module by module: which modules they have, and each update's delta at one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from perdure.errors import AdapterError
from perdure.ops.lowrank import Delta, LowRank, Update

Merged = TypeVar("Merged", bound=Delta)


def module_names(updates: Sequence[Update]) -> list[str]:
    """Every module of any update, in order of first appearance."""
    return list(dict.fromkeys(name for update in updates for name in update))


def at_module(updates: Sequence[Update], module: str) -> list[Delta | None]:
    """Each update's delta at `module`, None (zero) where it has none; an AdapterError if the shapes, so the bases, differ."""
    deltas = [update.get(module) for update in updates]
    shapes = {tuple(delta.shape): index for index, delta in reversed(list(enumerate(deltas))) if delta is not None}
    if len(shapes) > 1:
        (one, first), (other, second) = sorted(shapes.items(), key=lambda item: item[1])[:2]
        raise AdapterError(
            f"Updates {first + 1} and {second + 1} are of different bases: module '{module}' is {one[0]} x {one[1]} in "
            f"the first and {other[0]} x {other[1]} in the second. Only updates of one base can be merged or compared."
        )
    return deltas


def merge_modules(
    updates: Sequence[Update], merge: Callable[[str, list[Delta | None]], Merged]
) -> Iterator[tuple[str, Merged]]:
    """(module, merged delta) one after another; `merge(module, deltas)` gets one module of all updates."""
    for module in module_names(updates):
        yield module, merge(module, at_module(updates, module))


def with_zeros(deltas: Sequence[Delta | None]) -> list[Delta]:
    """One module's deltas, with a zero of rank 0 for each update that lacks it; at least one has it."""
    height, width = next(delta.shape for delta in deltas if delta is not None)
    nothing = LowRank(torch.zeros(0, width), torch.zeros(height, 0))
    return [nothing if delta is None else delta for delta in deltas]

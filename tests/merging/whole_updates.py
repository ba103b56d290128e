"""TIES, DARE and MagMax of whole updates at once, for tests by hand; with masks that can be given."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from perdure.merging.dare import Consensus, Mask, dropping, random_mask
from perdure.merging.fold import Entry, Total, merged
from perdure.merging.linear import checked_weights
from perdure.merging.magmax import KeepFarthest
from perdure.merging.modules import merge_modules
from perdure.merging.ties import Scope, Vote, thresholds, trim
from perdure.ops.lowrank import Delta, Update


def ties_updates(
    updates: Sequence[Update],
    density: float = 0.2,
    scope: Scope = "model",
    weights: Sequence[float] | None = None,
    scale: float = 1.0,
) -> dict[str, Tensor]:
    """Module by module the TIES merge, dense [O, I]; a module missing in an update does not vote.

    Args:
        density: share of entries kept, in (0, 1].
        scale: lambda.
    """
    weights = checked_weights(weights, len(updates))
    trims = [trim(thresholds(update, density, scope)) for update in updates]

    def merge(module: str, deltas: list[Delta | None]) -> Tensor:
        present = zip(deltas, weights, trims, strict=True)
        return merged(Vote(), module, [Entry(d, w, t) for d, w, t in present if d is not None], scale)

    return dict(merge_modules(updates, merge))


def dare_updates(
    updates: Sequence[Update],
    density: float,
    seed: int = 0,
    consensus: Consensus = "sum",
    rescale: bool = True,
    weights: Sequence[float] | None = None,
    scale: float = 1.0,
    masks: Sequence[Mask] | None = None,
) -> dict[str, Tensor]:
    """Module by module the DARE merge, dense [O, I]; `masks`, one an update, replace the random ones."""
    weights = checked_weights(weights, len(updates))
    masks = masks or [random_mask(seed, index, density) for index in range(len(updates))]
    drops = [dropping(mask, density, rescale) for mask in masks]

    def merge(module: str, deltas: list[Delta | None]) -> Tensor:
        present = zip(deltas, weights, drops, strict=True)
        entries = [Entry(d, w, t) for d, w, t in present if d is not None]
        return merged(Total() if consensus == "sum" else Vote(), module, entries, scale)

    return dict(merge_modules(updates, merge))


def magmax_updates(updates: Sequence[Update], scale: float = 0.5) -> dict[str, Tensor]:
    """Module by module the MagMax merge, dense [O, I], of updates in the order they were trained."""

    def merge(module: str, deltas: list[Delta | None]) -> Tensor:
        return merged(KeepFarthest(), module, [Entry(delta) for delta in deltas if delta is not None], scale)

    return dict(merge_modules(updates, merge))

"""SLAO's merge of factors: the latest A, and a slow average of B (arXiv 2512.23017).

Symbols: A_t [R, I], B_t [O, R] the factors of task t as trained; B the merged one.

    A <- A_t,   B <- B + (B_t - B) / sqrt(t),   t = 1, 2, ...

Meant for adapters that each start from the one before (A_t orthonormalised from A_{t-1}, B_t from B_{t-1}:
perdure.methods.slao); only then do old columns of B keep their meaning under the new A. For adapters trained separately it is
defined but unfounded. Works on factors, so all updates must have one rank; scaling is inside B.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from perdure.errors import AdapterError
from perdure.ops.lowrank import Delta, LowRank


def slao(merged: LowRank | None, new: Delta, count: int, module: str = "") -> LowRank:
    """The merged factors after the `count`-th task (from 1), given those before (None for the first)."""
    if not isinstance(new, LowRank):
        raise AdapterError(f"SLAO merges factors, but update {count} is dense at module '{module}'; use another rule.")
    if merged is None:
        return new
    if merged.B.shape != new.B.shape or merged.A.shape != new.A.shape:
        raise AdapterError(
            f"SLAO needs one rank: at module '{module}' update {count} has rank {new.rank}, those before {merged.rank}. "
            "Use another rule, or train all adapters with one rank."
        )
    return LowRank(new.A, merged.B + (new.B - merged.B) / math.sqrt(count))


def slao_missing(module: str, count: int) -> AdapterError:
    """The error for an update that lacks a module."""
    return AdapterError(f"SLAO needs every module in every update, but update {count} has no '{module}'.")


def slao_chain(module: str, deltas: Sequence[Delta | None]) -> LowRank:
    """One module merged over all updates, in the order they were trained; an AdapterError if one lacks it."""
    merged: LowRank | None = None
    for count, delta in enumerate(deltas, 1):
        if delta is None:
            raise slao_missing(module, count)
        merged = slao(merged, delta, count, module)
    assert merged is not None
    return merged

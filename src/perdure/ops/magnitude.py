"""The exact magnitude threshold that keeps a share of the entries, without sorting or holding them all.

Quantiles of a random sample bracket the k-th largest of n entries. One pass over row tiles counts the entries above the
bracket and collects those inside it (well under 1 %); the answer is one of these. A bracket that misses is widened: the
result never depends on the sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

import numpy as np
import torch
from torch import Tensor

from perdure.ops.lowrank import Delta
from perdure.ops.parallel import on_one_core, over_rows
from perdure.ops.tiling import Arena, entries, tile, widened

SAMPLE = 1 << 17
"""Sampled positions: they bracket the answer within about 1 %. Up to four times as many entries are all collected."""


def magnitude_threshold(deltas: Collection[Delta], density: float) -> float:
    """The k-th largest |entry| over all `deltas` together, k = max(1, floor(density * number of entries)).

    Keeping |entry| >= threshold keeps k entries (more on exact ties). The threshold is 0 for density 1 or no entries.

    Args:
        deltas: one module's update, or all modules of an update (the scope "model" of TIES). May read them again in
            every pass: only one is held at a time.
        density: share of entries to keep, in (0, 1].
    """
    if not 0 < density <= 1:
        raise ValueError(f"density is a share in (0, 1], got {density}")
    return kth_magnitude(deltas, max(1, math.floor(density * sum(math.prod(delta.shape) for delta in deltas))))


def kth_magnitude(deltas: Collection[Delta], keep: int) -> float:
    """The `keep`-th largest |entry| over all `deltas` together, from 1; 0 if that is all of them or there are none."""
    sizes = [math.prod(delta.shape) for delta in deltas]
    total = sum(sizes)
    if total == 0 or keep == total:
        return 0.0
    width = 4.0
    while True:
        with on_one_core():
            low, high = _bracket(deltas, sizes, keep, width)
        above, inside = _count_and_collect(deltas, low, high)
        if above < keep <= above + inside.numel():
            return float(inside.kthvalue(inside.numel() - (keep - above) + 1).values)
        # entries at `low` are only counted: in a sparse update most are exactly 0 and would fill the memory
        if 0 < keep - above - inside.numel() <= _count_at(deltas, low):
            return low
        if math.isinf(width):  # everything was counted: only NaN is neither above, at nor below a number
            raise ValueError("an update with NaN has no magnitude threshold")
        width = math.inf if width > 100 else width * 8


def _bracket(deltas: Collection[Delta], sizes: list[int], keep: int, width: float) -> tuple[float, float]:
    """(low, high) around the k-th largest: sample quantiles `width` standard errors apart on each side."""
    total = sum(sizes)
    if total <= 4 * SAMPLE or math.isinf(width):
        return -1.0, math.inf
    sample = []
    for delta, size in zip(deltas, sizes, strict=True):
        generator, shape = torch.Generator().manual_seed(0), (max(1, SAMPLE * size // total),)
        places = (torch.randint(side, shape, generator=generator) for side in delta.shape)
        sample.append(entries(delta, *places).abs())
    ordered = torch.cat(sample).sort(descending=True).values
    share = keep / total
    margin = width * math.sqrt(share * (1 - share) * ordered.numel()) + 1
    place = share * ordered.numel()
    first, last = math.floor(place - margin), math.ceil(place + margin)
    high = float(ordered[first]) if first >= 0 else math.inf
    low = float(ordered[last]) if last < ordered.numel() else -1.0
    return low, high


def _count_and_collect(deltas: Collection[Delta], low: float, high: float) -> tuple[int, Tensor]:
    """How many |entries| exceed `high`, and those in (low, high]."""
    above: list[int] = []
    inside: list[Tensor] = []

    def look(magnitudes: Tensor, mask: Tensor) -> None:
        above.append(int(torch.gt(magnitudes, high, out=mask).sum()))  # in fp32: exact up to 2^24 per tile
        if magnitudes.device.type == "cpu":  # numpy selects a few of many five times faster than torch
            array = magnitudes.numpy()
            inside.append(torch.from_numpy(array[np.flatnonzero((array > low) & (array <= high))]))
        else:
            inside.append(magnitudes[(magnitudes > low) & (magnitudes <= high)])

    _over_magnitudes(deltas, look)
    return sum(above), torch.cat(inside)


def _count_at(deltas: Collection[Delta], value: float) -> int:
    """How many |entries| are exactly `value`."""
    counts: list[int] = []
    _over_magnitudes(deltas, lambda each, mask: counts.append(int(torch.eq(each, value, out=mask).sum())))
    return sum(counts)


def _over_magnitudes(deltas: Collection[Delta], look: Callable[[Tensor, Tensor], None]) -> None:
    """Call `look(|entries|, mask memory)` on every tile: comparing into floats is four times faster than into bools.

    It runs in several threads; appending to a list is safe.
    """
    for delta in map(widened, deltas):

        def work(start: int, stop: int, arena: Arena, delta: Delta = delta) -> None:
            magnitudes = tile(delta, start, stop, arena).abs_()
            look(magnitudes.view(-1), arena.like(magnitudes).view(-1))

        over_rows((delta.shape[0], delta.shape[1]), work)

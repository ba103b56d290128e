"""Subsets of lowest pairwise cost: every one where that is feasible, else greedy with exchange; and an order within one.

The cost of a subset is the sum of `cost[i, j]` over its pairs; `cost` is [T, T], symmetric, with a zero diagonal.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

CHUNK = 100_000
"""Subsets whose costs are summed at once."""


def pair_sum(cost: Tensor, subset: Sequence[int]) -> float:
    """The cost of a subset."""
    return float(cost[list(subset)][:, list(subset)].sum()) / 2


def best_subset(cost: Tensor, length: int) -> list[int]:
    """The cheapest of all subsets, tried in chunks; the first of equals."""
    best, found = math.inf, list(range(length))
    subsets: Iterable[tuple[int, ...]] = itertools.combinations(range(len(cost)), length)
    while part := list(itertools.islice(subsets, CHUNK)):
        index = torch.tensor(part)
        sums = sum(
            (cost[index[:, i], index[:, j]] for i, j in itertools.combinations(range(length), 2)),
            torch.zeros(len(part), dtype=cost.dtype),
        )
        lowest = int(sums.argmin())
        if float(sums[lowest]) < best:
            best, found = float(sums[lowest]), list(part[lowest])
    return found


def greedy_subset(cost: Tensor, length: int) -> list[int]:
    """From each element: add what costs least, then exchange one inside for one outside while that helps; the cheapest of all."""
    starts = (_exchanged(cost, _grown(cost, start, length)) for start in range(len(cost)))
    return min(starts, key=lambda subset: pair_sum(cost, subset))


def _grown(cost: Tensor, start: int, length: int) -> list[int]:
    subset = [start]
    while len(subset) < length:
        to_subset = cost[subset].sum(dim=0)
        to_subset[subset] = math.inf
        subset.append(int(to_subset.argmin()))
    return subset


def _exchanged(cost: Tensor, subset: list[int]) -> list[int]:
    while True:
        outside = [i for i in range(len(cost)) if i not in subset]
        if not outside:
            return subset
        to_subset = cost[:, subset].sum(dim=1)
        # change of the sum when `inside` leaves and `other` comes: other's costs to the rest, less inside's
        change = to_subset[outside][None, :] - cost[subset][:, outside] - to_subset[subset][:, None]
        flat = int(change.argmin())
        inside, other = divmod(flat, len(outside))
        if float(change[inside, other]) >= -1e-12:
            return subset
        subset = [*subset[:inside], *subset[inside + 1 :], outside[other]]


def cheapest_first(cost: Tensor, subset: Sequence[int]) -> list[int]:
    """The subset in an order: the cheapest pair first, then each time what costs least together with all before."""
    first, second = min(itertools.combinations(sorted(subset), 2), key=lambda pair: float(cost[pair]))
    order, left = [first, second], [i for i in sorted(subset) if i not in (first, second)]
    while left:
        cheapest = min(left, key=lambda i: float(cost[order, i].sum()))
        order.append(cheapest)
        left.remove(cheapest)
    return order

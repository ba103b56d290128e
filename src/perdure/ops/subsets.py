"""Subsets of lowest pairwise cost, by trying all or greedily with exchange; and an order within a subset.

The cost of a subset is the sum of `cost[i, j]` over its pairs; `cost` is [T, T], symmetric, with a zero diagonal.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

CHUNK = 100_000
"""Subsets whose costs are summed at once."""


def pair_sum(cost: Tensor, subset: Sequence[int]) -> float:
    """The cost of a subset."""
    return float(cost[list(subset)][:, list(subset)].sum()) / 2


def best_subset(cost: Tensor, length: int) -> list[int]:
    """The cheapest of all subsets, the first of equals; all are tried, in chunks."""
    lowest_sum, best = math.inf, list(range(length))
    subsets = itertools.combinations(range(len(cost)), length)
    while chunk := list(itertools.islice(subsets, CHUNK)):
        index = torch.tensor(chunk)
        sums = torch.zeros(len(chunk), dtype=cost.dtype)
        for i, j in itertools.combinations(range(length), 2):
            sums += cost[index[:, i], index[:, j]]
        lowest = int(sums.argmin())
        if float(sums[lowest]) < lowest_sum:
            lowest_sum, best = float(sums[lowest]), list(chunk[lowest])
    return best


def greedy_subset(cost: Tensor, length: int) -> list[int]:
    """The cheapest of those grown from each element: add what costs least, then swap one for another while that helps."""
    subsets = (_exchanged(cost, _grown(cost, start, length)) for start in range(len(cost)))
    return min(subsets, key=lambda subset: pair_sum(cost, subset))


def _grown(cost: Tensor, start: int, length: int) -> list[int]:
    subset = [start]
    while len(subset) < length:
        to_subset = cost[subset].sum(dim=0)
        to_subset[subset] = math.inf
        subset.append(int(to_subset.argmin()))
    return subset


def _exchanged(cost: Tensor, subset: list[int]) -> list[int]:
    while outside := [i for i in range(len(cost)) if i not in subset]:
        to_subset = cost[:, subset].sum(dim=1)
        # change of the sum when `inside` leaves and `other` joins: the other's costs to the rest, less those of `inside`
        change = to_subset[outside][None, :] - cost[subset][:, outside] - to_subset[subset][:, None]
        inside, other = divmod(int(change.argmin()), len(outside))
        if float(change[inside, other]) >= -1e-12:
            break
        subset = [*subset[:inside], *subset[inside + 1 :], outside[other]]
    return subset


def cheapest_first(cost: Tensor, subset: Sequence[int]) -> list[int]:
    """The subset in order: the cheapest pair first, then each time the element that costs least with all before it."""
    order = list(min(itertools.combinations(sorted(subset), 2), key=lambda pair: float(cost[pair])))
    while left := [i for i in sorted(subset) if i not in order]:
        order.append(min(left, key=lambda i: float(cost[order, i].sum())))
    return order

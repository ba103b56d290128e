"""Which method is better, and how sure: a paired bootstrap over orders, seeds and examples, corrected for many comparisons.

    m_r = sum over cells c of w_rc * mean over tasks t of (sum over examples e of v_rte * right_mcte)

where w is a resample of orders times a resample of seeds, and v_t a resample of the task's test examples. All methods share the
resamples, so differences are paired; an example has the same weight wherever its task appears. Where orders have different
seeds (an incomplete sweep), seeds are resampled within each order, and every order has the same weight, however many seeds it
has. With two or three orders and seeds the interval covers the noise of examples well; that of orders and seeds it makes too
narrow.

Legend: C cells (an order and a seed), E test examples of a task, R resamples.
Source: Efron and Tibshirani 1993 (bootstrap); Owen 2007, arXiv 0712.1111 (several crossed factors); Holm 1979 (correction).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perdure.errors import DataError

Values = NDArray[np.float64]
OrderAndSeed = tuple[str, int]
"""An order (with its suite) and a seed."""


@dataclass(frozen=True)
class Outcome:
    """What one run answered at the end.

    Args:
        method: the row it belongs to.
        cell: its order and seed.
        right: task -> [E], 1.0 where the final model was right, or another value of its answers; or the task's score alone, [1].
    """

    method: str
    cell: OrderAndSeed
    right: Mapping[str, Values]


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % bootstrap interval (percentiles)."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """`first` minus `second`; `p` is two-sided, `p_corrected` after Holm over all comparisons made together."""

    first: str
    second: str
    difference: Interval
    p: float
    p_corrected: float


@dataclass(frozen=True)
class Compared:
    """Final average accuracy of every method over the cells that all of them have."""

    cells: Sequence[OrderAndSeed]
    intervals: Mapping[str, Interval]
    comparisons: Sequence[Comparison]


def compare(
    outcomes: Iterable[Outcome], reference: str | None = None, *, resamples: int = 4000, seed: int = 0
) -> Compared:
    """Intervals of every method, and every other method compared with `reference` (default: the best mean).

    Raises:
        DataError: no cell that every method has, two runs of a method in one cell, or runs of one task scored on different
            numbers of examples.
    """
    by_cell: dict[tuple[str, OrderAndSeed], Outcome] = {}
    for outcome in outcomes:
        if by_cell.setdefault((outcome.method, outcome.cell), outcome) is not outcome:
            raise DataError(
                f"Two runs of '{outcome.method}' have order '{outcome.cell[0]}' and seed {outcome.cell[1]}; they differ in "
                "something else, so the report cannot tell them apart. Compare them in separate reports."
            )
    methods = list(dict.fromkeys(method for method, _ in by_cell))
    cells = [cell for cell in dict.fromkeys(c for _, c in by_cell) if all((m, cell) in by_cell for m in methods)]
    if not cells:
        raise DataError("No order and seed that every method has; finish the sweep, or compare fewer methods.")
    runs = {method: [by_cell[method, cell] for cell in cells] for method in methods}
    drawn = _Resamples(cells, runs[methods[0]], resamples, seed)
    resampled = {method: drawn.means(runs[method]) for method in methods}
    means = {method: drawn.mean(runs[method]) for method in methods}
    if reference is not None and reference not in means:
        raise DataError(f"No run of '{reference}' to compare with. The sweep has: {', '.join(methods)}.")
    best = reference or max(methods, key=lambda method: means[method])
    others = [method for method in methods if method != best]
    p = [_p_value(resampled[best] - resampled[method]) for method in others]
    differences = [_interval(means[best] - means[m], resampled[best] - resampled[m]) for m in others]
    return Compared(
        cells,
        {method: _interval(means[method], resampled[method]) for method in methods},
        [Comparison(best, *row) for row in zip(others, differences, p, holm(p), strict=True)],
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values after Holm's step-down correction, in their order."""
    ranked = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(ranked):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


class _Resamples:
    """Weights that all methods share: of cells [R, C], and of each task's examples [E, R]."""

    def __init__(self, cells: Sequence[OrderAndSeed], outcomes: Sequence[Outcome], resamples: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        orders = sorted({order for order, _ in cells})
        order_C = np.array([orders.index(order) for order, _ in cells])
        seeds = sorted({seed for _, seed in cells})
        weights = _draw_counts(random, len(orders), resamples)[:, order_C]
        if len(cells) == len(orders) * len(seeds):
            weights *= _draw_counts(random, len(seeds), resamples)[:, [seeds.index(seed) for _, seed in cells]]
        else:
            for order in range(len(orders)):
                of_order = np.flatnonzero(order_C == order)
                weights[:, of_order] *= _draw_counts(random, len(of_order), resamples) / len(of_order)
        self._cells_RC = weights / weights.sum(axis=1, keepdims=True)
        equal_orders = 1 / np.bincount(order_C)[order_C]
        self._cells_C = equal_orders / equal_orders.sum()
        sizes = {task: len(right) for outcome in outcomes for task, right in outcome.right.items()}
        self._examples = {
            task: (_draw_counts(random, size, resamples) / size).T for task, size in sorted(sizes.items())
        }

    def means(self, runs: Sequence[Outcome]) -> Values:
        """The resampled average accuracies [R]."""
        by_cell_RC = np.stack([np.mean([self._task(t, v) for t, v in run.right.items()], axis=0) for run in runs], 1)
        return (self._cells_RC * by_cell_RC).sum(axis=1)

    def mean(self, runs: Sequence[Outcome]) -> float:
        """The average accuracy without resampling, every order with the same weight."""
        return float(self._cells_C @ [np.mean([v.mean() for v in run.right.values()]) for run in runs])

    def _task(self, task: str, right_E: Values) -> Values:
        weights_ER = self._examples.get(task)
        examples = 0 if weights_ER is None else len(weights_ER)
        if weights_ER is None or examples != len(right_E):
            raise DataError(
                f"Runs were not scored on the same test examples of '{task}' ({len(right_E)} and {examples}); "
                "compare runs of one budget."
            )
        return right_E @ weights_ER


def _draw_counts(random: np.random.Generator, count: int, resamples: int) -> Values:
    """How often each of `count` things is drawn in `count` draws with replacement, [R, count]."""
    return random.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)


def _interval(mean: float, resampled_R: Values) -> Interval:
    low, high = np.percentile(resampled_R, [2.5, 97.5])
    return Interval(mean, float(low), float(high))


def _p_value(difference_R: Values) -> float:
    """Two-sided; never 0, because the number of resamples is finite."""
    below, above = (difference_R <= 0).sum(), (difference_R >= 0).sum()
    return min(1.0, 2 * float(min(below, above) + 1) / (len(difference_R) + 1))

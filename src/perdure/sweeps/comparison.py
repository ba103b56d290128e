"""Which method is better, and how sure: a paired bootstrap over orders, seeds and examples, corrected for many comparisons.

    m_r = sum over cells c of w_rc * mean over tasks t of (sum over examples e of v_rte * right_mcte)

with w a resample of orders times a resample of seeds, v_t a resample of the task's test examples. Every method meets the
same resamples, so differences are paired; an example counts alike wherever its task appears. Where orders have different
seeds (a sweep that goes on), seeds are resampled within each order, and every order counts alike, with however many seeds.
With two or three orders and seeds the interval covers the noise of examples well, that of orders and seeds too narrowly.

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
        right: task -> [E], 1.0 where the final model was right, or what else its answers count; or the task's score alone, [1].
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
    """`first` minus `second`; `p` two-sided, `p_corrected` after Holm over all comparisons made together."""

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
    runs: dict[tuple[str, OrderAndSeed], Outcome] = {}
    for outcome in outcomes:
        if runs.setdefault((outcome.method, outcome.cell), outcome) is not outcome:
            raise DataError(
                f"Two runs of '{outcome.method}' have order '{outcome.cell[0]}' and seed {outcome.cell[1]}: they differ in "
                "something else, and cannot be told apart. Compare them in reports of their own."
            )
    methods = list(dict.fromkeys(method for method, _ in runs))
    cells = [cell for cell in dict.fromkeys(c for _, c in runs) if all((m, cell) in runs for m in methods)]
    if not cells:
        raise DataError("No order and seed is there for every method; finish the sweep, or compare fewer methods.")
    drawn = _Resamples(cells, [runs[methods[0], cell] for cell in cells], resamples, seed)
    means = {method: drawn.means([runs[method, cell] for cell in cells]) for method in methods}
    known = {method: drawn.mean([runs[method, cell] for cell in cells]) for method in methods}
    if reference is not None and reference not in known:
        raise DataError(f"No run of '{reference}' to compare with. There are: {', '.join(methods)}.")
    best = reference or max(methods, key=lambda method: known[method])
    others = [method for method in methods if method != best]
    p = {method: _p_value(means[best] - means[method]) for method in others}
    corrected = dict(zip(others, holm([p[method] for method in others]), strict=True))
    return Compared(
        cells,
        {method: _interval(known[method], means[method]) for method in methods},
        [
            Comparison(best, m, _interval(known[best] - known[m], means[best] - means[m]), p[m], corrected[m])
            for m in others
        ],
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
    """The same weights for every method: of cells [R, C], and of each task's examples [E, R]."""

    def __init__(self, cells: Sequence[OrderAndSeed], outcomes: Sequence[Outcome], resamples: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        orders = sorted({order for order, _ in cells})
        order_C = np.array([orders.index(order) for order, _ in cells])
        seeds = sorted({seed for _, seed in cells})
        weights = _drawn(random, len(orders), resamples)[:, order_C]
        if len(cells) == len(orders) * len(seeds):
            weights *= _drawn(random, len(seeds), resamples)[:, [seeds.index(seed) for _, seed in cells]]
        else:
            for order in range(len(orders)):
                own = np.flatnonzero(order_C == order)
                weights[:, own] *= _drawn(random, len(own), resamples) / len(own)
        self._cells_RC = weights / weights.sum(axis=1, keepdims=True)
        alike = 1 / np.bincount(order_C)[order_C]
        self._cells_C = alike / alike.sum()
        sizes = {task: len(right) for outcome in outcomes for task, right in outcome.right.items()}
        self._examples = {
            task: (random.multinomial(size, np.full(size, 1 / size), size=resamples) / size).T
            for task, size in sorted(sizes.items())
        }

    def means(self, runs: Sequence[Outcome]) -> Values:
        """The resampled average accuracies [R]."""
        by_cell_RC = np.stack([np.mean([self._task(t, v) for t, v in run.right.items()], axis=0) for run in runs], 1)
        return (self._cells_RC * by_cell_RC).sum(axis=1)

    def mean(self, runs: Sequence[Outcome]) -> float:
        """The average accuracy as it is, every order counted alike."""
        return float(self._cells_C @ [np.mean([v.mean() for v in run.right.values()]) for run in runs])

    def _task(self, task: str, right_E: Values) -> Values:
        known = self._examples.get(task)
        if known is None or len(known) != len(right_E):
            raise DataError(
                f"Runs were not scored on the same test examples of '{task}' ({len(right_E)} and "
                f"{0 if known is None else len(known)}); compare runs of one budget."
            )
        return right_E @ known


def _drawn(random: np.random.Generator, count: int, resamples: int) -> Values:
    """How often each of `count` things is drawn, in as many draws with replacement, [R, count]."""
    return random.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)


def _interval(mean: float, resampled_R: Values) -> Interval:
    low, high = np.percentile(resampled_R, [2.5, 97.5])
    return Interval(mean, float(low), float(high))


def _p_value(difference_R: Values) -> float:
    """Two-sided; never 0, because only so many resamples were drawn."""
    below, above = (difference_R <= 0).sum(), (difference_R >= 0).sum()
    return min(1.0, 2 * float(min(below, above) + 1) / (len(difference_R) + 1))

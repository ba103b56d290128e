"""What a task lost between two states of a model, from the same examples answered by both, with a confidence bound.

Symbols: x_i, y_i the outcome (0 to 1) of example i before and after, d_i = x_i - y_i, n examples, m and v the mean and
variance of the n values d_i and one added value of 1, z the normal quantile of the confidence.

    bound = m + z sqrt(v / (n + 1))

Both outcomes of a pair share the example's difficulty, so the loss is far more certain than either score. The added example, lost
entirely, keeps the bound honest where few or no outcomes changed: without it, nothing lost in 20 examples would count as
certainty. For k of n lost it is within a fifth of the exact Clopper-Pearson bound (tested).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

MOST_EXAMPLES = 1 << 40
"""More examples than anyone has."""


@dataclass(frozen=True)
class PairedLoss:
    """Mean loss in units of the score (negative: gain), standard deviation over the examples, and their number."""

    mean: float
    deviation: float
    examples: int

    @classmethod
    def of(cls, before: Sequence[float], after: Sequence[float]) -> PairedLoss:
        """The loss between outcomes of the same examples in the same order."""
        losses = [x - y for x, y in zip(before, after, strict=True)]
        mean = fmean(losses)
        return cls(mean, math.sqrt(fmean((loss - mean) ** 2 for loss in losses)), len(losses))

    @property
    def standard_error(self) -> float:
        """Of the mean."""
        return self.deviation / math.sqrt(self.examples)

    def bound(self, confidence: float | None, examples: int | None = None) -> float:
        """An upper bound on the true loss at this (one-sided) confidence (None: the mean), as if measured on `examples`."""
        if confidence is None:
            return self.mean
        n = examples or self.examples
        mean = (n * self.mean + 1) / (n + 1)
        variance = (n * (self.deviation**2 + self.mean**2) + 1) / (n + 1) - mean**2
        return mean + NormalDist().inv_cdf(confidence) * math.sqrt(max(0.0, variance) / (n + 1))

    def needed(self, tolerance: float, confidence: float | None) -> int | None:
        """How many examples would show that the tolerance holds, if mean and deviation are as measured; None: no number."""
        sizes = range(1, MOST_EXAMPLES)
        count = 1 + bisect_left(sizes, True, key=lambda n: self.bound(confidence, n) <= tolerance)
        return count if count < MOST_EXAMPLES else None

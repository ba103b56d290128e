"""What a task lost between two states of a model, from the same examples answered by both, and how sure that is.

Symbols: x_i, y_i the outcome (0 to 1) of example i before and after, d_i = x_i - y_i, n examples, m and v the mean and the
variance of the n d_i and one more that is 1, z the confidence's quantile of the normal distribution.

    bound = m + z sqrt(v / (n + 1))

Pairs share their examples' difficulty, so the loss is far surer than either score. The added example, one lost wholly, keeps the
bound honest where few or no outcomes changed: without it nothing lost in 20 examples would be a certainty. For k of n lost it is
within a fifth of the exact bound of Clopper and Pearson (tested).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

ENOUGH = 1 << 40
"""More examples than anyone has."""


@dataclass(frozen=True)
class PairedLoss:
    """Args:
    mean: what was lost, in units of the score; negative: gained.
    deviation: of the examples' losses.
    examples: their number.
    """

    mean: float
    deviation: float
    examples: int

    @classmethod
    def of(cls, before: Sequence[float], after: Sequence[float]) -> PairedLoss:
        """From outcomes of the same examples in the same order."""
        losses = [x - y for x, y in zip(before, after, strict=True)]
        mean = fmean(losses)
        return cls(mean, math.sqrt(fmean((loss - mean) ** 2 for loss in losses)), len(losses))

    @property
    def standard_error(self) -> float:
        """Of the mean."""
        return self.deviation / math.sqrt(self.examples)

    def bound(self, confidence: float | None, examples: int | None = None) -> float:
        """What the true loss does not exceed with this (one-sided) confidence; None: the mean.

        Args:
            examples: as if so many had shown the same mean and deviation.
        """
        if confidence is None:
            return self.mean
        n = examples or self.examples
        mean = (n * self.mean + 1) / (n + 1)
        variance = (n * (self.deviation**2 + self.mean**2) + 1) / (n + 1) - mean**2
        return mean + NormalDist().inv_cdf(confidence) * math.sqrt(max(0.0, variance) / (n + 1))

    def needed(self, tolerance: float, confidence: float | None) -> int | None:
        """How many examples would show that the tolerance holds, if mean and deviation are what they seem; None: no number."""
        sizes = range(1, ENOUGH)
        found = 1 + bisect_left(sizes, True, key=lambda n: self.bound(confidence, n) <= tolerance)
        return found if found < ENOUGH else None

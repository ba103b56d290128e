"""How much a score changed, and whether that may be noise: two states of a model on the same examples.

Symbols: x_i, y_i the value of example i before and after (0 or 1, or any value of which the score is the mean), d_i = y_i - x_i,
n examples, z the normal quantile of the confidence.

    centre = sum d_i / (n + 2)
    interval = centre +- z sqrt(((sum d_i^2 + 1) / (n + 2) - centre^2) / (n + 2))

Both values of a pair share the example's difficulty, so a change is far more certain than either score. Two examples are added
that cancel each other (half of one in each cell of the table of right and wrong), without which "nothing changed in ten examples"
would count as certainty. Source: Agresti and Min 2005, Statistics in Medicine 24:729, for right and wrong; of other values it is
wider.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

Z95 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Change:
    """A change of a score, in its unit (a fraction of 1).

    Args:
        mean: after minus before.
        low, high: of the 95 % interval, at least the mean on either side.
        worse, better: how many examples have a lower, a higher value than before.
        examples: how many were compared.
    """

    mean: float
    low: float
    high: float
    worse: int
    better: int
    examples: int

    @property
    def may_be_noise(self) -> bool:
        """Whether the interval holds 0."""
        return self.low <= 0 <= self.high


def paired_change(before: Sequence[float], after: Sequence[float]) -> Change:
    """The change between values of the same examples in the same order; ValueError if their numbers differ or are 0."""
    changes = [y - x for x, y in zip(before, after, strict=True)]
    if not changes:
        raise ValueError("a change needs examples")
    n = len(changes) + 2
    mean, centre = sum(changes) / len(changes), sum(changes) / n
    variance = (sum(change * change for change in changes) + 1) / n - centre**2
    half = Z95 * math.sqrt(variance / n)
    return Change(
        mean,
        min(mean, centre - half),
        max(mean, centre + half),
        sum(change < 0 for change in changes),
        sum(change > 0 for change in changes),
        len(changes),
    )

"""How far two answers are apart: of logarithms of probabilities, as a share of 1 + their size.

A random language model finds a long label so unlikely that its probability could not show an error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from perdure.backbones.base import Prediction

SMALLEST = 1e-37


def farthest(ones: Sequence[Prediction], others: Sequence[Prediction]) -> float:
    """The largest difference between two lists of answers."""
    rows = zip(ones, others, strict=True)
    pairs = [pair for one, other in rows for pair in zip(one.probabilities, other.probabilities, strict=True)]
    return max(apart(a, b) for a, b in pairs)


def apart(one: float, two: float) -> float:
    """How far two probabilities are apart in logarithms, as a share of 1 + their size; 0 where both are no number of fp32's."""
    if min(one, two) < SMALLEST:
        return 0.0 if max(one, two) < 10 * SMALLEST else float("inf")
    a, b = math.log(one), math.log(two)
    return abs(a - b) / (1 + abs(b))

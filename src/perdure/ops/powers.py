"""How much say two experts get whose probabilities are multiplied: the powers under which the right labels are most likely.

Legend: N examples, L labels.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def fitted_powers(log_p_NL: Tensor, odds_NL: Tensor, right_N: Tensor, most: float = 2.0) -> tuple[float, float]:
    """The a in [0, 1] and w in [0, most] with the highest mean log softmax(a log p + w odds) of the right labels.

    It is concave in both. w is found for each a, and a where the slope along it, at its own w, is 0.
    """

    def best_w(a: float) -> float:
        return _root(lambda w: _slope(odds_NL, a * log_p_NL + w * odds_NL, right_N), most)

    a = _root(lambda a: _slope(log_p_NL, a * log_p_NL + best_w(a) * odds_NL, right_N), 1.0)
    return a, best_w(a)


def _slope(along_NL: Tensor, score_NL: Tensor, right_N: Tensor) -> float:
    """How the mean log softmax of the right labels changes as the scores move along a direction."""
    mean_N = (score_NL.softmax(dim=1) * along_NL).sum(dim=1)
    return float((along_NL.gather(1, right_N[:, None]).squeeze(1) - mean_N).mean())


def _root(falling: Callable[[float], float], high: float) -> float:
    """Where a falling function crosses 0 in [0, high]; the nearer end if it does not."""
    low = 0.0
    if falling(low) <= 0:
        return low
    if falling(high) >= 0:
        return high
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return (low + high) / 2

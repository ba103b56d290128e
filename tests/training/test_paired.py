"""A change and its interval, from numbers one can check on paper."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from perdure.training.paired import paired_change


def test_by_hand() -> None:
    """3 of 98 become wrong, 1 right: n + 2 = 100, centre -.02, variance (4 + 1) / 100 - .0004 = .0496."""
    change = paired_change([1.0] * 3 + [0.0] + [1.0] * 94, [0.0] * 3 + [1.0] + [1.0] * 94)
    assert (change.worse, change.better, change.examples) == (3, 1, 98)
    assert change.mean == pytest.approx(-2 / 98)
    half = 1.959964 * math.sqrt(0.0496 / 100)
    assert (change.low, change.high) == (pytest.approx(-0.02 - half), pytest.approx(-0.02 + half))
    assert change.may_be_noise


@pytest.mark.parametrize("wrong", range(1, 15))
def test_agrees_with_the_exact_test_of_mcnemar(wrong: int) -> None:
    """Of 200 answers `wrong` become wrong and none right: the interval leaves 0 where the exact p is below .05, or one later."""
    change = paired_change([1.0] * 200, [0.0] * wrong + [1.0] * (200 - wrong))
    p = stats.binomtest(wrong, wrong, 0.5).pvalue
    if not 5 <= wrong <= 6:  # p = .0625 and .031
        assert change.may_be_noise == (p > 0.05)


def test_nothing_changed_in_few_examples_is_no_certainty() -> None:
    few, many = (paired_change([1.0] * n, [1.0] * n) for n in (8, 998))
    assert (few.mean, many.mean) == (0, 0)
    assert few.high == pytest.approx(1.959964 * math.sqrt(0.1 / 10))
    assert many.high == pytest.approx(few.high / 100)


def test_needs_the_same_examples() -> None:
    with pytest.raises(ValueError, match="argument 2"):
        paired_change([1.0], [1.0, 0.0])
    with pytest.raises(ValueError, match="needs examples"):
        paired_change([], [])

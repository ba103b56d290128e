"""Numbers derived from finite ones are looked at: what overflows is said, and nothing of it is written."""

import pytest
import torch

from perdure.ops.finite import all_finite, finite
from perdure.ops.lowrank import LowRank
from perdure.ops.magnitude import magnitude_threshold

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_one_bad_entry_among_many(dtype):
    for bad in (NAN, INF, -INF):
        tensor = torch.ones(7, 9, dtype=dtype)
        assert all_finite(tensor)
        tensor[6, 8] = bad
        assert not all_finite(tensor)
        assert not finite(tensor)
        assert not finite(LowRank(tensor, torch.ones(3, 7, dtype=dtype)))
    assert all_finite(torch.ones(2, dtype=torch.int8))
    assert all_finite(torch.ones(0, 3))


def test_a_product_of_finite_factors_may_overflow():
    row, column = torch.tensor([[1e20, 0.0]]), torch.tensor([[1e20], [1.0]])
    assert not finite(LowRank(row, column))  # 1e40
    assert finite(LowRank(row.double(), column.double()))
    # the longest row and column never meet: the bound is 1e40, the product is not
    assert finite(LowRank(torch.tensor([[1e20], [0.0]]), torch.tensor([[0.0, 1e20]])))
    # 3e38 - 3e38: every term fits
    assert finite(LowRank(torch.tensor([[1e19], [1e19]]), torch.tensor([[3e19, -3e19]])))


@pytest.mark.parametrize("density", [0.2, 0.9])
def test_a_threshold_of_nan_ends(density):
    with pytest.raises(ValueError, match="NaN"):
        magnitude_threshold([torch.full((4, 5), NAN)], density)
    assert magnitude_threshold([torch.tensor([[1.0, INF, INF, -2.0, 0.5]])], 0.6) == 2

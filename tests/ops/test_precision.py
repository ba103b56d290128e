"""The working precision of penalties."""

import torch

from perdure.ops.factors import Factors
from perdure.ops.precision import precise


def test_half_is_widened_and_float64_is_kept_without_a_copy() -> None:
    half = Factors(torch.ones(2, 3, dtype=torch.bfloat16), torch.ones(4, 2, dtype=torch.bfloat16), 0.5)
    assert precise(half).A.dtype == torch.float32
    assert precise(half).scaling == 0.5
    exact = Factors(torch.ones(2, 3).double(), torch.ones(4, 2).double(), 0.5)
    assert precise(exact).B.data_ptr() == exact.B.data_ptr()


def test_offset_is_kept_and_nothing_follows_gradients() -> None:
    A = torch.ones(2, 3, requires_grad=True)
    pair = precise(Factors(A, torch.ones(4, 2), 1.0, torch.ones(2, 3), torch.ones(4, 2)))
    assert not pair.A.requires_grad
    assert pair.A0 is not None
    assert pair.B0 is not None

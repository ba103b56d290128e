"""The squared norm of the update as a penalty."""

import pytest
import torch

from perdure.methods.contract.past import Past
from perdure.methods.l2 import SquaredNorm
from perdure.ops.factors import Factors


def test_value_and_gradient_by_hand() -> None:
    # dW = 2 * [[3], [4]] @ [[1, 0]] = [[6, 0], [8, 0]]
    pair = Factors(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0], [4.0]]), 2.0)
    value, grad_A, grad_B = SquaredNorm(weight=1.0).value_and_grad("q", pair, Past())
    assert value == 100
    assert grad_A.tolist() == [[200.0, 0.0]]
    assert grad_B.tolist() == [[24.0], [32.0]]
    mean = SquaredNorm(weight=1.0, reduction="mean").value_and_grad("q", pair, Past())
    assert mean[0] == 25
    assert mean[1].tolist() == [[50.0, 0.0]]


def test_gradients_keep_the_factors_dtype() -> None:
    pair = Factors(torch.ones(2, 4, dtype=torch.bfloat16), torch.ones(3, 2, dtype=torch.bfloat16), 1.0)
    value, grad_A, grad_B = SquaredNorm(gradient_share=0.1).value_and_grad("q", pair, Past())
    assert (grad_A.dtype, grad_B.dtype) == (torch.bfloat16, torch.bfloat16)
    assert value == 4 * 12  # every entry is 2


@pytest.mark.parametrize("settings", [{}, {"weight": -1.0}, {"weight": 1.0, "gradient_share": 0.1}])
def test_needs_exactly_one_sensible_weight(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        SquaredNorm(**settings)

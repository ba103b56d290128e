"""ELLA's penalty: the formula, by hand and densely."""

import pytest
import torch

from perdure.methods.contract.past import Past
from perdure.methods.ella import PastEnergy
from perdure.ops.factors import Factors
from perdure.ops.lowrank import LowRank


def past(total: torch.Tensor | LowRank) -> Past:
    return Past(("one",), {"q": total}, {}, {"q": total})


def test_by_hand() -> None:
    # W = 2 * 0.5 = 1, P = 3: (1 * 3)^2 = 9; dL/dW = 2 * 9 * 1
    pair = Factors(torch.tensor([[1.0]]), torch.tensor([[0.5]]), 2.0)
    value, grad_A, grad_B = PastEnergy(weight=1.0).value_and_grad("q", pair, past(torch.tensor([[3.0]])))
    assert (float(value), float(grad_A), float(grad_B)) == (9.0, 18.0, 36.0)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_equals_the_formula(reduction: str) -> None:
    torch.manual_seed(0)
    A, B = torch.randn(2, 6, dtype=torch.float64), torch.randn(8, 2, dtype=torch.float64)
    old = LowRank(torch.randn(3, 6, dtype=torch.float64), torch.randn(8, 3, dtype=torch.float64))
    A.requires_grad_()
    B.requires_grad_()
    entries = ((0.5 * B @ A) * (old.B @ old.A)).square()
    expected = entries.sum() if reduction == "sum" else entries.mean()
    wanted = torch.autograd.grad(expected, (A, B))
    part = PastEnergy(weight=1.0, reduction=reduction, tile=3)  # pyright: ignore[reportArgumentType]
    value, *grads = part.value_and_grad("q", Factors(A, B, 0.5), past(old))
    torch.testing.assert_close(value, expected.detach())
    for got, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(got, want)


def test_positions_the_past_never_used_are_free() -> None:
    old = torch.zeros(4, 4)
    old[0] = 1.0
    W = Factors(torch.ones(1, 4), torch.tensor([[0.0], [1.0], [1.0], [1.0]]), 1.0)
    part = PastEnergy(weight=1.0)
    assert part.value_and_grad("q", W, past(old))[0] == 0
    assert part.value_and_grad("q", W, past(old.mT.contiguous()))[0] == 3


def test_first_task_is_free() -> None:
    value, grad_A, _ = PastEnergy(weight=1.0).value_and_grad(
        "q", Factors(torch.ones(1, 4), torch.ones(4, 1), 1.0), Past()
    )
    assert value == 0
    assert not grad_A.any()

"""||dW||_F^2 through R x R matrices against the dense one."""

import pytest
import torch

from perdure.ops.factors import Factors
from perdure.ops.frobenius import squared_norm_and_grads
from perdure.ops.lowrank import dense


def test_by_hand() -> None:
    # dW = 2 * [[3], [4]] @ [[1, 0]] = [[6, 0], [8, 0]]: norm^2 100
    value, grad_A, grad_B = squared_norm_and_grads(
        Factors(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0], [4.0]]), 2.0)
    )
    assert value == 100
    assert grad_A.tolist() == [[200.0, 0.0]]  # 2 s B^T dW = 4 * (18 + 32)
    assert grad_B.tolist() == [[24.0], [32.0]]  # 2 s dW A^T


@pytest.mark.parametrize("offset", [False, True])
def test_equals_autograd(offset: bool) -> None:
    torch.manual_seed(0)
    A, B, A0, B0 = (torch.randn(*shape, dtype=torch.float64) for shape in ((3, 7), (5, 3), (3, 7), (5, 3)))
    A.requires_grad_()
    B.requires_grad_()
    factors = Factors(A, B, 0.5, A0, B0) if offset else Factors(A, B, 0.5)
    expected = dense(factors.update()).square().sum()
    wanted = torch.autograd.grad(expected, (A, B))
    value, *grads = squared_norm_and_grads(factors)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    for got, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_is_zero_at_the_offset_itself() -> None:
    torch.manual_seed(0)
    A, B = torch.randn(4, 64), torch.randn(48, 4)
    for result in squared_norm_and_grads(Factors(A, B, 2.0, A.clone(), B.clone())):
        assert not result.any()

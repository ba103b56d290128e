"""Entry-wise penalties on tiles against autograd on the dense update."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from perdure.ops.entrywise import l1_norm, small_share, weighted_squares
from perdure.ops.factors import Factors
from perdure.ops.lowrank import dense
from perdure.ops.precision import ValueAndGrads


def toy(offset: bool) -> Factors:
    make = torch.Generator().manual_seed(0)
    A, B, A0, B0 = (
        torch.randn(*size, generator=make, dtype=torch.float64) for size in ((3, 19), (37, 3), (3, 19), (37, 3))
    )
    return Factors(A, B, 0.5, A0, B0) if offset else Factors(A, B, 0.5)


def by_autograd(loss: Callable[[Tensor], Tensor], factors: Factors) -> ValueAndGrads:
    A, B = factors.A.clone().requires_grad_(), factors.B.clone().requires_grad_()
    value = loss(dense(Factors(A, B, factors.scaling, factors.A0, factors.B0).update()))
    return value.detach(), *torch.autograd.grad(value, (A, B))


@pytest.mark.parametrize("offset", [False, True], ids=["plain", "offset"])
@pytest.mark.parametrize("tile", [None, 1, 8])
def test_l1_equals_autograd(tile: int | None, offset: bool) -> None:
    factors = toy(offset)
    for got, want in zip(l1_norm(factors, tile), by_autograd(lambda W: W.abs().sum(), factors), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("offset", [False, True], ids=["plain", "offset"])
@pytest.mark.parametrize("tile", [None, 1, 8])
def test_weighted_squares_equal_autograd(tile: int | None, offset: bool) -> None:
    factors = toy(offset)
    weights = torch.rand(37, 19, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    want = by_autograd(lambda W: (weights * W.square()).sum(), factors)
    for got, expected in zip(weighted_squares(factors, weights, tile), want, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_l1_is_flat_at_zero() -> None:
    value, grad_A, grad_B = l1_norm(Factors(torch.ones(2, 4), torch.zeros(3, 2), 1.0))
    assert value == 0
    assert not grad_A.any()
    assert not grad_B.any()


def test_small_share_by_hand() -> None:
    # W = [[4, 0], [0, 0]]: root mean square 2; with threshold 1 the three zeros are small, with 2 all are
    factors = Factors(torch.tensor([[4.0, 0.0]]), torch.tensor([[1.0], [0.0]]), 1.0)
    assert small_share(factors, 0.0) == 0.75
    assert small_share(factors, 1.0) == 0.75
    assert small_share(factors, 2.0) == 1.0


def test_small_share_does_not_depend_on_scale_and_is_8_percent_for_a_gaussian() -> None:
    W = torch.randn(400, 300, generator=torch.Generator().manual_seed(0))
    gaussian = Factors(torch.eye(300), W, 1.0)
    assert small_share(gaussian, 0.1) == pytest.approx(0.0797, abs=0.003)
    assert small_share(Factors(torch.eye(300), W * 1e-3, 1.0), 0.1) == pytest.approx(
        small_share(gaussian, 0.1), abs=1e-4
    )

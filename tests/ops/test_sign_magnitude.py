"""The closed form on tiles against the equation, and the equation against numbers one can check in the head."""

import math

import pytest
import torch
from torch import Tensor

from perdure.ops.factors import Factors
from perdure.ops.lowrank import dense
from perdure.ops.sign_magnitude import Form, loss, reference, tiled
from perdure.ops.sign_magnitude_compiled import compiled_tile
from perdure.ops.through_factors import Scratch

FORMS = [
    Form(50.0),
    Form(50.0, "scalar"),
    Form(50.0, "elementwise", "sign-only"),
    Form(50.0, "scalar", "sign-only"),
    Form(50.0, "elementwise", "magnitude-only"),
]


def toy(dtype: torch.dtype, offset: bool = False, shape: tuple[int, int] = (37, 19)) -> tuple[Factors, Tensor]:
    """Random factors with entries of dW about 0.02, and a history of the same size."""
    make = torch.Generator().manual_seed(0)
    height, width = shape
    A, B, A0, B0 = (
        torch.randn(*size, generator=make, dtype=torch.float64).mul(0.1).to(dtype)
        for size in ((3, width), (height, 3), (3, width), (height, 3))
    )
    history = torch.randn(height, width, generator=make, dtype=torch.float64).mul(0.02).to(dtype)
    return (Factors(A, B, 2.0, A0, B0) if offset else Factors(A, B, 2.0)), history


@pytest.mark.parametrize("offset", [False, True], ids=["plain", "offset"])
@pytest.mark.parametrize("tile", [None, 1, 8, 100])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_tiled_equals_the_equation_in_float64(form: Form, tile: int | None, offset: bool) -> None:
    factors, history = toy(torch.float64, offset)
    expected = reference(factors, history, form)
    actual = tiled(factors, torch.tanh(form.alpha * history), form, tile)
    for got, want in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12 * float(want.abs().max() + 1e-30))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_tiled_equals_the_equation_in_float32(form: Form) -> None:
    factors, history = toy(torch.float32, True, (300, 200))
    exact, exact_history = toy(torch.float64, True, (300, 200))
    expected = reference(exact, exact_history, form)
    actual = tiled(factors, torch.tanh(form.alpha * history), form, 64)
    for got, want in zip(actual, expected, strict=True):
        error = (got.double() - want).abs().max() / want.abs().max().clamp_min(1e-30)
        assert error < 1e-5, error


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_gradients_pass_gradcheck(form: Form) -> None:
    factors, history = toy(torch.float64, True, (6, 5))
    signs = torch.tanh(form.alpha * history)

    class Penalty(torch.autograd.Function):
        @staticmethod
        def forward(ctx, A: Tensor, B: Tensor) -> Tensor:
            value, *grads = tiled(Factors(A, B, factors.scaling, factors.A0, factors.B0), signs, form, 4)
            ctx.save_for_backward(*grads)
            return value

        @staticmethod
        def backward(ctx, upstream: Tensor) -> tuple[Tensor, Tensor]:
            grad_A, grad_B = ctx.saved_tensors
            return upstream * grad_A, upstream * grad_B

    assert torch.autograd.gradcheck(Penalty.apply, (factors.A.requires_grad_(), factors.B.requires_grad_()))


def test_equation_by_hand() -> None:
    W = torch.tensor([[0.5, -0.5]], dtype=torch.float64)
    alpha, T = 2.0, math.tanh(1.0)  # |alpha W| = 1
    agree, oppose = 0.25 * (1 - T * T), 0.25 * (1 + T * T)
    mixed = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    assert float(loss(W, W, Form(alpha))) == pytest.approx(2 * agree)
    assert float(loss(W, -W, Form(alpha))) == pytest.approx(2 * oppose)
    assert float(loss(W, mixed, Form(alpha))) == pytest.approx(agree + oppose)
    assert float(loss(W, mixed, Form(alpha, "scalar"))) == pytest.approx(0.5)  # mean agreement 0
    assert float(loss(W, mixed, Form(alpha, terms="sign-only"))) == pytest.approx(2.0)
    assert float(loss(W, mixed, Form(alpha, terms="magnitude-only"))) == pytest.approx(0.5)


@pytest.mark.parametrize("sign, factor", [(1.0, 0.0), (-1.0, 2.0), (0.0, 1.0)])
def test_same_sign_is_free_and_opposite_costs_twice_the_norm(sign: float, factor: float) -> None:
    factors, _ = toy(torch.float64)
    W = dense(factors.update())
    value, _, _ = tiled(factors, torch.tanh(1e6 * sign * W), Form(1e6))
    torch.testing.assert_close(value, factor * W.square().sum(), rtol=1e-3, atol=1e-6)


def test_no_history_is_pure_l2() -> None:
    factors, history = toy(torch.float64)
    want = reference(factors, torch.zeros_like(history), Form(50.0, terms="magnitude-only"))
    for reading in ("elementwise", "scalar"):
        for got, expected in zip(tiled(factors, None, Form(50.0, reading)), want, strict=True):
            torch.testing.assert_close(got, expected)


def test_no_history_leaves_the_sign_only_form_without_gradient() -> None:
    factors, _ = toy(torch.float64)
    value, grad_A, grad_B = tiled(factors, None, Form(50.0, terms="sign-only"))
    assert value == 37 * 19
    assert not grad_A.any()
    assert not grad_B.any()


def test_scratch_may_be_used_again_for_other_shapes() -> None:
    scratch, form = Scratch(), Form(50.0)
    for shape in ((37, 19), (5, 64), (64, 5), (37, 19)):
        factors, history = toy(torch.float64, shape=shape)
        signs = torch.tanh(form.alpha * history)
        for got, want in zip(
            tiled(factors, signs, form, 8, scratch), tiled(factors, signs, form, 8, Scratch()), strict=True
        ):
            assert torch.equal(got, want)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile imports torch.jit itself
def test_compiled_tiles_equal_the_equation() -> None:
    factors, history = toy(torch.float32, True, (300, 200))
    exact, exact_history = toy(torch.float64, True, (300, 200))
    form = Form(50.0)
    actual = tiled(factors, torch.tanh(form.alpha * history), form, 64, elementwise=compiled_tile)
    for got, want in zip(actual, reference(exact, exact_history, form), strict=True):
        assert (got.double() - want).abs().max() / want.abs().max() < 1e-5

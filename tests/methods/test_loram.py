"""LoRAM: orthonormal sine bases, the variance promised, an unchanged function."""

import math

import pytest
import torch

from perdure.errors import ConfigError, TrainingError
from perdure.methods.loram import Loram, product_variance, rescaled, sine_basis
from tests.methods.two_layers import context


def test_sine_basis_by_hand() -> None:
    """m = 2: sqrt(2/3) sin(k i pi/3), every entry sqrt(2/3) sqrt(3)/2 = 1/sqrt 2 up to sign."""
    half = 1 / math.sqrt(2)
    assert torch.allclose(sine_basis(2, 2), torch.tensor([[half, half], [half, -half]]))


@pytest.mark.parametrize("size", [8, 384])
def test_sine_bases_are_orthonormal(size: int) -> None:
    basis = sine_basis(8, size)
    assert torch.allclose(basis @ basis.mT, torch.eye(8), atol=1e-6)


def test_variance_through_small_matrices_is_that_of_the_product() -> None:
    torch.manual_seed(0)
    A, B = torch.randn(3, 7) + 0.5, torch.randn(5, 3)
    assert product_variance(A, B) == pytest.approx(float((B @ A).var()), rel=1e-5)


def test_rescaled_has_the_variance_asked_for() -> None:
    """Var(B A) = rho Var(W), rho = log 2 / log 4 = 1/2."""
    torch.manual_seed(0)
    weight = torch.randn(4, 6) * 3
    A, B = rescaled(torch.randn(2, 6), torch.randn(4, 2), weight, "m")
    assert float((B @ A).var()) == pytest.approx(0.5 * float(weight.var()), rel=1e-4)


def test_what_cannot_be_scaled_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"lora\.rank"):
        rescaled(torch.randn(1, 6), torch.randn(4, 1), torch.randn(4, 6), "m")
    with pytest.raises(TrainingError, match="'m' cannot be scaled"):
        rescaled(torch.zeros(2, 6), torch.zeros(4, 2), torch.randn(4, 6), "m")


def test_function_is_unchanged_and_the_start_is_not_zero() -> None:
    ctx = context()
    inputs = ctx.backbone.collate(ctx.stage.train)
    with torch.no_grad():
        before = ctx.backbone.forward(inputs).features
        start = Loram().start(ctx)
        ctx.model.start(start)
        after = ctx.backbone.forward(inputs).features
    assert (before - after).abs().max() < 1e-5
    pair = start.factors["first"]
    rho = math.log(2) / math.log(10)
    assert float((pair.B @ pair.A).var()) == pytest.approx(rho * float(ctx.weight("first").var()), rel=1e-3)

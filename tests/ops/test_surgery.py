"""Gradient surgery: numbers done by hand, the operators' promises on random vectors, CAGrad against brute force."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from perdure.ops.surgery import (
    UNCHANGED,
    Gram,
    cagrad,
    combine,
    gradvac,
    gram,
    moved_target,
    null_space,
    pcgrad,
    threshold_below_median,
    total,
)

SEEDS = st.integers(0, 10_000)


def pair(seed: int, size: int = 12) -> tuple[Tensor, Tensor]:
    """Two random gradients that mostly conflict."""
    generator = torch.Generator().manual_seed(seed)
    c = torch.randn(size, generator=generator, dtype=torch.float64)
    r = torch.randn(size, generator=generator, dtype=torch.float64) - 0.7 * c
    return c, r


def cosine(x: Tensor, y: Tensor) -> float:
    return float(x @ y / (x.norm() * y.norm()))


def test_gram_by_hand() -> None:
    g = gram(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0]))
    assert g == Gram(25.0, 3.0, 1.0)
    assert g.cosine == pytest.approx(0.6)
    assert g.length((1.0, -3.0)) == pytest.approx(4.0)  # (0, 4)
    assert total([g, Gram(1.0, 2.0, 3.0)]) == Gram(26.0, 5.0, 4.0)
    assert Gram(0.0, 0.0, 1.0).cosine == 0.0


def test_gram_keeps_the_gradients_precision() -> None:
    small = 2.0**-40  # 1 + 2^-40 is 1 in fp32
    c, r = torch.tensor([1.0 + small, 1.0], dtype=torch.float64), torch.tensor([1.0, -1.0], dtype=torch.float64)
    assert gram(c, r).cr == small
    assert gram(c.float(), r).cr == 0.0
    halves = torch.tensor([1.0, 2.0**-7], dtype=torch.bfloat16)
    assert gram(halves, halves).cc == 1.0 + 2.0**-14, "bf16 would round it to 1"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gram_of_narrower_gradients_is_that_of_fp32_to_the_bit(dtype: torch.dtype) -> None:
    c, r = (torch.randn(500, 7, generator=torch.Generator().manual_seed(seed)).to(dtype) for seed in (1, 2))
    flat_c, flat_r = c.reshape(-1).float(), r.reshape(-1).float()
    assert gram(c, r) == Gram(float(flat_c @ flat_c), float(flat_c @ flat_r), float(flat_r @ flat_r))


def test_pcgrad_by_hand() -> None:
    """c = (1, 0), r = (-1, 1): gamma = 1/2, result (1/2, 1/2), orthogonal to r; half the strength gives (3/4, 1/4)."""
    c, r = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0])
    assert combine(c, r, pcgrad(gram(c, r))).tolist() == [0.5, 0.5]
    assert combine(c, r, pcgrad(gram(c, r), strength=0.5)).tolist() == [0.75, 0.25]


def test_pcgrad_leaves_agreeing_and_mildly_conflicting_gradients_alone() -> None:
    assert pcgrad(Gram(1.0, 0.5, 1.0)) == UNCHANGED
    assert pcgrad(Gram(1.0, -0.1, 1.0), tau=-0.2) == UNCHANGED
    assert pcgrad(Gram(1.0, -0.3, 1.0), tau=-0.2) == (1.0, 0.3)
    assert pcgrad(Gram(1.0, 0.1, 1.0), tau=0.5) == UNCHANGED  # relu(-<c, r>) is 0 above cosine 0 whatever tau
    assert pcgrad(Gram(1.0, 0.0, 0.0)) == UNCHANGED


@given(SEEDS)
@settings(max_examples=50, deadline=None)
def test_after_pcgrad_the_inner_product_is_not_negative(seed: int) -> None:
    c, r = pair(seed)
    result = combine(c, r, pcgrad(gram(c, r)))
    assert float(result @ r) >= -1e-5 * float(c.norm() * r.norm())


@given(SEEDS, st.floats(-0.9, 0.9))
@settings(max_examples=50, deadline=None)
def test_gradvac_reaches_its_target_and_never_lowers_the_cosine(seed: int, target: float) -> None:
    c, r = pair(seed)
    result = combine(c, r, gradvac(gram(c, r), target))
    assert cosine(result, r) == pytest.approx(max(target, cosine(c, r)), abs=1e-5)


def test_gradvac_at_target_zero_is_pcgrad() -> None:
    for seed in range(5):
        g = gram(*pair(seed))
        assert gradvac(g, 0.0) == pytest.approx(pcgrad(g))
    assert gradvac(Gram(1.0, -0.3, 1.0), target=0.5, tau=-0.4) == UNCHANGED
    assert math.isfinite(gradvac(Gram(1.0, 0.2, 1.0), target=1.0)[1])


def test_moving_average_by_hand() -> None:
    assert moved_target(0.2, -0.4, 0.5) == pytest.approx(-0.1)
    assert moved_target(0.2, -0.4, 0.0) == 0.2


def test_cagrad_by_hand() -> None:
    """c = (1, 0), r = (0, 1): the mean (1/2, 1/2) serves both alike, so the ball's best point lies straight ahead."""
    assert cagrad(Gram(1.0, 0.0, 1.0), radius=0.0) == (0.5, 0.5)
    assert cagrad(Gram(1.0, 0.0, 1.0), radius=0.5) == pytest.approx((0.75, 0.75), abs=1e-6)
    assert cagrad(Gram(1.0, -1.0, 1.0), radius=0.5) == pytest.approx((0.5, 0.5), abs=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_cagrad_is_the_best_point_of_the_ball(seed: int) -> None:
    """Brute force over the ball's boundary in the plane of both gradients (the optimum lies on it)."""
    c, r = pair(seed, size=2)
    mean, radius = (c + r) / 2, 0.4 * float((c + r).norm()) / 2
    angles = torch.linspace(0, 2 * math.pi, 20_001, dtype=torch.float64)
    points = mean + radius * torch.stack([angles.cos(), angles.sin()], dim=1)
    best = torch.minimum(points @ c, points @ r).max()
    result = combine(c, r, cagrad(gram(c, r), radius=0.4))
    assert float((result - mean).norm()) <= radius * (1 + 1e-5)
    assert float(torch.minimum(result @ c, result @ r)) == pytest.approx(float(best), abs=1e-4)


def test_null_space_by_hand() -> None:
    """r's top direction is the first axis: the first row goes, the others stay."""
    r = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    c = torch.arange(9.0).reshape(3, 3)
    assert torch.allclose(null_space(c, r, 1), torch.tensor([[0.0, 0, 0], [3, 4, 5], [6, 7, 8]]), atol=1e-6)


def test_null_space_leaves_nothing_in_the_top_directions() -> None:
    torch.manual_seed(0)
    c, r = torch.randn(10, 6), torch.randn(10, 6)
    top = torch.linalg.svd(r, full_matrices=False).U[:, :4]
    assert (top.mT @ null_space(c, r, 4)).abs().max() < 1e-5
    assert (top.mT @ c).abs().max() > 0.1


def test_threshold_below_median() -> None:
    assert threshold_below_median({"a": 0.1, "b": -0.3, "c": 0.5}, 0.2) == pytest.approx(-0.1)

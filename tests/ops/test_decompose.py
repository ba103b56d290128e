"""Spectra through the factors against numbers one can check in the head, and against the dense SVD."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.ops import decompose
from perdure.ops.lowrank import LowRank, dense


def random_lowrank(out_features: int, in_features: int, rank: int, seed: int = 0) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    return LowRank(
        torch.randn(rank, in_features, generator=generator), torch.randn(out_features, rank, generator=generator)
    )


@pytest.fixture
def three_and_four() -> LowRank:
    """diag(3, 4) in the upper left of a 3 x 4 matrix: singular values 4 and 3."""
    A = torch.eye(4)[:2]
    B = torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]])
    return LowRank(A, B)


def test_singular_values_and_norms_by_hand(three_and_four):
    assert decompose.svd(three_and_four).s.tolist() == pytest.approx([4, 3])
    assert decompose.squared_norm(three_and_four).item() == pytest.approx(25)


def test_truncate_keeps_the_larger_direction_and_says_how_much_that_is(three_and_four):
    kept, energy = decompose.truncate(three_and_four, 1)
    assert energy == pytest.approx(16 / 25)
    assert kept.rank == 1
    expected = torch.zeros(3, 4)
    expected[1, 1] = 4
    torch.testing.assert_close(dense(kept), expected)


def test_truncate_pads_with_zeros_beyond_the_rank(three_and_four):
    kept, energy = decompose.truncate(three_and_four, 3)
    assert (kept.rank, energy) == (3, pytest.approx(1))
    torch.testing.assert_close(dense(kept), dense(three_and_four))
    kept, _ = decompose.truncate(three_and_four, 8)
    assert kept.rank == 8


def test_truncate_of_a_zero_update_keeps_all_of_nothing():
    kept, energy = decompose.truncate(torch.zeros(3, 4), 2)
    assert energy == 1
    assert not dense(kept).any()


def test_truncate_refuses_rank_zero(three_and_four):
    with pytest.raises(ValueError, match="at least 1"):
        decompose.truncate(three_and_four, 0)


def test_a_large_dense_update_is_truncated_almost_as_well_and_its_energy_is_true(monkeypatch):
    matrix = torch.randn(90, 120, generator=torch.Generator().manual_seed(0))  # a flat spectrum: the hard case
    _, best = decompose.truncate(matrix, 8)
    monkeypatch.setattr(decompose, "LARGE", 64)
    kept, energy = decompose.truncate(matrix, 8)
    residual = (matrix - dense(kept)).square().sum() / matrix.square().sum()
    assert energy == pytest.approx(1 - residual.item(), abs=1e-5)
    assert best - 0.02 < energy < best, "randomised, so a little below the optimum"


def test_effective_rank_by_hand(three_and_four):
    equal = LowRank(torch.eye(4)[:2], torch.eye(3)[:, :2])
    assert decompose.effective_rank(decompose.svd(equal).s) == pytest.approx(2)
    p, q = 4 / 7, 3 / 7
    assert decompose.effective_rank(decompose.svd(three_and_four).s) == pytest.approx(
        math.exp(-p * math.log(p) - q * math.log(q))
    )
    assert decompose.effective_rank(torch.zeros(2)) == 0


def test_inner_by_hand(three_and_four):
    other = torch.ones(3, 4)
    assert decompose.inner(three_and_four, other).item() == pytest.approx(7)
    assert decompose.inner(other, three_and_four).item() == pytest.approx(7)
    assert decompose.inner(other, other).item() == pytest.approx(12)


def test_compress_finds_the_rank_of_an_adapter_added_to_itself():
    one = random_lowrank(20, 30, 4)
    twice = LowRank(torch.cat([one.A, one.A]), torch.cat([one.B, one.B], dim=1))
    compressed = decompose.compress(twice)
    assert (twice.rank, compressed.rank) == (8, 4)
    torch.testing.assert_close(dense(compressed), 2 * dense(one), rtol=1e-5, atol=1e-5)


def test_compress_finds_the_rank_of_a_dense_matrix_within_its_rounding():
    matrix = dense(random_lowrank(20, 30, 4))
    compressed = decompose.compress(matrix)
    assert compressed.rank == 4
    torch.testing.assert_close(dense(compressed), matrix, rtol=1e-5, atol=1e-5)


def test_compress_of_zero_has_one_empty_direction():
    compressed = decompose.compress(LowRank(torch.zeros(3, 5), torch.ones(4, 3)))
    assert compressed.rank == 1
    assert not dense(compressed).any()


def test_half_precision_factors_give_fp32_results():
    half = LowRank(torch.ones(2, 5, dtype=torch.bfloat16), torch.ones(4, 2, dtype=torch.bfloat16))
    assert decompose.compress(half).A.dtype == torch.float32
    assert decompose.truncate(half, 1)[0].B.dtype == torch.float32


@settings(max_examples=40, deadline=None)
@given(
    out_features=st.integers(1, 12), in_features=st.integers(1, 12), rank=st.integers(1, 14), seed=st.integers(0, 99)
)
def test_through_the_factors_equals_the_dense_svd(out_features, in_features, rank, seed):
    delta = random_lowrank(out_features, in_features, rank, seed)
    matrix = dense(delta).double()
    expected = torch.linalg.svdvals(matrix)
    values = decompose.svd(delta).s
    torch.testing.assert_close(values, expected[: values.numel()], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dense(decompose.compress(delta)).double(), matrix, rtol=1e-4, atol=1e-4)
    kept = min(rank, 2)
    low, energy = decompose.truncate(delta, kept)
    from_dense, dense_energy = decompose.truncate(dense(delta), kept)
    assert energy == pytest.approx(dense_energy, abs=1e-5)
    residual = (matrix - dense(low)).square().sum()
    assert residual.item() == pytest.approx((1 - energy) * matrix.square().sum().item(), abs=1e-3)
    torch.testing.assert_close((matrix - dense(from_dense)).square().sum(), residual, rtol=1e-3, atol=1e-3)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99))
def test_inner_products_agree_in_every_representation(seed):
    left, right = random_lowrank(7, 9, 3, seed), random_lowrank(7, 9, 2, seed + 1)
    expected = (dense(left).double() * dense(right).double()).sum()
    for a in (left, dense(left)):
        for b in (right, dense(right)):
            torch.testing.assert_close(decompose.inner(a, b), expected, rtol=1e-4, atol=1e-4)

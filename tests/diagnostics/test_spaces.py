"""Cosine, OO, AWOM, angles and overlaps of two small updates, by hand; stacked and dense agree."""

import math

import pytest
import torch

from perdure.diagnostics.spaces import between, generalised_sparsity, output_overlap_energy, space
from perdure.ops.lowrank import LowRank, dense

ONE = LowRank(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0], [0.0]]))  # [[2, 0], [0, 0]]
TWO = LowRank(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0], [1.0]]))  # [[3, 4], [3, 4]]


def test_by_hand():
    found = between(space(ONE), space(TWO))
    assert found.inner == pytest.approx(6)
    assert found.oo == pytest.approx(9)
    assert found.awom == pytest.approx(100), "[[3, 3], [4, 4]] @ [[2, 0], [0, 0]] = [[6, 0], [8, 0]]"
    assert found.smallest_input_angle == pytest.approx(math.degrees(math.acos(3 / 5)))
    assert found.smallest_output_angle == pytest.approx(45)
    assert found.input_overlap == pytest.approx(9 / 25)
    assert found.output_overlap == pytest.approx(1 / 2)


def test_sizes_by_hand():
    found = space(TWO)
    assert (found.sizes.rank, found.sizes.squared) == (1, pytest.approx(50))
    assert found.sizes.nuclear_norm == pytest.approx(math.sqrt(50))
    assert found.sizes.effective_rank == pytest.approx(1)
    assert generalised_sparsity(14, math.sqrt(50), 4) == pytest.approx(14 / (2 * math.sqrt(50)))
    assert generalised_sparsity(0, 0, 4) is None


def test_directions_that_are_only_padding_have_no_angle():
    padded = LowRank(torch.cat([ONE.A, torch.ones(1, 2)]), torch.cat([ONE.B, torch.zeros(2, 1)], dim=1))
    found = between(space(padded), space(TWO))
    assert space(padded).sizes.rank == 1
    assert found.input_overlap == pytest.approx(9 / 25)
    nothing = space(LowRank(torch.zeros(1, 2), torch.zeros(2, 1)))
    assert between(nothing, space(TWO)).smallest_input_angle is None


def test_stacked_and_dense_agree():
    generator = torch.Generator().manual_seed(0)
    one, two = (LowRank(torch.randn(r, 9, generator=generator), torch.randn(7, r, generator=generator)) for r in (2, 3))
    expected = (dense(two).mT @ dense(one)).square().sum().double()
    torch.testing.assert_close(output_overlap_energy(one, two), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output_overlap_energy(dense(one), two), expected, rtol=1e-5, atol=1e-5)
    stacked, full = between(space(one), space(two)), between(space(one), space(dense(two)))
    assert full.oo is None
    assert stacked.input_overlap == pytest.approx(full.input_overlap, abs=1e-5)


def test_rounding_of_a_dense_update_is_no_direction():
    """Rank 6 of 16, which reads the first six inputs; the other update reads six others."""
    generator = torch.Generator().manual_seed(0)
    eye = torch.eye(16)
    parts = [
        torch.randn(16, 6, generator=generator) @ torch.randn(6, 6, generator=generator) @ eye[:6] for _ in range(3)
    ]
    mixed = torch.linalg.qr(torch.randn(16, 16, generator=generator)).Q
    history = space(sum(parts[1:], parts[0]) @ mixed)
    new = space(LowRank(eye[6:12] @ mixed, torch.randn(16, 6, generator=generator)))
    assert (history.sizes.rank, new.sizes.rank) == (6, 6)
    found = between(history, new)
    assert found.smallest_input_angle == pytest.approx(90, abs=0.01)
    assert found.input_overlap == pytest.approx(0, abs=1e-6)

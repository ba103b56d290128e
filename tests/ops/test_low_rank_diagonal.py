"""Low rank plus diagonal: by hand, exact where nothing is left out, the diagonal always exact, and never above the truth."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from perdure.ops.factors import Factors
from perdure.ops.input_side import drift
from perdure.ops.low_rank_diagonal import CHUNK, LowRankDiagonal, added, compressed, nothing


def rows(count: int, width: int, seed: int = 0) -> Tensor:
    """Rows whose directions matter less and less, in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) * torch.arange(1, width + 1).pow(-1.0)


def dense(moment: LowRankDiagonal) -> Tensor:
    return moment.rows.mT @ moment.rows + moment.rest.diag()


def test_by_hand() -> None:
    """diag(9, 4, 1) by one row: the leading direction (3, 0, 0) stays, the others are the diagonal (0, 4, 1)."""
    found = compressed(torch.tensor([[0.0, 2.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), torch.zeros(3), 1)
    torch.testing.assert_close(found.rows.abs(), torch.tensor([[3.0, 0.0, 0.0]]))
    torch.testing.assert_close(found.rest, torch.tensor([0.0, 4.0, 1.0]))
    torch.testing.assert_close(dense(found / 2), torch.tensor([4.5, 2.0, 0.5]).diag())


@pytest.mark.parametrize("positions", [5, CHUNK, 3 * CHUNK + 7])
def test_a_rank_of_the_whole_width_is_exact(positions: int) -> None:
    x = rows(positions, 12)
    found = added(nothing(x), x, 12)
    assert found.rows.shape[0] <= 12
    torch.testing.assert_close(dense(found), x.mT @ x, rtol=1e-10, atol=1e-10)


def test_a_lower_rank_keeps_the_diagonal_and_is_near_the_best() -> None:
    """Streamed in pieces: the off-diagonal error is close to that of the truncated eigendecomposition of the whole."""
    x = rows(2000, 40)
    found = nothing(x)
    for piece in x.split(130):
        found = added(found, piece, 8)
    exact = x.mT @ x
    torch.testing.assert_close(dense(found).diagonal(), exact.diagonal(), rtol=1e-10, atol=1e-10)
    assert float(found.rest.min()) >= 0
    assert float(torch.linalg.eigvalsh(exact - found.rows.mT @ found.rows).min()) > -1e-9 * float(exact.trace())
    values, vectors = torch.linalg.eigh(exact)
    best = (vectors[:, -8:] * values[-8:]) @ vectors[:, -8:].mT
    best = best + (exact - best).diagonal().diag()
    assert float((dense(found) - exact).norm()) < 1.5 * float((best - exact).norm())


def test_sums_over_tasks() -> None:
    x, y = rows(50, 6), rows(70, 6, seed=1)
    both = added(nothing(x), x, 6).plus(added(nothing(y), y, 6), 6)
    torch.testing.assert_close(dense(both), x.mT @ x + y.mT @ y, rtol=1e-10, atol=1e-10)
    few = added(nothing(x), x, 2).plus(added(nothing(y), y, 2), 2)
    assert few.rows.shape == (2, 6)
    torch.testing.assert_close(dense(few).diagonal(), (x.mT @ x + y.mT @ y).diagonal(), rtol=1e-10, atol=1e-10)


def test_drift_is_that_of_the_dense_matrices() -> None:
    """Value and gradients, with an offset, against [I, I] and [O, O]; float64."""
    generator = torch.Generator().manual_seed(3)
    draw = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((2, 7), (5, 2), (2, 7), (5, 2))]
    factors = Factors(draw[0], draw[1], 0.5, draw[2], draw[3])
    C, F = added(nothing(rows(30, 7)), rows(30, 7), 3), added(nothing(rows(20, 5)), rows(20, 5), 2)
    for found, wanted in zip(drift(factors, C, F), drift(factors, dense(C), dense(F)), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)

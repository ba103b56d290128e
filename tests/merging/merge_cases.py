"""Random updates of two modules for the tests of merge rules; low rank or dense."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from perdure.merging.covariance_gain import Against, Moments, gained_sum
from perdure.merging.modules import merge_modules
from perdure.ops.lowrank import Delta, LowRank, Update, dense

SHAPES = {"layers.0.q": (12, 8), "layers.1.v": (6, 10)}


def random_update(seed: int, rank: int = 2) -> dict[str, LowRank]:
    """Low-rank updates of both modules."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: LowRank(torch.randn(rank, width, generator=generator), torch.randn(height, rank, generator=generator))
        for name, (height, width) in SHAPES.items()
    }


def random_updates(count: int, seed: int = 0) -> list[dict[str, LowRank]]:
    """`count` different updates."""
    return [random_update(100 * seed + index) for index in range(count)]


def assert_same(left: Update, right: Update, tolerance: float = 1e-5) -> None:
    """The same modules with the same matrices."""
    assert set(left) == set(right)
    for name in left:
        torch.testing.assert_close(dense(left[name]), dense(right[name]), rtol=tolerance, atol=tolerance)


def gained_sums(
    updates: Sequence[Update], moments: Sequence[Moments], ridge: float = 1e-3, against: Against = "others"
) -> dict[str, Delta]:
    """Covariance-gain's merge of every module, kappa 1."""
    return dict(merge_modules(updates, lambda module, deltas: gained_sum(module, deltas, moments, 1.0, ridge, against)))


def one_row_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row a tile of its own."""
    monkeypatch.setattr("perdure.ops.parallel.row_tiles", lambda shape: ((i, i + 1) for i in range(shape[0])))

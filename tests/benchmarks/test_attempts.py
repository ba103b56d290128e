"""The closed form behind an attempt, against its normal equations written out."""

from __future__ import annotations

import pytest
import torch
from benchmarks.attempts.parts import recalibrated


def statistics(size: int, seed: int) -> torch.Tensor:
    x = torch.randn(2 * size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x.mT @ x / len(x)


@pytest.mark.parametrize("count", [1, 2], ids=["one use", "two uses"])
def test_recalibration_solves_its_normal_equations(count: int) -> None:
    """sum_u F_t (D - D_t) C_t + F_o D C_o = 0, as one dense system: (sum_u F (x) C) vec D = vec sum_u F_t D_t C_t."""
    own, old = ([(statistics(4, 10 * u + s), statistics(6, 10 * u + s + 1)) for u in range(count)] for s in (0, 2))
    trained = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    system = torch.stack([torch.kron(F, C) for F, C in (*own, *old)]).sum(0)
    right = torch.stack([F @ trained @ C for F, C in own]).sum(0)
    expected = torch.linalg.solve(system, right.reshape(-1)).reshape(4, 6)
    torch.testing.assert_close(recalibrated(trained, own, old), expected, rtol=1e-5, atol=1e-6)


def test_recalibration_by_hand() -> None:
    """One number, F = C = 1 of both tasks: d = argmin (d - 4)^2 + d^2 = 2."""
    one = [(torch.ones(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))]
    assert float(recalibrated(4 * torch.ones(1, 1, dtype=torch.float64), one, one)) == pytest.approx(2, abs=1e-6)

"""Parts of an update, by hand."""

import torch

from perdure.ops.selection import by_magnitude, by_sign, magnitudes_only, signs_only

DELTA = torch.tensor([[1.0, -2.0], [3.0, -4.0]])
HISTORY = torch.tensor([[1.0, 1.0], [-1.0, 0.0]])


def test_by_magnitude() -> None:
    assert by_magnitude(DELTA, 0.5, "bottom").tolist() == [[True, True], [False, False]]
    assert by_magnitude(DELTA, 0.25, "top").tolist() == [[False, False], [False, True]]
    assert by_magnitude(DELTA, 1.0, "top").all()
    assert not by_magnitude(DELTA, 0.0, "top").any()
    assert int(by_magnitude(torch.ones(3, 3), 0.33, "top").sum()) == 3  # ties: exactly as many as asked


def test_by_sign() -> None:
    assert by_sign(DELTA, HISTORY, "same").tolist() == [[True, False], [False, False]]
    assert by_sign(DELTA, HISTORY, "opposite").tolist() == [[False, True], [True, False]]
    assert by_sign(DELTA, HISTORY, "both").all()


def test_signs_only_keeps_signs_and_norm() -> None:
    result = signs_only(DELTA)
    assert torch.equal(result.sign(), DELTA.sign())
    assert torch.allclose(result.norm(), DELTA.norm())
    assert result.abs().unique().numel() == 1
    sparse = signs_only(torch.tensor([[0.0, 3.0], [0.0, -4.0]]))
    assert torch.allclose(sparse.abs(), torch.tensor([[0.0, 12.5**0.5], [0.0, 12.5**0.5]]))
    assert not signs_only(torch.zeros(2, 2)).any()


def test_magnitudes_only_keeps_magnitudes_and_forgets_signs() -> None:
    delta = torch.randn(40, 50, generator=torch.Generator().manual_seed(0))
    result = magnitudes_only(delta, torch.Generator().manual_seed(1))
    assert torch.equal(result.abs(), delta.abs())
    assert 0.45 < float((result == delta).float().mean()) < 0.55

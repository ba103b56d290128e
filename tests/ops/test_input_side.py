"""Overlap with old A and drift on old inputs, against dense definitions and by hand."""

import torch

from perdure.ops.factors import Factors
from perdure.ops.input_side import absolute_overlap, drift, overlap, remembered
from perdure.ops.lowrank import dense


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_overlap_is_the_sum_over_old_tasks_in_bounded_memory() -> None:
    old, olds = None, []
    for task in range(6):
        olds.append(random(3, 14, seed=task))
        old = remembered(old, olds[-1])
        assert old.shape[0] == (3 * (task + 1) if task < 2 else 14)  # stacked up to 7 rows, then M
        A = random(2, 14, seed=9).requires_grad_()
        expected = torch.stack([(one @ A.mT).square().sum() for one in olds]).sum()
        value, grad = overlap(A.detach(), old)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(grad, torch.autograd.grad(expected, A)[0])


def test_absolute_overlap_equals_autograd() -> None:
    old, A = random(6, 7), random(2, 7, seed=9).requires_grad_()
    expected = (old @ A.mT).abs().sum()
    value, grad = absolute_overlap(A.detach(), old)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(grad, torch.autograd.grad(expected, A)[0])


def test_drift_by_hand() -> None:
    # dW = 2 [[1], [1]] [[1, 3]] = [[2, 6], [2, 6]], C = diag(1, 0): only the first input counts, 2^2 + 2^2
    factors = Factors(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0], [1.0]]), 2.0)
    value, grad_A, grad_B = drift(factors, torch.diag(torch.tensor([1.0, 0.0])))
    assert value == 8
    assert grad_A.tolist() == [[16.0, 0.0]]  # 2 s B^T dW C = 4 [[4, 12]] C
    assert grad_B.tolist() == [[8.0], [8.0]]  # 2 s dW C A^T = 4 * 2 * 1


def test_drift_equals_autograd_and_the_mean_over_inputs() -> None:
    x = random(50, 7)
    moment = x.mT @ x / 50
    A, B, A0, B0 = random(2, 7, seed=1), random(5, 2, seed=2), random(2, 7, seed=3), random(5, 2, seed=4)
    A.requires_grad_()
    B.requires_grad_()
    factors = Factors(A, B, 0.5, A0, B0)
    expected = (x @ dense(factors.update()).mT).square().sum(dim=1).mean()
    wanted = torch.autograd.grad(expected, (A, B))
    value, *grads = drift(factors, moment)
    torch.testing.assert_close(value, expected)
    for got, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(got, want)

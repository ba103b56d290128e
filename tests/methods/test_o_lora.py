"""O-LoRA: both forms by hand and as the paper and the code write them; it drives A_i A_t^T to zero at a bounded cost."""

from typing import Any

import pytest
import torch

from perdure.methods.contract.past import Past
from perdure.methods.o_lora import FactorNorm, InputOverlap
from perdure.ops.factors import Factors
from perdure.ops.lowrank import LowRank


def learnt(part: InputOverlap, *olds: torch.Tensor) -> InputOverlap:
    ctx: Any = None
    for A in olds:
        part.after_task(ctx, {"q": LowRank(A, torch.ones(3, A.shape[0], dtype=A.dtype))})
    return part


def factors(A: torch.Tensor) -> Factors:
    return Factors(A, torch.zeros(3, A.shape[0], dtype=A.dtype), 1.0)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("form, value, grad", [("square", 25.0, [[6.0, 8.0]]), ("absolute", 7.0, [[1.0, 1.0]])])
def test_by_hand(form: Any, value: float, grad: list[list[float]]) -> None:
    part = learnt(InputOverlap(weight=1.0, form=form), torch.eye(2))  # A_1 = I, A = [3, 4]: overlaps 3 and 4
    got, grad_A, grad_B = part.value_and_grad("q", factors(torch.tensor([[3.0, 4.0]])), Past())
    assert got == value
    assert grad_A.tolist() == grad
    assert not grad_B.any()


@pytest.mark.parametrize("form", ["square", "absolute"])
def test_values_are_those_of_paper_and_code_over_many_tasks(form: Any) -> None:
    olds, A = [random(2, 9, seed=i) for i in range(7)], random(2, 9, seed=50)
    paper = sum(float(torch.linalg.matrix_norm(old @ A.mT) ** 2) for old in olds)  # lambda sum_i |A_i^T A_t|^2
    code = float(torch.abs(torch.mm(A, torch.cat(olds).mT)).sum())  # all past A concatenated, |.|
    value, _, _ = learnt(InputOverlap(weight=1.0, form=form), *olds).value_and_grad("q", factors(A), Past())
    assert float(value) == pytest.approx(paper if form == "square" else code)


def test_it_drives_the_overlap_to_zero_and_leaves_the_rest() -> None:
    """||A - target||^2 under a strong penalty ends at the target's part orthogonal to the old A: a known answer."""
    old, target = random(2, 6), random(2, 6, seed=1)
    part = learnt(InputOverlap(weight=1.0), old)
    A = target.clone()
    for _ in range(4000):
        _, grad, _ = part.value_and_grad("q", factors(A), Past())
        A -= 0.01 * (2 * 1e-3 * (A - target) + grad)
    basis = torch.linalg.qr(old.mT).Q
    assert (old @ A.mT).abs().max() < 1e-2 * (old @ target.mT).abs().max()
    torch.testing.assert_close(A, target - target @ basis @ basis.mT, atol=1e-2, rtol=0)


def test_square_form_keeps_no_more_than_the_layers_width_and_absolute_grows() -> None:
    olds = [random(2, 5, seed=i) for i in range(20)]
    rows = {
        form: learnt(InputOverlap(weight=1.0, form=form), *olds).state()["q"].shape[0]
        for form in ("square", "absolute")
    }
    assert rows == {"square": 5, "absolute": 40}


def test_first_task_is_free_and_state_survives() -> None:
    A = random(2, 5)
    fresh = InputOverlap(weight=1.0)
    assert fresh.value_and_grad("q", factors(A), Past())[0] == 0
    part = learnt(InputOverlap(weight=1.0), random(2, 5, seed=1))
    fresh.load(part.state())
    assert torch.equal(
        fresh.value_and_grad("q", factors(A), Past())[1], part.value_and_grad("q", factors(A), Past())[1]
    )


def test_factor_norm_by_hand_and_at_zero() -> None:
    pair = Factors(torch.tensor([[3.0, 4.0]]), torch.zeros(2, 1), 2.0)
    value, grad_A, grad_B = FactorNorm(weight=1.0).value_and_grad("q", pair, Past())
    assert value == 5
    torch.testing.assert_close(grad_A, torch.tensor([[0.6, 0.8]]))
    assert not grad_B.any()

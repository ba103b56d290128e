"""InfLoRA: memory by hand in both forms, frozen A blind to old inputs, B alone trained."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from perdure.errors import TrainingError
from perdure.methods.contract.parts import Method
from perdure.methods.inf_lora import InfLora, Memory, empty_memory, frozen_directions, updated_memory
from perdure.methods.plain import Sum
from perdure.tasks.task import Stage
from tests.methods.two_layers import INPUTS, context, learn_toy, toy_task, toy_tasks


def diagonal(*values: float) -> Tensor:
    return torch.diag(torch.tensor(values, dtype=torch.float64))


def random_moment(size: int, rank: int, seed: int) -> Tensor:
    x = torch.randn(rank, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.mT @ x


def remembered(memory: Memory) -> Tensor:
    """Projector on the remembered space, whichever form it is kept in."""
    size = memory.basis_IK.shape[0]
    return torch.eye(size, dtype=torch.float64) - memory.without(torch.eye(size, dtype=torch.float64))


def test_energy_by_hand() -> None:
    """Energies 6, 3, 1 of 10: .6 takes one direction, .9 two, .95 three; squared (36, 9, 1 of 46) .95 takes two."""
    moment = diagonal(6, 3, 1, 0, 0, 0, 0, 0)
    empty = empty_memory(8, moment)
    counts = [updated_memory(empty, moment, threshold).basis_IK.shape[1] for threshold in (0.6, 0.9, 0.95, 1.0)]
    assert counts == [1, 2, 3, 3]
    assert updated_memory(empty, moment, 0.95, "released-code").basis_IK.shape[1] == 2
    assert torch.allclose(remembered(updated_memory(empty, moment, 0.9)), diagonal(1, 1, 0, 0, 0, 0, 0, 0))


def test_what_is_already_held_counts() -> None:
    """Half of the second task's energy lies in the memory: for .5 nothing is added, for .6 one direction."""
    memory = Memory(torch.eye(8, dtype=torch.float64)[:, :1])
    moment = diagonal(5, 3, 2, 0, 0, 0, 0, 0)
    assert updated_memory(memory, moment, 0.5) is memory
    grown = updated_memory(memory, moment, 0.6)
    assert torch.allclose(remembered(grown), diagonal(1, 1, 0, 0, 0, 0, 0, 0), atol=1e-12)


@pytest.mark.parametrize("energy", ["inputs", "released-code"])
def test_both_forms_are_the_same_memory(energy: str) -> None:
    """Growing step by step past half the space: stored as complement, it still removes what a plain basis would."""
    memory, basis = empty_memory(10, diagonal(1)), torch.zeros(10, 0, dtype=torch.float64)
    for seed in range(4):
        moment = random_moment(10, 2, seed)
        memory = updated_memory(memory, moment, 1.0, energy)  # type: ignore[arg-type]
        basis = torch.linalg.qr(torch.cat([basis, torch.linalg.svd(moment).U[:, :2]], dim=1)).Q
        assert memory.left == (seed >= 2)  # 6 of 10 remembered: 4 kept as what is left
        assert torch.allclose(remembered(memory), basis @ basis.mT, atol=1e-8)
        assert memory.basis_IK.shape[1] == (2 * seed + 2 if seed < 2 else 10 - (2 * seed + 2))


def test_a_annihilates_old_inputs() -> None:
    """A x = 0 for every remembered input, and A's rows are orthonormal over sqrt 3."""
    old = torch.randn(3, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    memory = updated_memory(empty_memory(10, old), old.mT @ old, 1.0)
    A = frozen_directions(memory, random_moment(10, 10, 2), 4)
    assert (A @ old.mT).abs().max() < 1e-12
    assert torch.allclose(A @ A.mT, torch.eye(4, dtype=torch.float64) / 3, atol=1e-9)


def test_directions_by_hand() -> None:
    """The strongest input direction not remembered comes first."""
    memory = Memory(torch.eye(4, dtype=torch.float64)[:, :1])
    A = frozen_directions(memory, diagonal(9, 1, 4, 0), 2)
    expected = torch.tensor([[0.0, 0, 1, 0], [0, 1, 0, 0]], dtype=torch.float64) / math.sqrt(3)
    assert torch.allclose(A.abs(), expected)


def test_rows_without_a_free_direction_are_zero() -> None:
    A = frozen_directions(Memory(torch.eye(4, dtype=torch.float64)[:, :1]), diagonal(9, 1, 0, 0), 3)
    assert [bool(row.any()) for row in A] == [True, False, False]


def test_moments_are_the_inputs_second_moments() -> None:
    ctx = context()
    moments = InfLora(batch_size=7)._moments(ctx, "t")
    x = ctx.backbone.collate(ctx.stage.train).inputs["x"].double()
    assert torch.allclose(moments["first"], x.mT @ x / len(x), atol=1e-6)


def test_only_b_is_trained_and_new_updates_do_not_reach_old_inputs(tmp_path: Path) -> None:
    """Task 0's inputs live in three dimensions: all are remembered, and task 1's update maps them to 0."""
    part = InfLora(threshold=1.0, threshold_end=1.0)
    ctx = context(0)
    part.load({"used.first": torch.eye(INPUTS, dtype=torch.float64)[:, :3]})
    start = part.start(ctx)
    assert start.trainable == "B"
    pair = start.factors["first"]
    assert not pair.B.any()
    assert pair.A[:, :3].abs().max() < 1e-7
    ctx.model.start(start)
    assert [p.shape for p in ctx.model.parameters()] == [pair.B.shape, start.factors["second"].B.shape]


def test_memory_after_a_run_holds_the_tasks_inputs_and_survives_state(tmp_path: Path) -> None:
    part = InfLora(threshold=0.6, threshold_end=0.6)
    learn_toy(Method("inf-lora", part, Sum()), tmp_path, toy_tasks(2))
    copy = InfLora(threshold=0.6, threshold_end=0.6)
    copy.load(part.state())
    for module, memory in part._memory.items():
        assert torch.equal(remembered(memory), remembered(copy._memory[module]))
    for index in (0, 1):  # the first layer's inputs do not depend on the training
        x = context().backbone.collate(toy_task(index).train).inputs["x"].double()
        outside = part._memory["first"].without(x.mT)
        assert float(outside.square().sum() / x.square().sum()) <= 0.4 + 1e-6


def test_threshold_rises_with_the_tasks() -> None:
    """.5 -> 1 over 2 tasks: after the second task (one learnt before) .75 of the energy is held."""
    part = InfLora(threshold=0.5, threshold_end=1.0, over_tasks=2)
    ctx = context(1)
    part.after_task(ctx, {})
    moment = part._moments(ctx, "t")["first"]
    held = 1 - float(part._memory["first"].without(moment).diagonal().sum() / moment.diagonal().sum())
    smaller = Memory(torch.linalg.svd(moment).U[:, : part._memory["first"].basis_IK.shape[1] - 1])
    assert held >= 0.75
    assert 1 - float(smaller.without(moment).diagonal().sum() / moment.diagonal().sum()) < 0.75


def test_more_tasks_than_directions_are_refused_before_anything_is_trained() -> None:
    """Defaults: all of the inputs is remembered after the 11th task."""
    tasks = [Stage(f"t{i}", ()) for i in range(12)]
    assert InfLora().falls_short(tasks[:11]) is None
    assert "method.init.over_tasks=12" in str(InfLora().falls_short(tasks))
    assert InfLora(over_tasks=12).falls_short(tasks) is None
    assert InfLora(threshold_end=0.99).falls_short(tasks) is None


@pytest.mark.parametrize(
    "settings, reason",
    [
        ({"threshold": 0.9, "threshold_end": 0.8}, "threshold rises to threshold_end"),
        ({"threshold": 0.995, "threshold_end": 0.995, "over_tasks": 5}, "over_tasks is not read"),
    ],
)
def test_thresholds_that_cannot_be_meant_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        InfLora(**settings)


def test_a_full_memory_is_named() -> None:
    part = InfLora()
    part.load({"left.first": torch.zeros(INPUTS, 0, dtype=torch.float64)})
    with pytest.raises(TrainingError, match="no free input direction left at 'first' for task 'task0'"):
        part.start(context())

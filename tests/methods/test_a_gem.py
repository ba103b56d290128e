"""A-GEM: the projection by hand, its promise on random gradients, what it draws, and when it leaves gradients alone."""

import dataclasses
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.errors import UnmetNeed
from perdure.methods.a_gem import AGem, gram, project
from perdure.methods.contract.context import Gradients, Need
from perdure.methods.contract.parts import Start
from perdure.methods.plain import Kaiming
from tests.methods.two_layers import context, toy_task


def pairs(generator: torch.Generator) -> Gradients:
    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return {"q": (draw(2, 5), draw(4, 2)), "v": (draw(2, 5), draw(3, 2))}


def test_projection_by_hand() -> None:
    """g = (A: 1, B: 0), g_ref = (A: -1, B: 1): <g, ref> = -1, ||ref||^2 = 2, so g~ = (1/2, 1/2)."""
    one, zero = torch.ones(1, 1), torch.zeros(1, 1)
    projected, fired = project({"m": (one, zero)}, {"m": (-one, one)})
    assert [float(t) for t in projected["m"]] == [0.5, 0.5]  # type: ignore[arg-type]
    assert fired


def test_inner_products_are_over_all_modules_together() -> None:
    """Module q conflicts, v agrees more strongly: nothing is projected."""
    one = torch.ones(1, 1)
    grads: Gradients = {"q": (one, one), "v": (3 * one, 3 * one)}
    reference: Gradients = {"q": (-one, -one), "v": (one, one)}
    projected, fired = project(grads, reference)
    assert not fired
    assert projected["q"][0] is not None
    assert float(projected["q"][0]) == 1.0


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_the_inner_product_is_never_negative(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    grads, reference = pairs(generator), pairs(generator)
    before = gram(grads, reference)
    after = gram(project(grads, reference)[0], reference)
    assert after.cr >= -1e-4
    assert after.cr == pytest.approx(max(0.0, before.cr), abs=1e-4)


def test_float64_gradients_are_projected_to_1e_12() -> None:
    """fp32 inner products left 8e-8 of the conflict."""
    generator = torch.Generator().manual_seed(3)

    def drawn(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator, dtype=torch.float64)

    pairs = {m: (drawn(4, 30), drawn(20, 4)) for m in "ab"}
    grads: Gradients = {m: (A, B) for m, (A, B) in pairs.items()}
    reference: Gradients = {m: (drawn(4, 30) - 2 * A, drawn(20, 4) - 2 * B) for m, (A, B) in pairs.items()}
    projected, fired = project(grads, reference)
    found = gram(projected, reference)
    assert fired
    assert abs(found.cr) / (found.cc * found.rr) ** 0.5 < 1e-12


def test_frozen_factors_stay_none() -> None:
    one = torch.ones(1, 1)
    projected, fired = project({"m": (None, one)}, {"m": (None, -one)})
    assert fired
    assert projected["m"][0] is None
    assert float(projected["m"][1]) == 0.0  # type: ignore[arg-type]


def test_gradients_against_remembered_examples() -> None:
    """With g = -(gradient on the whole buffer), nothing is left; with +, nothing changes; the rate is logged."""
    kept = toy_task(0).train[:16]
    ctx = context(1, buffer={"task0": kept})
    start: Start = Kaiming().start(ctx)
    ctx.model.start(start)
    part = AGem(batch_size=16)
    part.before_task(ctx)
    reference = ctx.task_gradients(kept)
    same = part.gradients(ctx, reference)
    assert torch.equal(same["first"][1], reference["first"][1])  # type: ignore[arg-type]
    against: Gradients = {m: (None if a is None else -a, None if b is None else -b) for m, (a, b) in reference.items()}
    left = part.gradients(ctx, against)
    assert max(float(t.abs().max()) for pair in left.values() for t in pair if t is not None) < 1e-6
    assert float(reference["first"][1].abs().max()) > 1e-3  # type: ignore[union-attr]
    assert ctx.notes["a-gem/fired"] == 0.5


def test_a_layer_the_loss_does_not_reach_has_no_gradient() -> None:
    ctx = context(1)
    ctx.model.start(Kaiming().start(ctx))
    ctx.model.modules["unused"] = dataclasses.replace(
        ctx.model.modules["second"], A=torch.nn.Parameter(torch.ones(2, 5)), B=torch.nn.Parameter(torch.ones(4, 2))
    )
    grads = ctx.task_gradients(toy_task(0).train[:8])
    assert grads["unused"] == (None, None)
    assert grads["second"][1] is not None


def test_each_step_draws_its_own_examples_and_a_resumed_one_the_same() -> None:
    drawn: list[list[str]] = []
    ctx = context(1, buffer={"task0": toy_task(0).train})
    ctx.task_gradients = lambda examples: drawn.append([e.text for e in examples]) or {}  # type: ignore[method-assign]
    part = AGem(batch_size=8)
    part.before_task(ctx)
    part.gradients(ctx, {})
    state = part.state()
    part.gradients(ctx, {})
    resumed = AGem(batch_size=8)
    resumed.load(state)
    resumed.gradients(ctx, {})
    assert len(drawn[0]) == len(set(drawn[0])) == 8
    assert drawn[0] != drawn[1] == drawn[2]


def test_only_what_is_drawn_is_read_and_it_is_drawn_as_ever() -> None:
    class Rows(list[Any]):
        read: ClassVar[list[Any]] = []

        def __iter__(self):
            raise AssertionError("every old row is read")

        def __getitem__(self, index):
            self.read.append(found := super().__getitem__(index))
            return found

    first, second = toy_task(0).train[:5], toy_task(1).train[:7]
    ctx = context(2, buffer={"task0": Rows(first), "empty": Rows([]), "task1": Rows(second)})
    ctx.model.start(Kaiming().start(ctx))
    part = AGem(batch_size=4)
    part.before_task(ctx)
    part.gradients(ctx, ctx.task_gradients(first))
    order = torch.randperm(12, generator=ctx.generator("a-gem.0"))[:4].tolist()
    assert Rows.read == [[*first, *second][i] for i in order]


def test_first_task_is_left_alone_and_later_ones_need_a_buffer() -> None:
    grads = pairs(torch.Generator().manual_seed(0))
    assert AGem().gradients(context(0), grads) is grads
    with pytest.raises(UnmetNeed, match="replay buffer is empty"):
        AGem().gradients(context(1), grads)
    assert {Need.OLD_EXAMPLES} == AGem.needs

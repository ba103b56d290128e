"""Output drift: vanishes on unused inputs, is what it says on the net, and its statistics survive."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from perdure.methods.contract.past import Past
from perdure.methods.output_drift import OutputDrift
from perdure.ops.factors import Factors
from perdure.ops.lowrank import dense
from tests.methods.two_layers import context


def used(moments: dict[str, torch.Tensor], weights: dict[str, torch.Tensor], **settings: Any) -> OutputDrift:
    part = OutputDrift(weight=1.0, **settings)
    part.load({f"moment.{module}": moment for module, moment in moments.items()})
    ctx: Any = SimpleNamespace(weight=lambda module: weights[module])
    part.before_task(ctx)
    return part


def test_vanishes_on_inputs_the_past_never_used() -> None:
    moment = torch.diag(torch.tensor([1.0, 2.0, 0.0, 0.0]))
    part = used({"q": moment}, {"q": torch.randn(3, 4)})
    unused = Factors(torch.tensor([[0.0, 0.0, 5.0, -1.0]]), torch.randn(3, 1), 2.0)
    value, grad_A, grad_B = part.value_and_grad("q", unused, Past())
    assert value == 0
    assert not grad_A.any()
    assert not grad_B.any()
    assert part.value_and_grad("q", Factors(torch.ones(1, 4), torch.ones(3, 1), 2.0), Past())[0] > 0


@pytest.mark.parametrize("normalised", [True, False])
def test_equals_the_formula(normalised: bool) -> None:
    torch.manual_seed(0)
    x = {"a": torch.randn(20, 4), "b": torch.randn(20, 3)}
    moments = {module: x.mT @ x / 20 for module, x in x.items()}
    weights = {"a": torch.randn(5, 4), "b": torch.randn(2, 3)}
    pairs = {m: Factors(torch.randn(2, w.shape[1]), torch.randn(w.shape[0], 2), 0.5) for m, w in weights.items()}
    changed = {m: (x[m] @ dense(pairs[m].update()).mT).square().sum() / 20 for m in x}
    energies = {m: (x[m] @ weights[m].mT).square().sum() / 20 for m in x}
    expected = sum(changed[m] / energies[m] for m in x) / 2 if normalised else sum(changed.values())
    value, _ = used(moments, weights, normalised=normalised).values_and_grads(pairs, Past())
    assert float(value) == pytest.approx(float(expected), rel=1e-5)


def test_statistics_add_up_over_tasks_and_survive() -> None:
    part, seen = OutputDrift(weight=1.0), []
    for index in range(2):
        ctx = context(index)
        part.after_task(ctx, {})
        seen.append(ctx.backbone.collate(ctx.stage.train).inputs["x"])
    wanted = sum(x.mT @ x / len(x) for x in seen)
    torch.testing.assert_close(part.state()["moment.first"], wanted, rtol=1e-4, atol=1e-5)
    part.before_task(context(2))
    again = OutputDrift(weight=1.0)
    again.load(part.state())
    pair = context(2).factors["first"]
    pair = Factors(torch.ones_like(pair.A), torch.ones_like(pair.B), pair.scaling)
    assert torch.equal(part.value_and_grad("first", pair, Past())[1], again.value_and_grad("first", pair, Past())[1])


def test_a_module_no_input_reached_is_left_alone() -> None:
    part = used({"q": torch.zeros(4, 4)}, {"q": torch.ones(3, 4)})
    value, grad_A, _ = part.value_and_grad("q", Factors(torch.ones(1, 4), torch.ones(3, 1), 1.0), Past())
    assert value == 0
    assert not grad_A.any()


def test_first_task_is_free() -> None:
    pair = Factors(torch.ones(1, 2), torch.ones(2, 1), 1.0)
    assert OutputDrift(weight=1.0).value_and_grad("q", pair, Past())[0] == 0

"""Score drift: by hand on a linear scorer, free where no score depends on it, and its statistics survive."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from perdure.errors import Diverged
from perdure.methods.contract.past import Past
from perdure.methods.ewc import FisherPenalty
from perdure.methods.output_drift import OutputDrift
from perdure.methods.plain import Kaiming
from perdure.methods.score_drift import ScoreDrift
from perdure.ops.factors import Factors
from perdure.ops.lowrank import dense
from perdure.training.context import StageContext
from tests.methods.two_layers import context

PAST = Past(stages=("task0",))


def pair(shape: tuple[int, int]) -> Factors:
    torch.manual_seed(1)
    return Factors(torch.randn(2, shape[1]), torch.randn(shape[0], 2), 0.5)


def begun(index: int) -> StageContext:
    """The context of a stage whose adapter has started."""
    ctx = context(index)
    ctx.model.start(Kaiming().start(ctx))
    return ctx


def test_the_last_layer_by_hand() -> None:
    """The toy's scores are outputs of `second` themselves, so J picks the task's two units.

    Signs are equal for a half of the examples, which then have no gradient after centring; for the others g is
    (1, -1) / sqrt 2 or its opposite: F is m [[.5, -.5], [-.5, .5]], m the share of these others, and C is over them.
    """
    part, ctx = ScoreDrift(weight=1.0), begun(0)
    part.after_task(ctx, {})
    found = part.state()["outputs.0.second"]
    share = 2 * float(found[0, 0])
    assert 0.25 < share < 0.75
    wanted = torch.zeros_like(found)
    wanted[:2, :2] = share * torch.tensor([[0.5, -0.5], [-0.5, 0.5]])
    torch.testing.assert_close(found, wanted)

    update = pair((8, 10))
    delta, C = dense(update.update()), part.state()["inputs.0.second"]
    difference = delta[0] - delta[1]
    value, _, _ = part.value_and_grad("second", update, PAST)
    assert float(value) == pytest.approx(float(share / 2 * difference @ C @ difference), rel=1e-5)


def test_free_where_no_score_depends_on_it() -> None:
    part = ScoreDrift(weight=1.0)
    part.after_task(begun(0), {})
    update = pair((8, 10))
    other = Factors(update.A, torch.cat([torch.zeros(2, 2), update.B[2:]]), 0.5)  # units of other tasks
    assert part.value_and_grad("second", other, PAST)[0] == 0
    assert part.value_and_grad("second", update, PAST)[0] > 0


def test_first_task_is_free() -> None:
    assert ScoreDrift(weight=1.0).value_and_grad("second", pair((8, 10)), Past())[0] == 0


def test_statistics_survive_and_the_sum_is_shared_among_tasks() -> None:
    part = ScoreDrift(weight=1.0)
    part.after_task(begun(0), {})
    part.after_task(begun(1), {})
    again = ScoreDrift(weight=1.0)
    again.load(part.state())
    both = Past(stages=("task0", "task1"))
    for module, shape in (("first", (10, 12)), ("second", (8, 10))):
        one, two = (each.value_and_grad(module, pair(shape), both) for each in (part, again))
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
        torch.testing.assert_close(part.value_and_grad(module, pair(shape), PAST)[0], 2 * one[0])


@pytest.mark.parametrize("made", [ScoreDrift, OutputDrift, FisherPenalty])
def test_statistics_that_are_not_finite_are_refused_and_not_remembered(made: Any) -> None:
    part, ctx = made(weight=1.0), begun(0)
    with torch.no_grad():
        ctx.model.modules["first"].B.fill_(float("nan"))
    with pytest.raises(Diverged, match=r"measured of the task to protect it.*is not finite"):
        part.after_task(ctx, {})
    assert not part.state()

"""Score drift: by hand on a linear scorer, free where no score depends on it, and its statistics survive."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from perdure.errors import ConfigError, Diverged
from perdure.methods import score_drift
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


def low_rank(**settings: Any) -> ScoreDrift:
    return ScoreDrift(weight=1.0, statistics_rank=2, **settings)


@pytest.mark.parametrize("made", [ScoreDrift, OutputDrift, FisherPenalty, low_rank])
def test_statistics_that_are_not_finite_are_refused_and_not_remembered(made: Any) -> None:
    part, ctx = made(**{} if made is low_rank else {"weight": 1.0}), begun(0)
    with torch.no_grad():
        ctx.model.modules["first"].B.fill_(float("nan"))
    with pytest.raises(Diverged, match=r"measured of the task to protect it.*is not finite"):
        part.after_task(ctx, {})
    assert not part.state()


SHAPES = {"first": (10, 12), "second": (8, 10)}
BOTH = Past(stages=("task0", "task1"))


def after_two_tasks(part: ScoreDrift) -> ScoreDrift:
    part.after_task(begun(0), {})
    part.after_task(begun(1), {})
    return part


def bytes_of(shapes: list[tuple[int, int]], rank: int, uses: int = 1) -> int:
    """What `statistics_rank` promises: (rank + 1) (in + out) fp32 numbers a module and use."""
    return 4 * (rank + 1) * uses * sum(out + into for out, into in shapes)


def test_a_rank_of_the_whole_width_is_the_whole_form() -> None:
    whole, bounded = (after_two_tasks(ScoreDrift(weight=1.0, statistics_rank=rank)) for rank in ("all", 12))
    for module, shape in SHAPES.items():
        for one, two in zip(
            *(part.value_and_grad(module, pair(shape), BOTH) for part in (whole, bounded)), strict=True
        ):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_bounded_statistics_have_the_size_that_was_promised_and_survive() -> None:
    part, again = after_two_tasks(low_rank()), low_rank()
    assert sum(tensor.nbytes for tensor in part.state().values()) == bytes_of([*SHAPES.values()], 2)
    again.load(part.state())
    for module, shape in SHAPES.items():
        one, two = (each.value_and_grad(module, pair(shape), BOTH) for each in (part, again))
        assert float(one[0]) > 0
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_the_size_at_large_shapes() -> None:
    """Rank 64 on every linear layer of LLaMA 3 8B: .68 GB, where whole matrices take 98. MiniLM: 4 x the adapter of rank 8."""
    wide, narrow, inner = 4096, 1024, 14336
    layer = [(wide, wide)] * 2 + [(narrow, wide)] * 2 + [(inner, wide)] * 2 + [(wide, inner)]
    llama = layer * 32
    assert bytes_of(llama, 64) == 681_574_400
    assert bytes_of(llama, 64) < 1e9 < 98e9 < 4 * sum(out**2 + into**2 for out, into in llama)
    minilm = [(384, 384)] * 12  # query and value of six layers, for texts and for labels
    adapter = 4 * 8 * sum(out + into for out, into in minilm)
    assert bytes_of(minilm, 15, uses=2) == 4 * adapter


def test_without_a_rank_large_statistics_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """4 (10^2 + 12^2 + 8^2 + 10^2) = 1,632 bytes: whole up to there, else bounded; what is remembered decides from then on."""
    whole = after_two_tasks(ScoreDrift(weight=1.0))
    monkeypatch.setattr(score_drift, "SMALL", 1632)
    assert after_two_tasks(ScoreDrift(weight=1.0)).state().keys() == whole.state().keys()
    monkeypatch.setattr(score_drift, "SMALL", 1631)
    monkeypatch.setattr(score_drift, "BOUNDED", 2)
    bounded, asked = after_two_tasks(ScoreDrift(weight=1.0)).state(), after_two_tasks(low_rank()).state()
    assert all(torch.equal(bounded[key], asked[key]) for key in bounded.keys() | asked.keys())
    again = ScoreDrift(weight=1.0)
    again.load(whole.state())
    again.after_task(begun(1), {})
    assert again.state().keys() == whole.state().keys()


@pytest.mark.parametrize("was,now", [("all", 2), (2, "all")])
def test_statistics_of_the_other_form_are_refused(was: Any, now: Any) -> None:
    """They would be looked for in vain, and count as none."""
    part = ScoreDrift(weight=1.0, statistics_rank=was)
    part.after_task(begun(0), {})
    with pytest.raises(ConfigError, match=f"statistics_rank is {now}. Set it as it was"):
        ScoreDrift(weight=1.0, statistics_rank=now).load(part.state())
    other = ScoreDrift(weight=1.0, statistics_rank="all" if was == "all" else 3)
    other.load(part.state())  # another number of directions is no other form
    other.after_task(begun(1), {})
    assert float(other.value_and_grad("first", pair((10, 12)), BOTH)[0]) > 0

"""SLICE without replay: away from old inputs, equal to plain factors without a past, sketched as dense."""

import pytest
import torch

from perdure.methods.lora_ga import LoraGa
from perdure.methods.measured.input_moments import input_moments
from perdure.methods.slice import Slice
from perdure.methods.slice_free import SliceFree
from tests.methods.two_layers import HIDDEN, INPUTS, context

SMALL = {"batches": 3, "batch_size": 8}


def test_moments_by_hand() -> None:
    ctx = context()
    x = ctx.backbone.collate(ctx.stage.train[:2]).inputs["x"].double()
    moment = input_moments(ctx, [ctx.stage.train[:1], ctx.stage.train[1:2]])["first"]
    assert torch.allclose(moment, (torch.outer(x[0], x[0]) + torch.outer(x[1], x[1])) / 2, atol=1e-6)


def past(directions: int) -> dict[str, torch.Tensor]:
    """Old inputs that live in the first dimensions of each layer's input space, very strongly."""
    return {
        name: torch.diag(torch.tensor([1e6] * directions + [0.0] * (size - directions), dtype=torch.float64))
        for name, size in (("first", INPUTS), ("second", HIDDEN))
    }


@pytest.mark.parametrize("storage", ["dense", "sketched"])
def test_the_start_leaves_old_input_directions_alone(storage: str) -> None:
    wide = {"sketch_width": 12} if storage == "sketched" else {}
    part = SliceFree(**SMALL, storage=storage, **wide, ridge=1e-9)  # type: ignore[arg-type]
    part.load(past(4))
    A = part.start(context(1)).factors["first"].A
    assert A[:, :4].norm() < 1e-3 * A.norm()


def test_without_weight_on_the_past_it_is_slices_plain_start() -> None:
    """kappa = 0: P = I, so the factors are those of the untouched gradient."""
    task = context(1).stage.train
    whole = {"batches": 1, "batch_size": len(task)}  # one batch, so that both see the same
    part, reference = SliceFree(**whole, kappa=0.0), Slice(**whole, operator="none", replay_batches=1)
    part.load(past(4))
    start, expected = part.start(context(1)), reference.start(context(1, buffer={"task0": task}))
    assert torch.allclose(start.factors["first"].B.abs(), expected.factors["first"].B.abs(), atol=1e-4)


def test_first_task_is_lora_ga() -> None:
    start, reference = SliceFree(**SMALL).start(context()), LoraGa(**SMALL).start(context())
    assert torch.equal(start.factors["first"].A, reference.factors["first"].A)


def test_function_is_unchanged_and_moments_add_up() -> None:
    part = SliceFree(**SMALL)
    part.after_task(context(0), {})
    once = part.state()["first"].clone()
    part.after_task(context(0), {})
    assert torch.allclose(part.state()["first"], 2 * once)
    copy = SliceFree(**SMALL)
    copy.load(part.state())
    ctx = context(1)
    inputs = ctx.backbone.collate(ctx.stage.train)
    with torch.no_grad():
        before = ctx.backbone.forward(inputs).features
    ctx.model.start(copy.start(ctx))
    with torch.no_grad():
        assert (before - ctx.backbone.forward(inputs).features).abs().max() < 1e-5

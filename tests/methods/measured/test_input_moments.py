"""A module that no input reaches, as an expert that is never chosen: methods go on, or name it before anything is trained."""

from typing import Any

import pytest
import torch
from torch import nn

from perdure.errors import TrainingError
from perdure.methods.contract.parts import Init
from perdure.methods.contract.past import Past
from perdure.methods.covariance_gain import CovarianceGain
from perdure.methods.inf_lora import InfLora
from perdure.methods.measured.input_moments import input_moments
from perdure.methods.output_drift import OutputDrift
from perdure.methods.slice_free import SliceFree
from perdure.ops.factors import Factors
from perdure.ops.lowrank import LowRank, dense
from perdure.training.context import StageContext
from tests.methods.two_layers import HIDDEN, UNITS, context


def skipping(index: int = 0) -> StageContext:
    """Task `index` on the net with a matrix in the place of its second layer, which is never called."""
    ctx = context(index)
    net: Any = ctx.backbone.model
    weight = torch.randn(UNITS, HIDDEN, generator=torch.Generator().manual_seed(0))
    net.forward = lambda x: nn.functional.linear(torch.tanh(net.first(x)), weight)
    return ctx


def test_moments_are_zeros_there() -> None:
    moments = input_moments(skipping(), [context().stage.train[:4]])
    assert moments["first"].any()
    assert torch.equal(moments["second"], torch.zeros(HIDDEN, HIDDEN, dtype=torch.float64))


def test_output_drift_and_covariance_gain_go_on() -> None:
    drift, gain = OutputDrift(weight=1.0), CovarianceGain()
    for index in range(2):
        ctx = skipping(index)
        drift.before_task(ctx)
        drift.after_task(ctx, {})
        update = {m: LowRank(torch.ones_like(p.A), torch.ones_like(p.B)) for m, p in ctx.factors.items()}
        folded = gain.fold(ctx, Past(), update)
    drift.before_task(skipping(2))
    ones = {m: Factors(torch.ones_like(p.A), torch.ones_like(p.B), 1.0) for m, p in skipping().factors.items()}
    assert drift.value_and_grad("first", ones["first"], Past())[0] > 0
    assert drift.value_and_grad("second", ones["second"], Past())[0] == 0
    assert torch.equal(dense(folded.carry["second"]), dense(update["second"]))


@pytest.mark.parametrize("init", [InfLora(), SliceFree(batches=2, batch_size=8)], ids=["inf-lora", "slice-free"])
@pytest.mark.parametrize("learnt", [False, True], ids=["first task", "second task"])
def test_inits_that_start_from_inputs_name_it(init: Init, learnt: bool) -> None:
    if learnt:
        init.after_task(skipping(), {})
    with pytest.raises(TrainingError, match=r"'second'.*lora\.targets"):
        init.start(skipping())


def test_a_memory_does_not_change_without_inputs() -> None:
    """Reached when the task began, and not once it was trained: what it learnt is not lost."""
    part = InfLora()
    part.load({"used.second": torch.eye(HIDDEN, dtype=torch.float64)[:, :3]})
    part.after_task(skipping(), {})
    assert torch.equal(part.state()["used.second"], torch.eye(HIDDEN, dtype=torch.float64)[:, :3])
    assert {"used.first", "left.first"} & set(part.state())  # what inputs reach is remembered as ever

"""Covariance gain as a consolidation: spares the earlier tasks' inputs, adds statistics up, keeps them over a resume."""

from typing import Any

import torch

from perdure.methods.contract.past import Past
from perdure.methods.covariance_gain import CovarianceGain
from perdure.methods.plain import Sum
from perdure.ops.lowrank import LowRank, dense
from tests.methods.two_layers import context


def update(ctx: Any, seed: int) -> dict[str, LowRank]:
    make = torch.Generator().manual_seed(seed)
    return {
        module: LowRank(torch.randn(pair.A.shape, generator=make), torch.randn(pair.B.shape, generator=make))
        for module, pair in ctx.factors.items()
    }


def learn(part: Any, count: int) -> Past:
    past = Past()
    for index in range(count):
        ctx = context(index)
        folded = part.fold(ctx, past, update(ctx, index))
        past = Past((*past.stages, str(index)), {}, folded.carry, folded.deployed)
    return past


def test_first_task_is_kept_whole() -> None:
    for module, delta in learn(CovarianceGain(), 1).carry.items():
        assert torch.equal(dense(delta), dense(learn(Sum(), 1).carry[module]))


def test_kappa_0_is_the_sum() -> None:
    for module, delta in learn(CovarianceGain(kappa=0.0), 2).carry.items():
        torch.testing.assert_close(dense(delta), dense(learn(Sum(), 2).carry[module]))


def test_the_second_update_changes_old_outputs_less_than_in_a_sum() -> None:
    old = context(0).backbone.collate(context(0).stage.train).inputs["x"]
    first = dense(learn(Sum(), 1).carry["first"])

    def moved(part: Any) -> float:
        return float((old @ (dense(learn(part, 2).carry["first"]) - first).mT).square().sum())

    assert moved(CovarianceGain(kappa=100.0)) < moved(CovarianceGain()) < moved(Sum())


def test_statistics_add_up_and_survive() -> None:
    part = CovarianceGain()
    learn(part, 2)
    x = [context(i).backbone.collate(context(i).stage.train).inputs["x"] for i in range(2)]
    torch.testing.assert_close(part.state()["first"], sum(v.mT @ v / len(v) for v in x), rtol=1e-4, atol=1e-5)
    again = CovarianceGain()
    again.load(part.state())
    ctx = context(2)
    for module, delta in part.fold(ctx, Past(), update(ctx, 5)).carry.items():
        assert torch.equal(dense(delta), dense(again.fold(ctx, Past(), update(ctx, 5)).carry[module]))
        break

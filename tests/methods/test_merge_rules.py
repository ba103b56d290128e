"""Merging rules as consolidations: what is deployed, and what the next task trains on."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from perdure.methods.contract.past import Past, PerTask
from perdure.methods.merge_rules import Average, Dare, MagMax, MergeRule, Ties
from perdure.ops.lowrank import LowRank, add_updates, dense
from tests.merging.merge_cases import random_updates
from tests.merging.whole_updates import dare_updates, magmax_updates, ties_updates

ROWS = [[4.0, 1.0, -2.0, 0.5], [2.0, -3.0, -1.0, 0.1], [-3.0, -1.0, 1.0, 0.2]]
"""Three updates of one module [1, 4]."""


def updates() -> list[dict[str, LowRank]]:
    return [{"q": LowRank(torch.tensor([row]), torch.ones(1, 1))} for row in ROWS]


def folded(rule: MergeRule, count: int = 3) -> tuple[torch.Tensor, Mapping[str, Any]]:
    """Deployed and carry after `count` tasks."""
    ctx: Any = SimpleNamespace(generator=lambda purpose: torch.Generator().manual_seed(0))
    learnt, past = updates(), Past(load_update=lambda index: updates()[index])
    for index in range(count):
        result = rule.fold(ctx, past, learnt[index])
        assert not isinstance(result.deployed, PerTask)
        total = add_updates(past.total, learnt[index])
        stages = (*past.stages, str(index))
        past = Past(stages, total, result.carry, result.deployed, load_update=past.load_update)
    return dense(past.deployed["q"])[0], past.carry  # pyright: ignore[reportArgumentType,reportIndexIssue]


def test_average_by_hand() -> None:
    deployed, carry = folded(Average())
    torch.testing.assert_close(deployed, torch.tensor([1.0, -1.0, -2 / 3, 0.8 / 3]))
    assert carry == {}


def test_ties_by_hand() -> None:
    # density .5 keeps two entries each: [4, ., -2, .], [2, -3, ., .], [-3, -1 or 1 tie kept: -1 and 1, .]
    deployed, carry = folded(Ties(density=0.5))
    # signs of the sums (3, -4, -1, 0): + - - ; means of those that agree: (4+2)/2, (-3-1)/2, -2
    torch.testing.assert_close(deployed, torch.tensor([3.0, -2.0, -2.0, 0.0]))
    assert carry == {}


def test_dare_at_full_density_is_the_sum_and_at_half_is_not() -> None:
    torch.testing.assert_close(folded(Dare(density=1.0))[0], torch.tensor([3.0, -3.0, -2.0, 0.8]))
    half = folded(Dare(density=0.5))[0]
    assert torch.equal(half, folded(Dare(density=0.5))[0])
    assert not torch.allclose(half, torch.tensor([3.0, -3.0, -2.0, 0.8]))


def test_magmax_by_hand_goes_on_from_the_sum() -> None:
    # cumulative: [4, 1, -2, .5], [6, -2, -3, .6], [3, -3, -2, .8]; the farthest, halved
    deployed, carry = folded(MagMax())
    torch.testing.assert_close(deployed, torch.tensor([3.0, -1.5, -1.5, 0.4]))
    torch.testing.assert_close(dense(carry["q"])[0], torch.tensor([3.0, -3.0, -2.0, 0.8]))


@pytest.mark.parametrize("rule", [Average, Ties, Dare, MagMax])
def test_what_the_next_task_trains_on(rule: type[MergeRule]) -> None:
    assert folded(rule(trains_on="pretrained"))[1] == {}
    torch.testing.assert_close(dense(folded(rule(trains_on="sum"))[1]["q"])[0], torch.tensor([3.0, -3.0, -2.0, 0.8]))
    deployed, carry = folded(rule(trains_on="merged"))
    assert torch.equal(dense(carry["q"])[0], deployed)


def test_a_method_merges_as_its_rule_does_to_the_bit() -> None:
    ctx: Any = SimpleNamespace(generator=lambda purpose: torch.Generator().manual_seed(0))
    given = random_updates(3)
    seed = int(torch.randint(2**31, (), generator=ctx.generator("dare")))
    for found, expected in (
        (Ties(density=0.3, scope="tensor", scale=0.7), ties_updates(given, 0.3, "tensor", scale=0.7)),
        (Ties(density=1.0), ties_updates(given, 1.0)),
        (Dare(density=0.4, consensus="ties", scale=2.0), dare_updates(given, 0.4, seed, "ties", scale=2.0)),
        (Dare(rescale=False), dare_updates(given, 0.5, seed, rescale=False)),
        (MagMax(scale=0.25), magmax_updates(given, 0.25)),
    ):
        merged = found._merged(ctx, given)
        assert all(torch.equal(dense(merged[module]), expected[module]) for module in expected)

"""Rules that depend on the order of training: MagMax, SLAO and covariance-gain."""

import math

import pytest
import torch

from perdure.errors import AdapterError
from perdure.merging.covariance_gain import covariance_gain
from perdure.merging.modules import merge_modules
from perdure.merging.slao import slao, slao_chain
from perdure.ops.lowrank import LowRank, dense
from tests.merging.merge_cases import assert_same, gained_sums, random_update, random_updates
from tests.merging.whole_updates import magmax_updates


def test_magmax_compares_cumulative_vectors_by_hand():
    updates = [{"m": torch.tensor([[2.0, 1.0, 3.0]])}, {"m": torch.tensor([[-1.0, 1.0, -6.0]])}]
    # cumulative: 2 1 3 then 1 2 -3; the farthest: 2, 2, and on the tie 3 / -3 the later
    assert magmax_updates(updates, scale=1)["m"].tolist() == [[2, 2, -3]]
    assert magmax_updates(updates)["m"].tolist() == [[1, 1, -1.5]], "scale .5 as released"


def test_magmax_of_cumulative_vectors_equals_the_argmax():
    updates = random_updates(4)
    merged = magmax_updates(updates, scale=1)
    for name in merged:
        cumulative = torch.stack([dense(update[name]) for update in updates]).cumsum(dim=0)
        latest_largest = cumulative.abs().flip(0).argmax(dim=0, keepdim=True)
        torch.testing.assert_close(merged[name], cumulative.flip(0).gather(0, latest_largest)[0])


def test_slao_by_hand():
    one = {"m": LowRank(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0]]))}
    two = {"m": LowRank(torch.tensor([[0.0, 1.0]]), torch.tensor([[4.0]]))}
    merged = dict(merge_modules([one, two], slao_chain))["m"]
    assert merged.A.tolist() == [[0, 1]], "the latest A"
    assert merged.B.item() == pytest.approx(2 + (4 - 2) / math.sqrt(2))


def test_slao_refuses_what_it_cannot_merge():
    one = random_update(0)
    with pytest.raises(AdapterError, match="rank 3, those before 2"):
        dict(merge_modules([one, random_update(1, rank=3)], slao_chain))
    with pytest.raises(AdapterError, match=r"update 2 has no 'layers\.1\.v'"):
        dict(merge_modules([one, {"layers.0.q": one["layers.0.q"]}], slao_chain))
    with pytest.raises(AdapterError, match="dense at module 'm'"):
        slao(None, torch.zeros(2, 2), 1, "m")


def test_covariance_gain_with_disjoint_inputs_keeps_the_own_and_removes_the_rest():
    own, old = torch.diag(torch.tensor([1.0, 0.0])), torch.diag(torch.tensor([0.0, 1.0]))
    delta = LowRank(torch.tensor([[3.0, 5.0]]), torch.ones(1, 1))
    kept = dense(covariance_gain(delta, own, old, ridge=1e-9))
    torch.testing.assert_close(kept, torch.tensor([[3.0, 0.0]]))


def test_covariance_gain_by_hand_where_inputs_overlap():
    identity = torch.eye(2)
    delta = torch.tensor([[4.0, 8.0]])
    torch.testing.assert_close(covariance_gain(delta, identity, identity, kappa=3, ridge=0), delta / 4)
    # the ridge is relative: eps = .5 * mean diagonal of (C + C) = 1, so dW / (1 + 1 + 1)
    torch.testing.assert_close(covariance_gain(delta, identity, identity, kappa=1, ridge=0.5), delta / 3)


def test_covariance_gain_minimises_the_error_it_states():
    generator = torch.Generator().manual_seed(0)
    inputs, old_inputs = torch.randn(40, 6, generator=generator), torch.randn(40, 6, generator=generator)
    delta = LowRank(torch.randn(2, 6, generator=generator), torch.randn(5, 2, generator=generator))
    own, old = inputs.mT @ inputs / 40, old_inputs.mT @ old_inputs / 40

    def error(matrix):
        return ((matrix - dense(delta)) @ inputs.mT).square().sum() + 2 * (matrix @ old_inputs.mT).square().sum()

    merged = covariance_gain(delta, own, old, kappa=2, ridge=0)
    assert isinstance(merged, LowRank)
    assert merged.rank == 2, "exports exactly"
    best = dense(merged).requires_grad_()
    error(best).backward()
    assert best.grad is not None
    assert best.grad.abs().max() < 1e-4 * error(best).item(), "the gradient vanishes: a minimum of a convex function"


def test_covariance_gain_without_others_or_inputs_changes_nothing():
    delta = torch.ones(2, 3)
    assert covariance_gain(delta, torch.eye(3), None) is delta
    assert covariance_gain(delta, torch.zeros(3, 3), torch.zeros(3, 3)) is delta


def test_covariance_gain_against_earlier_leaves_the_first_update_alone():
    updates = random_updates(2)
    moments = [{name: torch.eye(delta.shape[1]) for name, delta in update.items()} for update in updates]
    earlier = gained_sums(updates, moments, ridge=0, against="earlier")
    others = gained_sums(updates, moments, ridge=0)
    assert_same(earlier, {n: dense(updates[0][n]) + dense(updates[1][n]) / 2 for n in updates[0]})
    assert_same(others, {n: dense(updates[0][n]) / 2 + dense(updates[1][n]) / 2 for n in updates[0]})
    with pytest.raises(AdapterError, match=r"Update 2 needs an input second moment of .* for module 'layers\.0\.q'"):
        gained_sums(updates, [moments[0], {}])
    with pytest.raises(AdapterError, match=r"Update 2 needs .* 8 x 8 for module 'layers\.0\.q' and has one of 3 x 3"):
        gained_sums(updates, [moments[0], dict.fromkeys(updates[0], torch.eye(3))])
    with pytest.raises(AdapterError, match=r"at module 'layers\.0\.q': their sum is not positive definite"):
        gained_sums(updates, [moments[0], {n: 3 * m - 2.5 for n, m in moments[1].items()}])


def test_of_the_others_moments_only_the_sum_is_held(monkeypatch):
    """They are asked for one by one, and added up in their order."""
    updates = random_updates(5)
    moments = [{name: torch.eye(delta.shape[1]) for name, delta in update.items()} for update in updates]
    monkeypatch.setattr(torch, "stack", lambda *_args: pytest.fail("holds them all"))
    assert set(gained_sums(updates, moments)) == set(updates[0])

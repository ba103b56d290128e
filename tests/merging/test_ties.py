"""TIES: by hand, against a listing of the paper on stacked tensors, and over both scopes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.ops.lowrank import dense
from tests.merging.merge_cases import assert_same, one_row_tiles, random_updates
from tests.merging.whole_updates import ties_updates

T1 = torch.tensor([[3.0, -1.0, 2.0, 0.1, -4.0]])
T2 = torch.tensor([[-1.0, -2.0, 3.0, 5.0, 0.5]])
T3 = torch.tensor([[-4.0, 0.2, -6.0, 1.0, 5.0]])
# trimmed to three of five:  3 0 2 0 -4 | 0 -2 3 5 0 | -4 0 -6 0 5;  sums -1 -2 -1 5 1;  elected - - - + +


def listing(stack: torch.Tensor, density: float) -> torch.Tensor:
    """Algorithm 1 on [T, numel], as it is written."""
    keep = max(1, int(density * stack.shape[1]))
    trimmed = torch.zeros_like(stack)
    places = stack.abs().topk(keep, dim=1).indices
    trimmed.scatter_(1, places, stack.gather(1, places))
    sign = torch.where(trimmed.sum(dim=0) >= 0, 1.0, -1.0)
    agree = (trimmed.sign() == sign).float()
    return (trimmed * agree).sum(dim=0) / agree.sum(dim=0).clamp_min(1)


def test_by_hand():
    merged = ties_updates([{"m": T1}, {"m": T2}, {"m": T3}], density=0.6)["m"]
    assert merged.tolist() == [[-4, -2, -6, 5, 5]]


def test_the_mean_is_over_those_that_agree():
    merged = ties_updates([{"m": torch.tensor([[1.0]])}, {"m": torch.tensor([[4.0]])}, {"m": torch.tensor([[-2.0]])}])
    assert merged["m"].item() == 2.5, "1 and 4 agree; neither 3 / 3 nor 5 / 3"


def test_scale_and_weights_by_hand():
    updates = [{"m": torch.tensor([[1.0, -3.0]])}, {"m": torch.tensor([[5.0, 1.0]])}]
    assert ties_updates(updates, density=1, scale=0.5)["m"].tolist() == [[1.5, -1.5]]
    assert ties_updates(updates, density=1, weights=[3, 1])["m"].tolist() == [[2, -3]]
    assert ties_updates(updates, density=1, weights=[1, 3])["m"].tolist() == [[4, 1]], "-3 + 3 = 0 elects +"
    assert ties_updates(updates, density=1, weights=[1, 7])["m"][0, 1] == 1, "-3 + 7: the vote is weighted"
    turned = ties_updates(updates, density=1, weights=[-1, 1])["m"]
    assert turned.tolist() == [[5, 2]], "a negative weight votes against: -1 +5 elects +, +3 and +1 agree"


def test_a_position_nobody_keeps_is_zero():
    assert ties_updates([{"m": T1}, {"m": T1}], density=0.2)["m"].tolist() == [[0, 0, 0, 0, -4]]


def test_scope_model_lets_a_large_module_keep_more():
    small, large = torch.tensor([[1.0, 2.0]]), torch.tensor([[30.0, 40.0]])
    update = {"small": small, "large": large}
    model = ties_updates([update], density=0.5, scope="model")
    tensor = ties_updates([update], density=0.5, scope="tensor")
    assert (model["small"].tolist(), model["large"].tolist()) == ([[0, 0]], [[30, 40]])
    assert (tensor["small"].tolist(), tensor["large"].tolist()) == ([[0, 2]], [[0, 40]])


def test_a_module_missing_in_one_update_does_not_vote():
    merged = ties_updates([{"m": torch.tensor([[2.0]])}, {"other": torch.tensor([[-9.0]])}], density=1)
    assert (merged["m"].item(), merged["other"].item()) == (2, -9)


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 4), density=st.floats(0.05, 1), seed=st.integers(0, 50))
def test_equals_the_listing_in_both_scopes(count, density, seed):
    updates = random_updates(count, seed)
    names = list(updates[0])
    per_tensor = {
        name: listing(torch.stack([dense(u[name]).reshape(-1) for u in updates]), density).view(updates[0][name].shape)
        for name in names
    }
    assert_same(ties_updates(updates, density, "tensor"), per_tensor)
    flat = torch.stack([torch.cat([dense(u[name]).reshape(-1) for name in names]) for u in updates])
    sizes = [dense(updates[0][name]).numel() for name in names]
    model = {
        name: part.view(updates[0][name].shape)
        for name, part in zip(names, listing(flat, density).split(sizes), strict=True)
    }
    assert_same(ties_updates(updates, density, "model"), model)


def test_row_tiles_do_not_change_the_result(monkeypatch):
    updates = random_updates(3)
    whole = ties_updates(updates, 0.3)
    one_row_tiles(monkeypatch)
    assert_same(ties_updates(updates, 0.3), whole, 1e-6)


def test_refuses_a_density_that_is_no_share():
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        ties_updates(random_updates(2), density=0)

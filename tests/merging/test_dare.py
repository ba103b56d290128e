"""DARE with an injected mask, with drawn masks, and the rescaling that makes it unbiased."""

import pytest
import torch

from perdure.errors import ConfigError
from perdure.merging.dare import drop
from perdure.ops.lowrank import dense
from tests.merging.merge_cases import assert_same, one_row_tiles, random_update, random_updates
from tests.merging.whole_updates import dare_updates


def test_an_injected_mask_by_hand():
    tile, mask = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[True, False, True]])
    assert drop(tile.clone(), mask, 0.5).tolist() == [[2, 0, 6]]
    assert drop(tile.clone(), mask, 0.5, rescale=False).tolist() == [[1, 0, 3]]


def test_injected_masks_reach_every_module_and_tile(monkeypatch):
    one_row_tiles(monkeypatch)

    def even_rows(_module, first_row, shape):
        return torch.full(shape, first_row % 2 == 0)

    update = random_update(0)
    merged = dare_updates([update], 0.5, masks=[even_rows])
    for name, delta in update.items():
        expected = dense(delta).clone()
        expected[1::2] = 0
        torch.testing.assert_close(merged[name], 2 * expected)


def test_the_rescaling_keeps_the_expectation():
    ones = {"m": torch.ones(200, 200)}
    merged = dare_updates([ones], density=0.25, seed=3)["m"]
    assert set(merged.unique().tolist()) == {0, 4}
    assert merged.mean().item() == pytest.approx(1, abs=5 * (3 / 40000) ** 0.5), "E = 1, Var = (1-p)/p = 3"


def test_masks_depend_on_seed_update_and_module_and_on_nothing_else(monkeypatch):
    ones = {"a": torch.ones(30, 30), "b": torch.ones(30, 30)}
    merged = dare_updates([ones], 0.5, seed=1)
    assert not torch.equal(merged["a"], merged["b"])
    assert not torch.equal(merged["a"], dare_updates([ones], 0.5, seed=2)["a"])
    assert torch.equal(merged["b"], dare_updates([{"b": ones["b"]}], 0.5, seed=1)["b"])
    both = dare_updates([ones, ones], 0.5, seed=1)
    assert set(both["a"].unique().tolist()) == {0, 2, 4}, "two updates draw different masks"
    one_row_tiles(monkeypatch)
    assert torch.equal(merged["a"], dare_updates([ones], 0.5, seed=1)["a"])


def test_consensus_ties_votes_on_what_is_left():
    def all_kept(_module, _row, shape):
        return torch.ones(shape, dtype=torch.bool)

    updates = [{"m": torch.tensor([[1.0]])}, {"m": torch.tensor([[4.0]])}, {"m": torch.tensor([[-2.0]])}]
    masks = [all_kept] * 3
    assert dare_updates(updates, 1, consensus="ties", masks=masks)["m"].item() == 2.5
    assert dare_updates(updates, 1, consensus="sum", masks=masks)["m"].item() == 3


def test_density_one_is_task_arithmetic():
    updates = random_updates(2)
    expected = {name: 0.5 * (2 * dense(updates[0][name]) - dense(updates[1][name])) for name in updates[0]}
    assert_same(dare_updates(updates, 1, weights=[2, -1], scale=0.5), expected)


@pytest.mark.parametrize("density", [0, 1.5])
def test_refuses_densities_that_would_give_not_a_number(density):
    with pytest.raises(ConfigError, match=r"\(0, 1\]"):
        dare_updates(random_updates(2), density)

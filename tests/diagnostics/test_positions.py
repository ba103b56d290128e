"""Signs, flips and collisions: by hand, on any tiling, and sampled with an interval that holds what it promises."""

import math

import pytest
import torch

from perdure.diagnostics.positions import PositionSettings, RowCounts, count_positions, share
from perdure.ops.lowrank import LowRank, dense
from tests.merging.merge_cases import one_row_tiles

X = torch.tensor([[2.0, -1.0, 0.0, 4.0]])
Y = torch.tensor([[-3.0, -2.0, 3.0, 4.0]])
LOOKING = PositionSettings(top=0.5, threshold=0.5)


def shares(counted, pair=(0, 1)):
    return {name: share([rows]).value for name, rows in counted.pairs[pair].items()}


def test_by_hand():
    found = shares(count_positions([X, Y], [(0, 1)], LOOKING))
    # products -6 2 0 16; large: X at 0 and 3, Y at 0 2 3; X + Y = -1 -3 3 8
    # root mean squares 2.29 and 3.08: non-zero are X at 0 and 3, Y everywhere
    assert found["opposite"] == 1 / 4
    assert found["opposite_top"] == 1 / 2
    assert found["opposite_weighted"] == pytest.approx(6 / 24)
    assert found["flip"] == 2 / 4, "2 turns to -1, and 0 gets a sign"
    assert found["collision"] == 2 / 4


def test_one_update_by_hand():
    counted = count_positions([X, Y], [], LOOKING)
    own = {name: share([rows]).value for name, rows in counted.own[0].items()}
    assert own == pytest.approx({"mean_magnitude": 7 / 4, "nonzero": 1 / 2})
    assert counted.largest == pytest.approx({0: 4, 1: 4})


def test_updates_that_are_the_same_or_reversed():
    delta = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    same, reversed_ = count_positions([delta, delta, -delta], [(0, 1), (0, 2)], LOOKING).pairs.values()
    assert share([same["opposite"]]).value == 0
    assert share([same["flip"]]).value == 0
    assert share([reversed_["opposite"]]).value == 1
    assert share([reversed_["opposite_weighted"]]).value == pytest.approx(1)
    assert share([reversed_["flip"]]).value == 1, "X - X = 0 has no sign"


def test_unrelated_updates_oppose_in_half_and_flip_a_quarter():
    generator = torch.Generator().manual_seed(1)
    found = shares(count_positions(list(torch.randn(2, 300, 300, generator=generator)), [(0, 1)], PositionSettings()))
    assert found["opposite"] == pytest.approx(0.5, abs=0.01)
    assert found["flip"] == pytest.approx(math.atan(1) / math.pi, abs=0.01)


def test_scale_free_where_it_should_be_and_in_the_units_of_the_update_elsewhere():
    tiny = count_positions([1e-25 * X, 1e-25 * Y], [(0, 1)], LOOKING)
    assert shares(tiny) == pytest.approx(shares(count_positions([X, Y], [(0, 1)], LOOKING)))
    assert tiny.largest[0] == pytest.approx(4e-25)
    assert share([tiny.own[0]["mean_magnitude"]]).value == pytest.approx(7e-25 / 4)


def test_tiles_and_representation_change_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(2)
    updates = [
        LowRank(torch.randn(3, 20, generator=generator), torch.randn(40, 3, generator=generator)) for _ in range(2)
    ]
    expected = shares(count_positions(updates, [(0, 1)], PositionSettings()))
    assert shares(
        count_positions([dense(update) for update in updates], [(0, 1)], PositionSettings())
    ) == pytest.approx(expected)
    one_row_tiles(monkeypatch)
    assert shares(count_positions(updates, [(0, 1)], PositionSettings())) == pytest.approx(expected)


def test_zero_and_missing_updates():
    counted = count_positions([torch.zeros(2, 2), torch.zeros(2, 2), None], [(0, 1), (0, 2)], LOOKING)
    assert set(counted.pairs) == {(0, 1)}
    assert shares(counted)["opposite_weighted"] is None, "nothing to divide by"
    assert shares(counted)["opposite"] == 0
    assert count_positions([None, None], [(0, 1)], LOOKING).pairs == {}


def test_zeros_are_never_among_the_largest():
    """Both write to the same tenth of the positions, all opposite: with k = 20 % the k-th largest entry is 0."""
    x = torch.zeros(10, 10)
    x[0] = torch.arange(1.0, 11.0)
    assert shares(count_positions([x, -x], [(0, 1)], PositionSettings()))["opposite_top"] == 1
    assert shares(count_positions([x, -x], [(0, 1)], PositionSettings(top=1.0)))["opposite_top"] == 1 / 10, (
        "every position"
    )


def test_share_adds_totals_and_not_means():
    one = RowCounts(torch.tensor([1.0]), torch.tensor([1.0]), 1)
    many = RowCounts(torch.tensor([0.0]), torch.tensor([9.0]), 1)
    assert share([one, many]).value == 0.1
    assert share([one, many]).half_width == 0


def test_the_interval_by_hand():
    # two of four rows looked at, numerators 0 and 2, denominators 2: R = .5, errors -1 and 1, variance 2
    rows = RowCounts(torch.tensor([0.0, 2.0]), torch.tensor([2.0, 2.0]), 4)
    found = share([rows])
    assert found.value == 0.5
    assert found.half_width == pytest.approx(1.96 * math.sqrt(16 * (1 - 2 / 4) * 2 / 2) / 8)


def test_nine_of_ten_intervals_hold_the_truth():
    generator = torch.Generator().manual_seed(3)
    updates = [
        LowRank(torch.randn(4, 30, generator=generator), torch.randn(400, 4, generator=generator)) for _ in range(2)
    ]
    truth = shares(count_positions(updates, [(0, 1)], PositionSettings()))
    held = dict.fromkeys(("opposite", "opposite_weighted", "flip", "collision"), 0)
    for seed in range(100):
        counted = count_positions(updates, [(0, 1)], PositionSettings(rows=0.2, seed=seed))
        for name in held:
            found = share([counted.pairs[0, 1][name]])
            assert found.value is not None
            assert truth[name] is not None
            held[name] += abs(found.value - truth[name]) <= found.half_width
    assert all(count >= 88 for count in held.values()), held


def test_all_rows_sampled_is_exact():
    rows = torch.randn(2, 20, 5, generator=torch.Generator().manual_seed(4))
    counted = count_positions(list(rows), [(0, 1)], PositionSettings(rows=1.0))
    assert share([counted.pairs[0, 1]["opposite"]]).half_width == 0
    assert shares(counted) == pytest.approx(shares(count_positions(list(rows), [(0, 1)], PositionSettings())))

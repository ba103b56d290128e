"""Max-magnitude: by hand, associative, order-free up to ties, and the same as a fold."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.merging.fold import Entry, merged
from perdure.merging.max_magnitude import KeepLarger, max_magnitude, max_magnitude_updates
from perdure.ops.lowrank import dense
from tests.merging.merge_cases import assert_same, random_updates


def test_by_hand_with_a_tie():
    merged_ = max_magnitude(torch.tensor([[1.0, -3.0, 2.0, 0.0]]), torch.tensor([[-2.0, 1.0, -2.0, 0.0]]))
    assert merged_.tolist() == [[-2, -3, 2, 0]], "on the tie 2 / -2 the earlier stays"


def test_missing_modules_count_as_zero():
    one, two = {"a": torch.ones(1, 1)}, {"b": -torch.ones(1, 1)}
    assert_same(max_magnitude_updates(one, two), {"a": torch.ones(1, 1), "b": -torch.ones(1, 1)})


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99))
def test_associative_order_free_and_idempotent(seed):
    a, b, c = random_updates(3, seed)
    left = max_magnitude_updates(max_magnitude_updates(a, b), c)
    assert_same(left, max_magnitude_updates(a, max_magnitude_updates(b, c)), 0)
    assert_same(left, max_magnitude_updates(max_magnitude_updates(c, a), b), 0)
    assert_same(max_magnitude_updates(left, left), left, 0)
    assert_same(max_magnitude_updates(a, {}), a, 0)


def test_the_fold_is_the_same_rule():
    updates = random_updates(3)
    for name in updates[0]:
        entries = [Entry(update[name]) for update in updates]
        expected = max_magnitude(max_magnitude(updates[0][name], updates[1][name]), updates[2][name])
        torch.testing.assert_close(merged(KeepLarger(), name, entries), expected)
        assert dense(expected).shape == updates[0][name].shape

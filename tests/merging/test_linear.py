"""Sum, average and task arithmetic on updates: by hand, exact, and low rank."""

import pytest
import torch

from perdure.errors import AdapterError, ConfigError
from perdure.merging.linear import average_updates, sum_updates, task_arithmetic_updates
from perdure.ops.lowrank import LowRank, dense
from tests.merging.merge_cases import assert_same, random_updates


def test_by_hand():
    one, two = {"m": torch.tensor([[1.0, 2.0]])}, {"m": torch.tensor([[3.0, -4.0]])}
    assert dense(sum_updates([one, two])["m"]).tolist() == [[4, -2]]
    assert dense(average_updates([one, two])["m"]).tolist() == [[2, -1]]
    assert dense(average_updates([one, two], [3, 1])["m"]).tolist() == [[1.5, 0.5]]
    assert dense(task_arithmetic_updates([one, two], [1, 0.5], 2)["m"]).tolist() == [[5, 0]]


def test_the_sum_of_adapters_is_exact_in_stacked_factors():
    updates = random_updates(3)
    total = sum_updates(updates)
    assert all(isinstance(delta, LowRank) for delta in total.values()) is False, "6 (12+8) > 96: dense is smaller"
    assert isinstance(sum_updates(updates[:2])["layers.0.q"], LowRank)
    expected = {name: sum(dense(update[name]) for update in updates) for name in updates[0]}
    assert_same(total, expected)


def test_a_missing_module_counts_as_zero_also_in_the_average():
    one, two = {"a": torch.ones(1, 1)}, {"b": torch.ones(1, 1)}
    assert dense(average_updates([one, two])["a"]).item() == 0.5
    assert set(sum_updates([one, two])) == {"a", "b"}


def test_refusals_say_what_to_do():
    updates = random_updates(2)
    with pytest.raises(ConfigError, match="3 weights were given for 2 updates"):
        task_arithmetic_updates(updates, [1, 1, 1])
    with pytest.raises(ConfigError, match="sum to zero"):
        average_updates(updates, [1, -1])
    other = {**updates[1], "layers.1.v": torch.zeros(6, 11)}
    with pytest.raises(AdapterError, match=r"'layers\.1\.v' is 6 x 10 in the first and 6 x 11"):
        sum_updates([updates[0], other])

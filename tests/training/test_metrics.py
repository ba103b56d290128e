"""Each metric on a matrix small enough for the head."""

from __future__ import annotations

import pytest

from perdure.training import metrics

MATRIX = [
    [0.9, 0.2, 0.1],
    [0.7, 0.8, 0.3],
    [0.6, 0.9, 0.5],
]
UNTRAINED = [0.5, 0.1, 0.1]


def test_by_hand():
    assert metrics.average_accuracy(MATRIX) == pytest.approx((0.6 + 0.9 + 0.5) / 3)
    assert metrics.sample_weighted_accuracy(MATRIX, [100, 0, 300]) == pytest.approx(0.25 * 0.6 + 0.75 * 0.5)
    assert metrics.learning_accuracy(MATRIX) == pytest.approx((0.9 + 0.8 + 0.5) / 3)
    assert metrics.forgetting(MATRIX) == pytest.approx(((0.9 - 0.6) + (0.8 - 0.9)) / 2)
    assert metrics.backward_transfer(MATRIX) == pytest.approx(((0.6 - 0.9) + (0.9 - 0.8)) / 2)
    assert metrics.forward_transfer(MATRIX, UNTRAINED) == pytest.approx(((0.2 - 0.1) + (0.3 - 0.1)) / 2)


@pytest.mark.parametrize(
    "matrix,forgetting,backward_transfer",
    [
        ([[0.5, 0.1, 0.1], [0.9, 0.6, 0.1], [0.7, 0.6, 0.5]], (0.9 - 0.7) / 2, (0.7 - 0.5) / 2),  # best one stage later
        ([[0.5, 0.9, 0.1], [0.5, 0.6, 0.1], [0.5, 0.6, 0.5]], (0.9 - 0.6) / 2, 0.0),  # best before it was learnt
    ],
)
def test_forgetting_is_from_the_best_of_all_earlier_stages(matrix, forgetting, backward_transfer):
    assert metrics.forgetting(matrix) == pytest.approx(forgetting)
    assert metrics.backward_transfer(matrix) == pytest.approx(backward_transfer)


def test_forgetting_may_be_negative():
    assert metrics.forgetting([[0.5, 0.1], [0.7, 0.6]]) == pytest.approx(-0.2)


def test_joint_training_has_one_row_and_no_diagonal():
    found = metrics.summary([[0.8, 0.6, 0.7]], UNTRAINED, [10, 10, 20])
    assert found["average_accuracy"] == pytest.approx(0.7)
    assert found["sample_weighted_accuracy"] == pytest.approx(0.7)
    undefined = ["learning_accuracy", "forgetting", "backward_transfer", "forward_transfer"]
    assert [found[name] for name in undefined] == [None] * 4


def test_one_task_forgets_nothing_because_there_is_nothing_to_forget():
    found = metrics.summary([[0.8]], [0.5], [10])
    assert found["learning_accuracy"] == found["average_accuracy"] == pytest.approx(0.8)
    assert found["forgetting"] is found["backward_transfer"] is found["forward_transfer"] is None


def test_cells_that_were_not_scored_make_what_needs_them_undefined():
    matrix = [[0.9, None], [0.6, 0.8]]
    assert metrics.forgetting(matrix) == pytest.approx(0.3)
    assert metrics.forward_transfer(matrix, [0.1, 0.1]) is None
    assert metrics.average_accuracy([[0.9, None]]) is None


def test_every_metric_has_its_formula_in_the_legend():
    assert set(metrics.FORMULAS) == set(metrics.summary(MATRIX, UNTRAINED, [1, 1, 1]))

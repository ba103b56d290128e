"""The bootstrap: hand values, calibration on data with a known answer, pairing, Holm's correction, mismatches refused."""

import numpy as np
import pytest

from perdure.errors import DataError
from perdure.sweeps.comparison import Outcome, compare, holm

CELLS = [(order, seed) for order in ("a", "b", "c") for seed in (0, 1)]


def outcomes(method: str, rate: float, seed: int, examples: int = 400) -> list[Outcome]:
    random = np.random.default_rng(seed)
    return [
        Outcome(method, cell, {task: (random.random(examples) < rate).astype(float) for task in ("x", "y")})
        for cell in CELLS
    ]


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_means_are_over_cells_and_tasks():
    """(1 + .5) / 2 in the first cell, (.25 + .75) / 2 in the second."""
    found = compare(
        [
            Outcome("m", ("a", 0), {"x": np.ones(4), "y": np.array([1.0, 0, 1, 0])}),
            Outcome("m", ("b", 0), {"x": np.array([1.0, 0, 0, 0]), "y": np.array([1.0, 1, 1, 0])}),
        ]
    )
    assert found.intervals["m"].mean == pytest.approx(0.625)
    assert found.comparisons == []


def test_two_runs_of_a_method_in_one_cell_are_refused():
    run = Outcome("m", ("a", 0), {"x": np.ones(4)})
    with pytest.raises(DataError, match="Two runs of 'm' have order 'a' and seed 0"):
        compare([run, Outcome("m", ("a", 0), {"x": np.zeros(4)})])


def test_a_clear_difference_is_found_and_none_is_not():
    found = compare(outcomes("good", 0.8, 1) + outcomes("same", 0.8, 2) + outcomes("bad", 0.7, 3), "good")
    by_name = {c.second: c for c in found.comparisons}
    assert by_name["bad"].p_corrected < 0.01
    assert by_name["bad"].difference.low > 0.05
    assert by_name["same"].p > 0.05
    assert by_name["same"].difference.low < 0 < by_name["same"].difference.high


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """One cell, 200 studies of 300 examples at rate .7: 95 % +- 1.5 % (4 sd: 6 %) of the intervals hold it."""
    held = 0
    for seed in range(200):
        right = (np.random.default_rng(seed).random(300) < 0.7).astype(float)
        interval = compare([Outcome("m", ("a", 0), {"x": right})], resamples=400).intervals["m"]
        held += interval.low <= 0.7 <= interval.high
    assert 0.89 <= held / 200 <= 1.0


def test_it_is_paired():
    """Two methods that answer alike but for one example: the difference is far surer than either mean."""
    first = outcomes("first", 0.6, 5)
    second = [
        Outcome("second", o.cell, {t: np.concatenate([[1 - v[0]], v[1:]]) for t, v in o.right.items()}) for o in first
    ]
    found = compare(first + second, "first")
    mean, difference = found.intervals["first"], found.comparisons[0].difference
    assert difference.high - difference.low < 0.2 * (mean.high - mean.low)


def test_only_cells_that_all_have_count_and_same_seed_same_numbers():
    some = outcomes("m", 0.5, 1) + outcomes("n", 0.5, 2)[:3]
    assert list(compare(some).cells) == CELLS[:3]
    assert compare(some) == compare(some)


def test_an_order_counts_alike_with_however_many_seeds():
    """((1 + .5) / 2 + .25) / 2 = .5: order a has two seeds, order b one."""
    right = {("a", 0): [1, 1, 1, 1], ("a", 1): [1, 1, 0, 0], ("b", 0): [1, 0, 0, 0]}
    found = compare([Outcome("m", cell, {"x": np.array(v, dtype=float)}) for cell, v in right.items()])
    assert found.intervals["m"].mean == pytest.approx(0.5)


def test_a_seed_that_says_nothing_new_changes_next_to_nothing():
    some = [
        o for m, seed in (("m", 1), ("n", 2)) for o in outcomes(m, 0.8 if m == "m" else 0.77, seed) if o.cell[1] == 0
    ]
    again = [Outcome(o.method, (o.cell[0], 1), o.right) for o in some if o.cell[0] == "a"]
    before, after = compare(some, "m").comparisons[0], compare(some + again, "m").comparisons[0]
    assert after.difference.mean == pytest.approx(before.difference.mean)
    assert after.difference.low == pytest.approx(before.difference.low, abs=0.003)
    assert after.difference.high == pytest.approx(before.difference.high, abs=0.003)


def test_what_cannot_be_compared_is_said():
    with pytest.raises(DataError, match="No order and seed"):
        compare(outcomes("m", 0.5, 1)[:1] + outcomes("n", 0.5, 1)[1:])
    with pytest.raises(DataError, match="same test examples of 'x'"):
        compare(outcomes("m", 0.5, 1) + outcomes("n", 0.5, 1, examples=300))
    with pytest.raises(DataError, match="No run of 'other'"):
        compare(outcomes("m", 0.5, 1), "other")

"""Duplicates, strata and disjointness, with numbers one can check in the head."""

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from perdure.tasks.pool import Pool
from perdure.tasks.splits import draw, normal, stratified, unique, without


def numbered(label: str, count: int, start: int = 0) -> list[tuple[str, str]]:
    return [(f"{label} {i}", label) for i in range(start, start + count)]


def test_normal_ignores_case_and_white_space() -> None:
    assert normal("  Big\n\tStraße ") == normal("big STRASSE")


def test_unique_keeps_the_first_and_drops_contradictions() -> None:
    pairs = [("A b", "x"), ("a  B", "x"), ("c", "x"), ("C", "y"), ("d", "y")]
    assert unique(pairs, "test") == (
        [("A b", "x"), ("d", "y")],
        ["1 duplicate test texts removed", "2 test rows with conflicting labels for the same text removed"],
    )


def test_without_compares_normalised() -> None:
    assert without([("A", "x"), ("b", "x")], [("a ", "y")]) == [("b", "x")]


def test_strata_are_in_proportion_by_hand() -> None:
    # 60, 30 and 10 of 100 in 10 places: 6, 3, 1
    pairs = numbered("x", 60) + numbered("y", 30) + numbered("z", 10)
    chosen, rest = stratified(pairs, 10, random.Random(0))
    assert Counter(label for _, label in chosen) == {"x": 6, "y": 3, "z": 1}
    assert sorted(chosen + rest) == sorted(pairs)


def test_a_rare_class_gets_one_place_at_the_largest_ones_cost() -> None:
    chosen, _ = stratified(numbered("x", 98) + numbered("y", 1) + numbered("z", 1), 4, random.Random(0))
    assert Counter(label for _, label in chosen) == {"x": 2, "y": 1, "z": 1}


@given(st.lists(st.sampled_from("abcde"), min_size=1, max_size=60), st.integers(0, 70), st.integers(0, 5))
def test_any_draw_has_its_size_and_loses_nothing(labels: list[str], size: int, seed: int) -> None:
    pairs = [(str(i), label) for i, label in enumerate(labels)]
    chosen, rest = stratified(pairs, size, random.Random(seed))
    assert len(chosen) == min(size, len(pairs))
    assert sorted(chosen + rest) == sorted(pairs)
    if size >= len(set(labels)):
        assert {label for _, label in chosen} == set(labels)


def test_draw_cuts_disjoint_splits_and_says_what_is_short() -> None:
    drawn = draw(Pool(numbered("x", 40)), train=100, validation=5, test=20, name="x")
    sizes = [len(split) for split in (drawn.train, drawn.validation, drawn.test)]
    assert sizes == [25, 5, 10]  # at most a quarter to test
    assert len({text for split in (drawn.train, drawn.validation, drawn.test) for text, _ in split}) == 40
    assert drawn.notes == [
        "only 25 training examples available, 100 requested",
        "only 10 test examples available, 20 requested",
    ]


def test_draw_keeps_the_given_test_split_and_cleans_training() -> None:
    pool = Pool(train=[*numbered("x", 20), ("X  3", "x")], test=numbered("x", 5))
    drawn = draw(pool, train="all", validation=3, test="all", name="x")
    assert sorted(drawn.test) == sorted(numbered("x", 5))
    assert (len(drawn.train), len(drawn.validation)) == (12, 3)
    assert drawn.notes == [
        "1 duplicate training texts removed",
        "5 training texts removed that are also in the test split",
    ]


def test_test_examples_do_not_depend_on_the_training_size() -> None:
    pool = Pool(numbered("x", 50) + numbered("y", 50))
    first, second = (draw(pool, train=n, validation=5, test=10, name="s") for n in (5, 60))
    assert first.test == second.test
    assert first.validation == second.validation


def test_another_seed_draws_other_training_examples_and_the_same_test_examples() -> None:
    pool = Pool(numbered("x", 50) + numbered("y", 50))
    first, second = (draw(pool, train=20, validation=5, test=10, name="s", seed=seed) for seed in (0, 1))
    assert first.test == second.test
    assert first.train != second.train
    assert not {*second.train, *second.validation} & {*first.test}


def test_a_given_validation_split_is_kept_apart() -> None:
    pool = Pool(numbered("x", 10), test=numbered("x", 2, 10), validation=[*numbered("x", 3, 11), ("x 0", "x")])
    drawn = draw(pool, train="all", validation="all", test="all", name="x")
    assert sorted(text for text, _ in drawn.validation) == ["x 0", "x 12", "x 13"]
    assert "x 0" not in {text for text, _ in drawn.train}

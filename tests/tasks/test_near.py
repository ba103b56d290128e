"""Near repetitions, with texts whose likeness one can count."""

from perdure.tasks.near import near_repeats
from perdure.tasks.pool import Pool
from perdure.tasks.splits import draw

WORDS = [f"w{i}" for i in range(100)]


def test_case_and_punctuation_do_not_count() -> None:
    assert near_repeats(["It rained.", "it RAINED!", "it snowed"]) == {1}


def test_the_limit_by_hand() -> None:
    # 100 words have 96 runs of 5. Changing the last word changes 1 run: 95 of 97 are shared, .98.
    # Changing words 20, 40, 60 changes 15 runs: 81 of 111, .73.
    changed_last = [*WORDS[:99], "x"]
    changed_three = [f"x{i}" if i in (20, 40, 60) else word for i, word in enumerate(WORDS)]
    texts = [" ".join(words) for words in (WORDS, changed_last, changed_three)]
    assert near_repeats(texts) == {1}


def test_only_what_is_kept_counts_as_earlier() -> None:
    assert near_repeats(["a b", "A b", "a B"]) == {1, 2}


def test_texts_without_words_are_left_alone() -> None:
    assert near_repeats(["?", "!", ""]) == set()


def test_training_loses_before_test_and_validation() -> None:
    long = " ".join(WORDS)
    pool = Pool(
        train=[(f"{long} train", "x"), ("other", "x"), ("more", "y")],
        test=[(f"{long} test", "x")],
        validation=[("Other!", "x")],
    )
    drawn = draw(pool, train="all", validation="all", test="all", name="x", near=True)
    assert (drawn.train, drawn.validation, drawn.test) == ([("more", "y")], [("Other!", "x")], [(f"{long} test", "x")])
    assert drawn.notes == ["2 near-duplicate texts removed"]

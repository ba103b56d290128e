"""Scores of written answers, against values one can check by hand or that others published."""

from __future__ import annotations

import sys

import pytest

from perdure.backbones.text_metrics import (
    edit_similarity,
    exact_match,
    first_character,
    normalise,
    rouge_l,
    sari,
)
from perdure.errors import ConfigError


def test_exact_match_ignores_case_punctuation_and_spacing() -> None:
    assert normalise(" Science  or\tTechnology. ") == "science or technology"
    assert exact_match("", "Very Positive!", ["very positive"]) == 1.0
    assert exact_match("", "negative", ["very negative"]) == 0.0
    assert exact_match("", "no", ["nope", "No."]) == 1.0


def test_exact_match_tells_numbers_apart() -> None:
    for answer, other in (("2.5", "25"), ("-3", "3"), ("-.5", ".5"), ("x = -1", "x = 1"), (".5", "5")):
        assert exact_match("", answer, [other]) == 0.0
        assert exact_match("", f"({answer}).", [answer]) == 1.0
    assert exact_match("", "$1,000.", ["1000"]) == 1.0
    assert exact_match("", "a well-known 5-day trip, 3-4.", ["a wellknown 5day trip 34"]) == 1.0  # hyphens, as before


def test_the_first_character_alone_counts() -> None:
    assert first_character("", " B) because", ["B"]) == 1.0
    assert first_character("", "A", ["B"]) == 0.0
    assert first_character("", "", [""]) == 0.0


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence() -> None:
    pytest.importorskip("rouge_score")
    # common subsequence "police killed gunman": 3 of 5 words and 3 of 4
    found = rouge_l("", "police then killed the gunman", ["police killed that gunman"])
    assert found == pytest.approx(2 * 3 / (4 + 5))
    assert rouge_l("", "running", ["runs"]) == 1.0  # Porter stems
    assert rouge_l("", "", ["something"]) == 0.0
    assert rouge_l("", "a cat", ["a dog", "a cat"]) == 1.0  # the best of several


def test_rouge_l_reads_every_script() -> None:
    pytest.importorskip("rouge_score")
    for text in ("Полиция убила стрелка", "الشرطة قتلت المسلح", "पुलिस ने मारा", "警察击毙了枪手", "경찰이 사살했다"):
        assert rouge_l("", text, [text]) == 1.0
    assert rouge_l("", "полиция нашла стрелка", ["Полиция убила стрелка."]) == pytest.approx(2 / 3)
    assert rouge_l("", "警察找到枪手", ["警察击毙枪手。"]) == pytest.approx(4 / 6)  # a character is a word
    assert rouge_l("", "GDP增长3%", ["GDP 增长 3%"]) == 1.0


def test_rouge_l_of_ascii_texts_is_that_of_the_package() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=True)
    texts = [
        "The runners' 3 dogs_ran, didn't they?",
        "a runner and her dog (no. 3) run",
        "it's C++/x_1\tand\nmore-or-less 2.5",
    ]
    for one in texts:
        for other in texts:
            assert rouge_l("", other, [one]) == scorer.score(one, other)["rougeL"].fmeasure
    # a typographic quote does not change how the other words are read
    assert rouge_l("", "the dog’s running", ["the dog's runs"]) == 1.0


def test_edit_similarity_counts_insertions_and_deletions() -> None:
    pytest.importorskip("rapidfuzz")
    # "kitten" -> "sitting": longest common subsequence "ittn", 4 of 6 and of 7
    assert edit_similarity("", "kitten", ["sitting"]) == pytest.approx(2 * 4 / (6 + 7))
    assert edit_similarity("", "return 1", ["return <NUM_LIT:1>"]) == 1.0


def test_sari_is_the_value_the_hub_script_publishes() -> None:
    """The example on the page of evaluate-metric/sari: 26.953601953601954."""
    score = sari(
        "About 95 species are currently accepted.",
        "About 95 you now get in.",
        [
            "About 95 species are currently known.",
            "About 95 species are now accepted.",
            "95 species are now accepted.",
        ],
    )
    assert score == pytest.approx(0.26953601953601954)


def test_sari_of_the_target_itself_is_one_and_of_doing_nothing_is_not() -> None:
    source, target = "the feline sat down", "the cat sat"
    assert sari(source, target, [target]) == 1.0
    assert sari(source, source, [target]) < 0.5


def test_sari_of_a_deletion_by_hand() -> None:
    """Keep, delete, add by order: 1, 0, 0 (the target still holds the deleted "a"); 1, 1, 0; 1, 1, 0; 1, 1, 1."""
    assert sari("a a b", "a b", ["a b c"]) == pytest.approx((1 + 2 + 2 + 3) / 3 / 4)
    # "a": one of the target's two is kept (F1 2/3), both deleted ones are in the target; "a a": half of two deletions is right
    assert sari("a a a", "a", ["a a"]) == pytest.approx(((2 / 3 + 0 + 1) / 3 + (0 + 1 / 2 + 1) / 3 + 1 + 1) / 4)


def test_sari_of_several_targets_by_hand() -> None:
    """Deleting "b", which one of two targets holds, is half right; kept are 2 of the 3 that the targets hold: F1 .8."""
    assert sari("a b", "a", ["a", "a b"]) == pytest.approx(((0.8 + 0.5 + 1) / 3 + (0 + 0.5 + 1) / 3 + 1 + 1) / 4)


def test_an_empty_answer_adds_a_wrong_word() -> None:
    """The maintained script splits an empty text into one empty word: nothing kept, deleted or added of order 1 is right."""
    assert sari("a", "", ["a"]) == sari("a", "z", ["a"]) == pytest.approx((0 + 1 + 1 + 1) / 4)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rapidfuzz", None)
    with pytest.raises(ConfigError, match="pip install rapidfuzz"):
        edit_similarity("", "a", ["b"])

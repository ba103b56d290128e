"""TRACE's scores, against what the packages of its released evaluation gave: rouge 1.0.1, fuzzywuzzy 0.18, sacrebleu 2.6."""

from __future__ import annotations

import random
import warnings

import pytest

from perdure.backbones.text_metrics import AS_WRITTEN, TEXT_METRICS
from perdure.backbones.trace_metrics import literals, tokens_13a


def scored(metric: str, answer: str, *references: str, text: str = "") -> float:
    return TEXT_METRICS[f"trace-{metric}"](text, answer, references)


@pytest.mark.parametrize(
    "answer,reference,value",
    [
        ("The council passed the motion. It was long.", "the Council passed the motion of Mr. X.", 0.3999999950222222),
        ("motion motion motion", "motion", 0.999999995),  # words are counted once
        ("a b c d", "d c b a", 0.24999999500000009),  # one of several longest subsequences
        ("Items 1 and 2 . adopted.", "adopted items 2 and 1.. yes", 0.36363635867768596),
        ("a  b\tc", "a b c", 0.999999995),
    ],
)
def test_rouge_l_is_that_of_the_package(answer, reference, value):
    assert scored("rouge-l", answer, reference) == value


def test_rouge_l_is_that_of_the_package_on_random_texts():
    rouge = pytest.importorskip("rouge").Rouge(metrics=["rouge-l"])
    draw = random.Random(0)
    words = ["The", "the", "a", "city", "Council", "council", "motion", ".", "Mr.", "$5,000", "2.5", "it's", "ß", "\n"]
    for _ in range(300):
        answer, reference = (" ".join(draw.choices(words, k=draw.randint(1, 30))) for _ in range(2))
        if answer.strip(". \n") and reference.strip(". \n"):
            assert scored("rouge-l", answer, reference) == rouge.get_scores(reference, answer, avg=True)["rouge-l"]["f"]


def test_case_and_endings_count():
    assert scored("rouge-l", "Passed motions", "passed motion") == 0
    assert TEXT_METRICS["rouge-l"]("", "Passed motions", ["passed motion"]) == 1


@pytest.mark.parametrize(
    "answer,reference,percent",
    [
        ("kitten", "sitting", 62),  # 8 / 13
        ("def f(x):", "def g(x, y):", 76),
        ("return self.x", "return self.y", 92),
        ("abcab" * 50, "abcba" * 60, 1),  # difflib leaves out what occurs often in a long text
    ],
)
def test_edit_similarity_is_that_of_fuzzywuzzy(answer, reference, percent):
    assert scored("edit-similarity", answer, reference) == percent / 100


def test_edit_similarity_is_that_of_fuzzywuzzy_on_random_texts():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without Levenshtein it is slow, and on difflib
        fuzz = pytest.importorskip("fuzzywuzzy.fuzz")
    draw = random.Random(1)
    for _ in range(300):
        answer, reference = ("".join(draw.choices("abc (", k=draw.randint(1, 300))) for _ in range(2))
        assert scored("edit-similarity", answer, reference) == fuzz.ratio(answer, reference) / 100


def test_literals_stand_for_their_values():
    assert literals("f(<STR_LIT:a b>, <NUM_LIT>, <STR_LIT>, <NUM_LIT:>, <CHAR_LIT:c>)") == "f(a b, 0, , , c)"
    assert scored("edit-similarity", "return 1", "return <NUM_LIT:1>") == 1
    assert scored("edit-similarity", "<STR_LIT>", "x") == 0


def test_equal_means_equal():
    assert scored("exact-match", "A", "A") == 1
    for answer in ("a", "A.", " A", "A\n"):
        assert scored("exact-match", answer, "A") == 0
        assert TEXT_METRICS["exact-match"]("", answer, ["A"]) == 1
    assert scored("exact-match", "", "") == 0
    assert scored("exact-match", "B", "A", "B") == 1


def test_the_first_character_is_the_very_first():
    assert scored("first-character", "B\nBecause", "B because") == 1
    assert scored("first-character", " B", "B") == 0
    assert scored("first-character", "", "B") == 0


@pytest.mark.parametrize(
    "text,tokens",
    [
        (
            "Der Bundesrat - sagt «nein», 3-mal: 1,5 Mio. (2.5%)!",
            "der bundesrat - sagt «nein» , 3 - mal : 1,5 mio . ( 2.5 % ) !",
        ),
        ("A&amp;B <skipped> can't end-\nless u.s. 10-", "a & b can't endless u . s . 10 -"),
    ],
)
def test_tokens_are_those_of_sacrebleu(text, tokens):
    assert " ".join(tokens_13a(text)) == tokens


def test_sari_counts_these_tokens():
    """«nein» is one token: kept only as a whole. Keep, delete, add of order 1: 0, 1, 0; both sides have no order 2 to 4."""
    assert scored("sari", "nein", "nein", text="«nein»") == 1
    assert scored("sari", "«nein»", "nein", text="«nein»") == pytest.approx(((0 + 1 + 0) / 3 + 3) / 4)
    assert TEXT_METRICS["sari"]("«nein»", "«nein»", ["nein"]) > 0.5


def test_answers_are_scored_as_written():
    assert sorted(AS_WRITTEN) == [
        f"trace-{m}" for m in ("edit-similarity", "exact-match", "first-character", "rouge-l", "sari")
    ]

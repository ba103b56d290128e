"""Balanced accuracy, macro-F1 and metrics of one's own: by hand, and against the definitions written out."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from perdure.backbones.base import Prediction
from perdure.errors import ConfigError, UnknownName
from perdure.tasks.task import Task
from perdure.training.class_metrics import CLASS_METRICS, class_summary
from perdure.training.evaluation import check_scorable, outcomes, score

ROWS = [("x", "a")] * 8 + [("x", "b")] * 2


def task(metric: str, labels: tuple[str, ...] = ("a", "b", "c")) -> Task:
    rows = [(f"{text} {i}", label) for i, (text, label) in enumerate(ROWS)]
    return Task("t", rows, test=rows, labels={label: label for label in labels}, metric=metric)


def answered(metric: str, answers: str, others: str = "") -> float | None:
    predictions = [Prediction(label, (), "other" if i in map(int, others) else "t") for i, label in enumerate(answers)]
    made = task(metric)
    return score(made, made.test, predictions)


def test_always_the_frequent_class_by_hand():
    """Recalls 1 and 0; F1 2 x 8 / (8 + 10) and 0."""
    assert answered("accuracy", "a" * 10) == 0.8
    assert answered("balanced-accuracy", "a" * 10) == pytest.approx(1 / 2)
    assert answered("macro-f1", "a" * 10) == pytest.approx((16 / 18 + 0) / 2)
    assert class_summary([label for _, label in ROWS], ["a"] * 10, ["a", "b"]) == pytest.approx(
        {"accuracy": 0.8, "balanced-accuracy": 0.5, "macro-f1": 8 / 18, "largest-class": 0.8}
    )


def test_a_class_that_is_only_answered_counts_in_macro_f1():
    """a: 2 x 7 / (8 + 7), b: 1, c: 0 of one answer. Recalls 7/8 and 1."""
    assert answered("macro-f1", "aaaaaaac" + "bb") == pytest.approx((14 / 15 + 1 + 0) / 3)
    assert answered("balanced-accuracy", "aaaaaaac" + "bb") == pytest.approx((7 / 8 + 1) / 2)


def test_an_answer_that_is_no_label_or_of_another_task_is_wrong_and_no_class():
    for answers, others in (("aaaaaaa?bb", ""), ("aaaaaaaabb", "7")):
        assert answered("macro-f1", answers, others) == pytest.approx((14 / 15 + 1) / 2)


@pytest.mark.parametrize("metric", CLASS_METRICS)
def test_all_right_is_one_and_nothing_right_is_zero(metric):
    assert answered(metric, "aaaaaaaabb") == pytest.approx(1)
    assert answered(metric, "bbbbbbbbaa") == pytest.approx(0)


def test_equal_to_the_definitions_on_random_answers():
    draw = random.Random(0)
    for _ in range(50):
        truth, answers = (draw.choices("abcd", [8, 4, 2, 1], k=30) for _ in range(2))
        classes = sorted({*truth, *answers})
        hit = {c: sum(t == a == c for t, a in zip(truth, answers, strict=True)) for c in classes}
        f1 = [2 * hit[c] / (truth.count(c) + answers.count(c)) for c in classes]
        recall = [hit[c] / truth.count(c) for c in classes if c in truth]
        found = class_summary(truth, answers, "abcd")
        assert found["macro-f1"] == pytest.approx(sum(f1) / len(f1))
        assert found["balanced-accuracy"] == pytest.approx(sum(recall) / len(recall))


def test_classes_need_labels():
    free = Task("t", [("a", "b")], test=[("a", "b")], metric="macro-f1")
    with pytest.raises(ConfigError, match="Task 't': macro-f1 is a score of classes, but it has no labels"):
        check_scorable(free, "test")
    check_scorable(task("macro-f1"), "test")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_scores.py").write_text(
        "def shares(text, answer, references):\n    return len(set(answer) & set(references[0])) / len(set(references[0]))\n"
        "def points(text, answer, references):\n    return 50\n"
        "NUMBER = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_metric_of_ones_own(own: None):
    free = Task("t", [("q", "abcd")], test=[("q", "abcd"), ("r", "ab")], metric="my_own_scores:shares")
    check_scorable(free, "test")
    predictions = [Prediction("abx", ()), Prediction("ab", ())]
    assert outcomes(free, free.test, predictions) == [0.5, 1.0]
    assert score(free, free.test, predictions) == 0.75


@pytest.mark.parametrize(
    "metric,message",
    [("my_own_scores:points", r"gave 50; return a number from 0 to 1"), ("my_own_scores:NUMBER", "is not a function"),
     ("my_own_scores:missing", "missing"), ("no_such_module:f", "Python finds no module 'no_such_module'")],
)  # fmt: skip
def test_a_wrong_metric_is_refused_before_anything_is_learnt(own: None, metric, message):
    with pytest.raises(ConfigError, match=message):
        check_scorable(Task("t", [("q", "a")], test=[("q", "a")], metric=metric), "test")
    with pytest.raises(UnknownName, match=r"macro-f1.*Known: .*module:function"):
        check_scorable(Task("t", [("q", "a")], test=[("q", "a")], metric="macro-f2"), "test")

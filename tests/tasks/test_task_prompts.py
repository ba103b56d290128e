"""What a task says to a language model, and label texts that differ by input."""

import pytest

from perdure.errors import DataError
from perdure.tasks.task import Task

PAIRS = [("a", "x"), ("b", "y")]


def test_prompt_and_label_texts() -> None:
    task = Task(
        "t", PAIRS, test=PAIRS, labels={"x": "X", "y": "Y"}, template="Q: {text}\nA:", choices={"a": ("1", "2")}
    )  # type: ignore[arg-type]
    assert task.prompt("{text}!") == "Q: {text}!\nA:"
    assert task.label_texts("a") == ("1", "2")
    assert task.label_texts("b") == ("X", "Y")


def test_without_a_template_the_text_is_the_prompt() -> None:
    assert Task("t", PAIRS, test=PAIRS).prompt("a") == "a"  # type: ignore[arg-type]


def test_template_and_choices_count_for_the_fingerprint() -> None:
    plain, asked, chosen = (
        Task("t", PAIRS, test=PAIRS, labels=["x", "y"], **extra)  # type: ignore[arg-type]
        for extra in ({}, {"template": "{text}?"}, {"choices": {"a": ("1", "2")}})
    )
    assert len({task.fingerprint() for task in (plain, asked, chosen)}) == 3


def test_wrong_template_and_choices_are_refused() -> None:
    with pytest.raises(DataError, match=r"'t': the template has no \{text\}"):
        Task("t", PAIRS, test=PAIRS, template="Q:")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"2 labels, but 1 choices"):
        Task("t", PAIRS, test=PAIRS, labels=["x", "y"], choices={"a": ("1",)})  # type: ignore[arg-type]

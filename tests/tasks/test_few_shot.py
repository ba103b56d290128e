"""Examples in the prompt, by hand."""

from perdure.tasks.few_shot import LONGEST, with_shots
from perdure.tasks.task import Task

ROWS = [("red", "c"), ("blue", "c"), ("cat", "a"), ("dog", "a")]
TASK = Task("kinds", ROWS, test=[("sun", "c")], labels={"c": "colour", "a": "animal"}, template="Word: {text}\nKind:")


def test_a_prompt_with_two_examples() -> None:
    prompt = with_shots(TASK, 2).prompt("sun")
    first, second, asked = prompt.split("\n\n")
    assert asked == "Word: sun\nKind:"
    assert {first.rsplit(" ", 1)[1], second.rsplit(" ", 1)[1]} == {"colour", "animal"}, "one of each class"
    assert first.startswith("Word: ")
    assert with_shots(TASK, 2).prompt("sun") == prompt
    assert with_shots(TASK, 2, seed=1).prompt("sun") != prompt or with_shots(TASK, 2, seed=2).prompt("sun") != prompt


def test_without_examples_the_task_is_itself() -> None:
    assert with_shots(TASK, 0) is TASK
    text = Task("t", [("a", "")], test=[("b", "")], metric="inverse-perplexity")
    assert with_shots(text, 5) is text


def test_long_examples_are_cut_and_cannot_hold_the_mark() -> None:
    rows = [("{text}" + "x" * 1000, "c"), ("y", "a")]
    prompt = with_shots(Task("t", rows, test=rows, labels={"c": "c", "a": "a"}), 2).prompt("Q")
    assert prompt.count("Q") == 1
    assert prompt.count("x") == LONGEST


def test_free_answers_have_examples_too() -> None:
    task = Task("t", [("1+1", "2")], test=[("2+2", "4")], metric="exact-match", template="{text} =")
    assert with_shots(task, 1).prompt("2+2") == "1+1 = 2\n\n2+2 ="

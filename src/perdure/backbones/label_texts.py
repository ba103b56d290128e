"""The texts that stand for a task's labels in front of a language model, and whether they can be told apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from perdure.backbones.text_metrics import normalise
from perdure.errors import DataError
from perdure.tasks.task import Task


def label_texts(task: Task, text: str) -> tuple[str, ...]:
    """The texts of the labels: this input's own choices, unless the task's prompt asks for the labels themselves."""
    return tuple(task.labels.values()) if task.template else task.label_texts(text)


def check_distinct(task: Task, ids: Mapping[str, Sequence[int]], written: bool) -> None:
    """Raise DataError if two labels of a task have the same text.

    Args:
        ids: label -> its text's tokens.
        written: answers are written, and compared with the labels up to case, spacing and punctuation.
    """
    names: dict[tuple[int, ...], str] = {}
    names_as_written: dict[str, str] = {}
    for name, text in task.labels.items():
        same = names.setdefault(tuple(ids[name]), name)
        if same != name:
            raise DataError(
                f"Task '{task.name}': the labels '{same}' and '{name}' stand for the same text {text!r}; make them differ."
            )
        other = names_as_written.setdefault(normalise(text), name)
        if other != name and written:
            raise DataError(
                f"Task '{task.name}': written answers are compared without case, spacing and punctuation, so the labels "
                f"'{other}' and '{name}' are one; give them other texts, or set backbone.answer_by=ranking."
            )

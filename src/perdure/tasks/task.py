"""What is learnt: examples, tasks, and the stages a sequence of them is learnt in."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Literal

from perdure.errors import ConfigError, DataError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""A text that ends like this and names a file is an image: a vision backbone reads every text but a data URI as a path."""
INVERSE_PERPLEXITY = "inverse-perplexity"
"""The metric of a task whose texts are learnt as they are: exp(-nats / tokens) over all of them; larger is better."""


def version(name: str) -> tuple[str, int]:
    """A task's name without its version, and the version: ('reviews', 2) for 'reviews@2', ('reviews', 1) for 'reviews'.

    A version is the same task learnt again from new data; it keeps its own test set.
    """
    found = re.fullmatch(r"(.*)@([2-9]|[1-9]\d+)", name)
    return (found[1], int(found[2])) if found else (name, 1)


def same_task(one: str, other: str) -> bool:
    """Whether both are the same task, or versions of it."""
    return version(one)[0] == version(other)[0]


@dataclass(frozen=True, slots=True)
class Example:
    """One input and what is wanted for it.

    `text` is the input (or a path for an image), `label` the class name or the target text, `task` the name of
    the task it belongs to: a batch may mix examples of several tasks (joint training, replay).
    """

    text: str
    label: str
    task: str = ""


@dataclass(frozen=True)
class Task:
    """One task: three disjoint splits and, for classification, the labels to choose from.

    Args:
        name: used in file names and tables; letters, digits, '.', '_' and '-'; 'name@2' is a new version of 'name'.
        train, validation, test: examples, or (text, label) pairs, or {"text", "label"} mappings (of a data frame:
            df.to_dict("records")). A whole number as a label is its name, or that of the class at its position in `labels`.
        labels: class name -> the text that stands for it in front of a model; a list means each name stands for
            itself; empty means free text (generation).
        metric: name of the score, a fraction of 1. With 'inverse-perplexity' the texts themselves are learnt (language
            modelling): nothing is asked or answered, and labels are empty.
        template: what a language model reads, with the text in place of "{text}"; empty: the text itself.
        choices: text -> the label texts that hold for this one input, in the order of `labels` (multiple choice, as in
            COPA); a text that is not in it has the task's label texts.
        references: text -> every right answer, for the texts that have several; an example's label is the first.

    Raises:
        DataError: a bad name, no example, a label outside `labels`, an empty train or test split, a template without "{text}".
    """

    name: str
    train: Sequence[Example]
    validation: Sequence[Example] = ()
    test: Sequence[Example] = ()
    labels: dict[str, str] = field(default_factory=dict)
    metric: str = "accuracy"
    notes: tuple[str, ...] = ()
    template: str = ""
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    references: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise DataError(f"A task's name should be a text such as 'reviews', found {self.name!r:.80}.")
        name, _ = version(self.name)
        if not name or name.startswith(".") or not all(c.isalnum() or c in "._-" for c in name):
            raise DataError(
                f"A task cannot be called {self.name!r}: use letters, digits, '.', '_' and '-' "
                "(and @2 at the end for a second version)."
            )
        object.__setattr__(self, "labels", self._label_texts_of(self.labels))
        if self.template and "{text}" not in self.template:
            raise DataError(f"The template of task '{self.name}' has no {{text}}: say where the text belongs.")
        if self.learns_text and self.labels:
            raise DataError(
                f"Task '{self.name}' has labels, but its metric {self.metric} is for texts learnt as they are."
            )
        for text, choices in self.choices.items():
            if len(choices) != len(self.labels):
                raise DataError(
                    f"Task '{self.name}' has {len(self.labels)} labels, but {len(choices)} choices for {text!r:.60}."
                )
        for split in SPLITS:
            given = self._listed(split, getattr(self, split))
            object.__setattr__(self, split, tuple(self._example(split, i, e) for i, e in enumerate(given)))
        for split in ("train", "test"):
            if not getattr(self, split):
                raise DataError(f"Task '{self.name}' has no {split} examples; give it at least one.")

    def _label_texts_of(self, given: object) -> dict[str, str]:
        """Label names and texts; whole numbers among them as text, as examples have them."""
        if isinstance(given, Mapping):
            return {_as_label(name): _as_label(text) for name, text in given.items()}
        if given is not None and (isinstance(given, (str, bytes)) or not isinstance(given, Iterable)):
            raise DataError(f"Task '{self.name}': give labels as a list, labels=['bad', 'good'], not {given!r:.80}.")
        return {label: label for label in map(_as_label, given or ())}

    def _listed(self, split: str, given: object) -> Iterable[object]:
        """The examples of a split, still as they were given."""
        where = f"Task '{self.name}', {split}"
        if hasattr(given, "to_dict") and hasattr(given, "columns"):
            raise DataError(
                f"{where}: a data frame goes in as its records, {split}=df.to_dict('records'), with the columns text and label "
                "(df.rename(columns=...) names them so)."
            )
        if isinstance(given, (str, os.PathLike)):
            raise DataError(
                f"{where}: expected examples, got {str(given)!r:.80}. To read a file, give its settings in place of the task: "
                f"{{'name': {self.name!r}, {split!r}: {str(given)!r:.80}}}."
            )
        if isinstance(given, Mapping) or not isinstance(given, Iterable):
            raise DataError(f"{where}: expected a list of (text, label), got {given!r:.80}.")
        return given

    def _example(self, split: str, index: int, given: object) -> Example:
        where = f"Task '{self.name}', {split} example {index}"
        match given:
            case Example():
                text, label = given.text, given.label
            case {"text": text, "label": label} | (text, label):
                pass
            case _:
                raise DataError(f"{where}: expected (text, label) or {{'text', 'label'}}, got {given!r:.80}.")
        if not isinstance(text, str):
            raise DataError(f"{where}: the text must be a string, got {text!r:.80}.")
        if not isinstance(label, str):
            label = self._numbered(_as_label(label))
        if not isinstance(label, str):
            raise DataError(f"{where}: the label must be a string or a whole number, got {label!r:.80}.")
        if self.labels and label not in self.labels:
            raise DataError(
                f"{where}: label {label!r} is not one of {', '.join(map(repr, self.labels))}. "
                "Add it to `labels` or remove the example."
            )
        return Example(text, label, self.name)

    def _numbered(self, label: Any) -> Any:
        """A whole number gets the name at its position in `labels`, unless numbers are names there."""
        names = tuple(self.labels)
        by_name = not isinstance(label, str) or any(name.isdecimal() for name in names)
        return label if by_name else named_by_number(label, names)

    @property
    def learns_text(self) -> bool:
        """Whether the texts themselves are learnt: language modelling."""
        return self.metric == INVERSE_PERPLEXITY

    def prompt(self, text: str) -> str:
        """What a language model reads for this text."""
        return self.template.replace("{text}", text) if self.template else text

    def label_texts(self, text: str) -> tuple[str, ...]:
        """The texts that stand for the labels in front of this input, in the order of `labels`."""
        return self.choices.get(text) or tuple(self.labels.values())

    def answers(self, example: Example) -> tuple[str, ...]:
        """Every answer that counts as right."""
        return self.references.get(example.text) or (example.label,)

    def fingerprint(self) -> str:
        """sha256 over every split, label text, prompt and the metric: two tasks with the same one train and score alike.

        An image counts by the bytes of its file, wherever that lies.
        """
        content = {s: [(_content(e.text), e.label) for e in getattr(self, s)] for s in SPLITS}
        parts: list[object] = [self.name, content, list(self.labels.items()), self.metric]
        if self.template or self.choices or self.references:
            by_text = (
                [(_content(text), value) for text, value in each.items()] for each in (self.choices, self.references)
            )
            parts += [self.template, *by_text]
        payload = json.dumps(parts, ensure_ascii=True)
        return hashlib.sha256(payload.encode()).hexdigest()


def named_by_number(label: str, names: Sequence[str]) -> str:
    """A class given as a whole number gets its name, by position; every other label is its own."""
    by_number = label not in names and label.isdecimal() and int(label) < len(names)
    return names[int(label)] if by_number else label


def _as_label(given: Any) -> Any:
    """A whole number or a truth value as text, as data files have it read; all else as it is."""
    if isinstance(given, Integral):  # truth values, and numpy's integers
        return str(given)
    return str(int(given)) if isinstance(given, float) and given.is_integer() else given


def without_labels(task: Task) -> str:
    """What to do about a task without labels where classes are told apart: its classes, if its answers look like such."""
    names = sorted({example.label for example in task.train})
    if task.learns_text or not 2 <= len(names) <= max(2, min(50, len(task.train) // 2)):
        return ""
    listed = ", ".join(map(repr, names[:10])) + (", ..." if len(names) > 10 else "")
    return f"give labels=[{listed}]"


def _content(text: str) -> str:
    """What counts of an input: the text, or for the path of an image file the sha256 of what is in it."""
    if not text.lower().endswith(IMAGE_SUFFIXES) or "\n" in text:
        return text
    try:
        about = os.stat(text)
        return _image_digest(text, about.st_mtime_ns, about.st_size) if stat.S_ISREG(about.st_mode) else text
    except (OSError, ValueError):  # no such file, or a text that cannot be the name of one
        return text


@functools.lru_cache(maxsize=1 << 17)
def _image_digest(path: str, changed: int, size: int) -> str:  # noqa: ARG001  (a file that changed is read again)
    with open(path, "rb") as file:
        return f"image sha256 {hashlib.file_digest(file, 'sha256').hexdigest()}"


@dataclass(frozen=True)
class Stage:
    """What is trained on at once: usually one task; all of them in joint training."""

    name: str
    tasks: tuple[Task, ...]

    @property
    def train(self) -> tuple[Example, ...]:
        """Training examples of all its tasks, in order."""
        return tuple(example for task in self.tasks for example in task.train)


StreamMode = Literal["one-by-one", "joint"]


def given_tasks(tasks: Task | Iterable[Task]) -> tuple[Task, ...]:
    """Tasks given from Python; one alone stands for a list of it.

    Raises:
        ConfigError: something else.
    """
    if isinstance(tasks, Task):
        return (tasks,)
    every = tuple(tasks) if isinstance(tasks, Iterable) and not isinstance(tasks, str) else (tasks,)
    for task in every:
        if not isinstance(task, Task):
            raise ConfigError(
                f"tasks: {task!r:.80} is no perdure.Task. Give the run's tasks that were given from Python; it finds those "
                "from files itself."
            )
    return every  # pyright: ignore[reportReturnType]


def stages(tasks: Iterable[Task], mode: StreamMode = "one-by-one") -> tuple[Stage, ...]:
    """The stages in which `tasks` are learnt: one each, or all mixed in one (`joint`, an upper bound).

    Raises:
        DataError: no task, two tasks of the same name, or a version of a task that does not come before it.
    """
    tasks = tuple(tasks)
    names = [task.name for task in tasks]
    if not tasks:
        raise DataError("There is no task to learn; give at least one.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"Task {', '.join(twice)} is given twice; give each task once, name the second one differently, or, if it is the "
            f"same task with new data, '{twice[0]}@2'."
        )
    for position, (name, number) in enumerate(map(version, names)):
        if number > 1 and not any(same_task(name, earlier) for earlier in names[:position]):
            raise DataError(f"'{names[position]}' is a new version of '{name}', but no '{name}' is learnt before it.")
    if mode == "joint":
        return (Stage("joint", tasks),)
    return tuple(Stage(task.name, (task,)) for task in tasks)

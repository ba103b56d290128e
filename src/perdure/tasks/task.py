"""What is learnt: examples, tasks, and the stages a sequence of tasks is learnt in."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Literal

from perdure.errors import ConfigError, DataError
from perdure.tasks.chats import read_splits
from perdure.tasks.content import content, digest

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
INVERSE_PERPLEXITY = "inverse-perplexity"
"""The metric of language-modelling tasks: exp(-nats / tokens) over all texts; higher is better."""


def version(name: str) -> tuple[str, int]:
    """Split a task's name into base name and version: ('reviews', 2) for 'reviews@2', ('reviews', 1) for 'reviews'.

    A new version is the same task learnt again from new data; it keeps its own test set.
    """
    match = re.fullmatch(r"(.*)@([2-9]|[1-9]\d+)", name)
    return (match[1], int(match[2])) if match else (name, 1)


def same_task(one: str, other: str) -> bool:
    """Whether two names are the same task, or versions of it."""
    return version(one)[0] == version(other)[0]


@dataclass(frozen=True, slots=True)
class Example:
    """One input and its target.

    `text` is the input (or the path of an image), `label` the class name or the target text, `task` the name of its
    task: a batch may mix examples of several tasks (joint training, replay).
    """

    text: str
    label: str
    task: str = ""


@dataclass(frozen=True)
class Task:
    """One task: three disjoint splits and, for classification, the labels to choose from.

    Args:
        name: used in file names and tables; letters, digits, '.', '_' and '-'; 'name@2' is a new version of 'name'.
        train, validation, test: examples, (text, label) pairs, {"text", "label"} mappings (of a data frame:
            df.to_dict("records")), or chats. An integer label is a name, or the position of a name in `labels`.
        labels: class name -> the text that stands for it in front of a model; a list: each name stands for itself; empty:
            free text (generation).
        metric: name of the score, between 0 and 1. 'inverse-perplexity' means language modelling: the texts themselves
            are learnt, and labels are empty.
        template: what a language model reads, with "{text}" in place of the text; empty: the text itself.
        choices: text -> the label texts of this one input (as in COPA), in the order of `labels`; others use the task's.
        skipped: what is wrong with each row of its files that was left out, and where it stands.
        rows: how many its source holds, those left out or not drawn included; 0: not known.
        references: text -> all correct answers, for texts that have several; an example's label is the first.
        chats: every example is a chat (perdure.tasks.chats). places: text of a chat -> where it was read, for messages.

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
    chats: bool = False
    places: Mapping[str, str] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    rows: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise DataError(f"A task's name must be a string such as 'reviews', got {self.name!r:.80}.")
        name = version(self.name)[0]
        if not name or name.startswith(".") or not all(c.isalnum() or c in "._-" for c in name):
            raise DataError(
                f"Invalid task name {self.name!r}: use letters, digits, '.', '_' and '-' "
                "(and @2 at the end for a second version)."
            )
        if len(self.name.encode()) > 200:  # a system's limit is 255, and prefixes and endings join it
            raise DataError(f"Task name '{self.name:.40}...' is too long for a file's name: use at most 200 letters.")
        object.__setattr__(self, "labels", self._label_texts(self.labels))
        if self.template and "{text}" not in self.template:
            raise DataError(f"Task '{self.name}': the template has no {{text}}; add it where the text belongs.")
        if self.learns_text and self.labels:
            raise DataError(
                f"Task '{self.name}': the metric {self.metric} learns the texts themselves; leave out labels."
            )
        for text, choices in self.choices.items():
            if len(choices) != len(self.labels):
                raise DataError(
                    f"Task '{self.name}' has {len(self.labels)} labels, but {len(choices)} choices for {text!r:.60}."
                )
        self._read_chats()
        for split in SPLITS:
            examples = enumerate(self._examples(split, getattr(self, split)))
            object.__setattr__(self, split, tuple(self._example(split, i, example) for i, example in examples))
        for split in ("train", "test"):
            if not getattr(self, split):
                raise DataError(f"Task '{self.name}' has no {split} examples; add at least one.")

    def _read_chats(self) -> None:
        """Turn examples that are chats into text and label; all of them are, or none is."""
        given = {split: tuple(self._examples(split, getattr(self, split))) for split in SPLITS}
        for name, value in {**given, **(read_splits(self.name, given) or {})}.items():
            object.__setattr__(self, name, value)
        if self.chats and (self.template or self.learns_text):
            raise DataError(f"Task '{self.name}': chats take no template, and no metric {INVERSE_PERPLEXITY}.")

    def _label_texts(self, labels: object) -> dict[str, str]:
        if isinstance(labels, Mapping):
            return {as_label(name): as_label(text) for name, text in labels.items()}
        if labels is not None and (isinstance(labels, (str, bytes)) or not isinstance(labels, Iterable)):
            raise DataError(f"Task '{self.name}': give labels as a list, labels=['bad', 'good'], not {labels!r:.80}.")
        return {label: label for label in map(as_label, labels or ())}

    def _examples(self, split: str, given: object) -> Iterable[object]:
        where = f"Task '{self.name}', {split}"
        if hasattr(given, "to_dict") and hasattr(given, "columns"):
            raise DataError(
                f"{where}: pass a data frame as records, {split}=df.to_dict('records'), with the columns text and label "
                "(rename them with df.rename(columns=...))."
            )
        if isinstance(given, (str, os.PathLike)):
            raise DataError(
                f"{where}: expected examples, got {str(given)!r:.80}. To read a file, pass its settings instead of a Task: "
                f"{{'name': {self.name!r}, {split!r}: {str(given)!r:.80}}}."
            )
        if isinstance(given, Mapping) or not isinstance(given, Iterable):
            raise DataError(f"{where}: expected a list of (text, label), got {given!r:.80}.")
        return given

    def _example(self, split: str, index: int, given: object) -> Example:
        if type(given) is tuple and len(given) == 2 and type(given[0]) is type(given[1]) is str:
            text, label = given
            if not self.labels or label in self.labels:
                return Example(text, label, self.name)  # as below, in a third of the time
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
            label = as_label(label)
            if not isinstance(label, str):
                raise DataError(f"{where}: the label must be a string or an integer, got {label!r:.80}.")
            names = tuple(self.labels)
            if not any(name.isdecimal() for name in names):
                label = named_by_number(label, names)
        if self.labels and label not in self.labels:
            raise DataError(
                f"{where}: label {label!r} is not one of {', '.join(map(repr, self.labels))}. "
                "Add it to `labels` or remove the example."
            )
        return Example(text, label, self.name)

    @property
    def learns_text(self) -> bool:
        """Whether the texts themselves are learnt (language modelling)."""
        return self.metric == INVERSE_PERPLEXITY

    def prompt(self, text: str) -> str:
        """What a language model reads for this text."""
        return self.template.replace("{text}", text) if self.template else text

    def label_texts(self, text: str) -> tuple[str, ...]:
        """The texts that stand for the labels of this input, in the order of `labels`."""
        return self.choices.get(text) or tuple(self.labels.values())

    def answers(self, example: Example) -> tuple[str, ...]:
        """All answers that count as correct."""
        return self.references.get(example.text) or (example.label,)

    def fingerprint(self) -> str:
        """sha256 over splits, label texts, prompts and metric: tasks with the same fingerprint train and score alike.

        An image counts by the bytes of its file, not by its path.
        """
        parts: list[object] = [list(self.labels.items()), self.metric]
        if self.template or self.choices or self.references:
            by_text = ([(content(text), value) for text, value in m.items()] for m in (self.choices, self.references))
            parts += [self.template, *by_text]
        parts += ["chats"] if self.chats else []
        return digest(self.name, {s: [(e.text, e.label) for e in getattr(self, s)] for s in SPLITS}, parts)


def named_by_number(label: str, names: Sequence[str]) -> str:
    """The name at position `label`, if that is a decimal number and not itself a name; else `label` unchanged."""
    by_number = label not in names and label.isdecimal() and int(label) < len(names)
    return names[int(label)] if by_number else label


def as_label(value: Any) -> Any:
    """An integer, whole float or boolean as a string; anything else unchanged."""
    if isinstance(value, Integral):  # also booleans and numpy's integers
        return str(value)
    return str(int(value)) if isinstance(value, float) and value.is_integer() else value


def without_labels(task: Task) -> str:
    """The fix for a task without labels that needs them: "give labels=[...]"; "" if its answers do not look like classes."""
    names = sorted({example.label for example in task.train})
    if task.learns_text or not 2 <= len(names) <= max(2, min(50, len(task.train) // 2)):
        return ""
    listed = ", ".join(map(repr, names[:10])) + (", ..." if len(names) > 10 else "")
    return f"give labels=[{listed}]"


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
    """Tasks passed from Python as a tuple; a single task may stand alone.

    Raises:
        ConfigError: something is not a Task.
    """
    every = tuple(tasks) if isinstance(tasks, Iterable) and not isinstance(tasks, str) else (tasks,)
    for task in every:
        if not isinstance(task, Task):
            raise ConfigError(
                f"tasks: {task!r:.80} is not a perdure.Task. Pass only the tasks that were given from Python; the run "
                "finds those read from files itself."
            )
    return every  # pyright: ignore[reportReturnType]


def stages(tasks: Iterable[Task], mode: StreamMode = "one-by-one") -> tuple[Stage, ...]:
    """The stages in which `tasks` are learnt: one per task, or all mixed in one (`joint`, an upper bound).

    Raises:
        DataError: no task, a duplicate name, or a version of a task that does not follow it.
    """
    tasks = tuple(tasks)
    names = [task.name for task in tasks]
    if not tasks:
        raise DataError("No tasks to learn; give at least one.")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(
            f"Task {', '.join(twice)} is given twice. Remove or rename one, or name it '{twice[0]}@2' if it is the same "
            "task with new data."
        )
    for position, (name, number) in enumerate(map(version, names)):
        if number > 1 and not any(same_task(name, earlier) for earlier in names[:position]):
            raise DataError(f"'{names[position]}' is a new version of '{name}', but no '{name}' comes before it.")
    if mode == "joint":
        return (Stage("joint", tasks),)
    return tuple(Stage(task.name, (task,)) for task in tasks)

"""A task asked with examples in its prompt."""

from __future__ import annotations

import dataclasses
import random

from perdure.tasks.splits import stratified
from perdure.tasks.task import Task

LONGEST = 400
"""An example's text in a prompt is cut to so many characters."""


def with_shots(task: Task, shots: int, seed: int = 0) -> Task:
    """The same task with `shots` training examples and their answers in front of every question, always the same ones.

    They are drawn by `seed` with the classes in proportion. Texts that are learnt as they are have no question: unchanged.
    """
    if shots == 0 or task.learns_text:
        return task
    pairs = [(example.text, example.label) for example in task.train]
    chosen, _ = stratified(pairs, shots, random.Random(f"{seed}/{task.name}/shots"), free=not task.labels)
    template = task.template or "{text}"
    asked = [f"{template.replace('{text}', _plain(text))} {task.labels.get(label, label)}" for text, label in chosen]
    return dataclasses.replace(task, template="\n\n".join([*asked, template]))


def _plain(text: str) -> str:
    """Cut, and without the mark that stands for the question's own text."""
    return text.replace("{text}", "")[:LONGEST]

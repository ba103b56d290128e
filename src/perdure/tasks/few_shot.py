"""Tasks with examples in the prompt."""

from __future__ import annotations

import dataclasses
import random

from perdure.errors import DataError
from perdure.tasks.splits import stratified
from perdure.tasks.task import Task

LONGEST = 400  # characters of an example's text in a prompt


def with_shots(task: Task, shots: int, seed: int = 0) -> Task:
    """The same task with `shots` solved training examples in front of every question, always the same ones.

    They are drawn by `seed` with the classes in proportion. Language-modelling tasks ask nothing and are unchanged.

    Raises:
        DataError: the task holds chats.
    """
    if shots == 0 or task.learns_text:
        return task
    if task.chats:
        raise DataError(
            f"Task '{task.name}' holds chats: solved examples cannot be put in front of them. Ask without shots."
        )
    pairs = [(example.text, example.label) for example in task.train]
    chosen, _ = stratified(pairs, shots, random.Random(f"{seed}/{task.name}/shots"), free=not task.labels)
    template = task.template or "{text}"
    # a "{text}" inside an example would be replaced by the question
    solved = [
        f"{template.replace('{text}', text.replace('{text}', '')[:LONGEST])} {task.labels.get(label, label)}"
        for text, label in chosen
    ]
    return dataclasses.replace(task, template="\n\n".join([*solved, template]))

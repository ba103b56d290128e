"""One input and its target, and many of them that lie in a file."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

from perdure.tasks.table import Table


@dataclass(frozen=True, slots=True)
class Example:
    """One input and its target.

    `text` is the input (or the path of an image), `label` the class name or the target text, `task` the name of its
    task: a batch may mix examples of several tasks (joint training, replay).
    """

    text: str
    label: str
    task: str = ""


class Examples(Sequence[Example]):
    """The examples of a table, made when they are read."""

    def __init__(self, table: Table, task: str) -> None:
        self.table, self._task = table, task

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Examples: ...
    def __getitem__(self, index: int | slice) -> Example | Examples:
        if isinstance(index, slice):
            return Examples(self.table[index], self._task)
        return Example(*self.table[index], self._task)

    def __iter__(self) -> Iterator[Example]:
        return (Example(text, label, self._task) for text, label in self.table)

    def __eq__(self, other: object) -> bool:
        """As tuples compare."""
        if not isinstance(other, (tuple, Examples)):
            return NotImplemented
        return len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None  # pyright: ignore[reportAssignmentType]

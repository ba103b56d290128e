"""All examples of a task, before any are drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

Pair = tuple[str, str]
"""(text, label)"""


@dataclass
class Pool:
    """All examples of a task, as its reader returns them.

    Args:
        test, validation: None if the source has no such split.
        notes: remarks for the user about what was read.
        template, choices, references: as in `Task`, where the data brings them.
        metric: where the data determines it.
        chats: text and label are chats, see `perdure.tasks.chats`.
        places: text of a chat -> "file, line 3", for messages.
        skipped: what is wrong with each row that was left out, and where it stands.
        where: split -> number of a row -> its place, as "file, line 3"; only until examples are drawn.
        rows: how many were read, those left out included; 0: not known.
        free: labels are free text: there are no classes to keep in proportion, and one text may have several answers.
    """

    train: list[Pair]
    test: list[Pair] | None = None
    validation: list[Pair] | None = None
    notes: list[str] = field(default_factory=list)
    template: str = ""
    choices: dict[str, tuple[str, ...]] = field(default_factory=dict)
    references: dict[str, tuple[str, ...]] = field(default_factory=dict)
    metric: str | None = None
    where: dict[str, Callable[[int], str]] = field(default_factory=dict)
    rows: int = 0
    free: bool = False
    chats: bool = False
    places: dict[str, str] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()

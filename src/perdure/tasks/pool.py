"""What a source gives: all examples of a task before any are drawn."""

from __future__ import annotations

from dataclasses import dataclass, field

Pair = tuple[str, str]
"""(text, label)"""


@dataclass
class Pool:
    """All examples of a task before any are drawn.

    Args:
        test, validation: None where no such split is given.
        notes: what was noticed while reading.
        template, choices, references: see `Task`, where the data itself says them.
        metric: where the data decides it.
        free: labels are free texts: no classes to keep in proportion, and one text may have several answers.
    """

    train: list[Pair]
    test: list[Pair] | None = None
    validation: list[Pair] | None = None
    notes: list[str] = field(default_factory=list)
    template: str = ""
    choices: dict[str, tuple[str, ...]] = field(default_factory=dict)
    references: dict[str, tuple[str, ...]] = field(default_factory=dict)
    metric: str | None = None
    free: bool = False

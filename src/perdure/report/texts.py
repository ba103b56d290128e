"""The texts behind a change: those whose answers became worse or better since their task was learnt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from perdure.report.html import Table
from perdure.report.words import plain
from perdure.state.outcomes import TaskOutcome, task_outcomes
from perdure.state.run_folder import RunFolder

MOST = 10
"""Texts listed of a task, each way."""
ALTOGETHER = 200
"""Texts listed each way; of each task as many as of the others."""
LONGEST = 200
"""Characters of a text, or of an answer, that are shown."""


@dataclass(frozen=True)
class ChangedText:
    """One example: what was right, what was answered when its task was learnt and now, and by how much its value moved."""

    task: str
    text: str
    right: str
    then: str
    now: str
    moved: float


def changed_texts(outcome: TaskOutcome) -> list[ChangedText]:
    """Those of a task whose value moved, the largest fall first; empty where answers or texts were not kept."""
    then, now = outcome.then, outcome.now
    if outcome.since_learnt is None or then is None or then.values is None or now.values is None:
        return []
    pairs = zip(then.rows, now.rows, then.values, now.values, strict=True)
    moved = [
        ChangedText(outcome.task, first["text"], last["label"], first["predicted"], last["predicted"], after - before)
        for first, last, before, after in pairs
        if after != before and "text" in first
    ]
    return sorted(moved, key=lambda changed: changed.moved)


def text_tables(outcomes: Sequence[TaskOutcome]) -> list[Table]:
    """Two tables, what became worse and what became better, without those that would be empty."""
    found = [changed_texts(outcome) for outcome in outcomes]
    ways = {
        "worse": [[text for text in some if text.moved < 0] for some in found],
        "better": [[text for text in reversed(some) if text.moved > 0] for some in found],
    }
    tables = []
    for way, by_task in ways.items():
        most = min(MOST, max(1, ALTOGETHER // (sum(map(bool, by_task)) or 1)))
        shown = [text for texts in by_task for text in texts[:most]][:ALTOGETHER]
        count = sum(map(len, by_task))
        more = f", {len(shown)} of them shown" if len(shown) < count else ""
        if shown:
            caption = f"{count} answer{'s' * (count > 1)} became {way} since their task was learnt{more}"
            head = ["Task", "Text", "Right", "When learnt", "Now"]
            tables.append(Table(caption, head, [_row(text) for text in shown], text_columns=len(head)))
    return tables


def text_lines(folder: str | Path) -> Iterator[str]:
    """The same of the run in `folder`, as lines of text."""
    tables = text_tables(task_outcomes(RunFolder(Path(folder))))
    if not tables:
        yield "No answer changed since its task was learnt (runs of before 0.2 kept no texts)."
    for table in tables:
        yield f"{table.caption}:"
        for task, text, right, then, now in table.rows:
            yield f"  {task}: {text!r}: right {right!r}, when learnt {then!r}, now {now!r}"


def _row(text: ChangedText) -> list[str]:
    return [text.task, *(_short(value) for value in (text.text, text.right, text.then, text.now))]


def _short(text: str) -> str:
    text = plain(text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}\u2026"

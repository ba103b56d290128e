"""What became of each task of a run, read from its folder: its score when learnt and now, and against doing nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from perdure.state.answers import StageAnswers
from perdure.state.run_folder import RunFolder
from perdure.state.shapes import SCORES, read_shaped
from perdure.training.metrics import is_right
from perdure.training.paired import Change, paired_change

ROUNDED = 1e-5
"""Values of answers are stored with six digits; their mean may differ from the score by less than this."""


@dataclass(frozen=True)
class Answered:
    """A task after one stage: its score, the answers behind it, and of a method with a head the adapter's score alone."""

    stage: str
    task: str
    answers: StageAnswers
    score: float
    adapter: float | None = None

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """One row an example: label, predicted, ...; empty if nothing was kept."""
        return self.answers.rows(self.task)

    @cached_property
    def values(self) -> list[float] | None:
        """One value an example, whose mean is the score; None if the score is not their mean."""
        kept = [row.get("value", is_right(row)) for row in self.rows]
        values = [float(value) for value in kept if value is not None]  # None: it was not finite
        return (
            values
            if values and len(values) == len(kept) and abs(sum(values) / len(values) - self.score) < ROUNDED
            else None
        )

    def change_to(self, later: Answered) -> Change | None:
        """From here to `later`; None if the two are not about the same examples, one by one."""
        if self.values is None or later.values is None or not self._same_examples(later):
            return None
        return paired_change(self.values, later.values)

    def _same_examples(self, other: Answered) -> bool:
        return [row.get("label") for row in self.rows] == [row.get("label") for row in other.rows]


@dataclass(frozen=True)
class TaskOutcome:
    """One task of a run.

    Args:
        scored: after each stage in which it was scored, in order; not empty.
        learnt: its place in `scored` right after it was learnt; None if it was not scored then, or not learnt on its own.
        untrained: the untouched base's answers; None if they were not asked for.
    """

    task: str
    scored: Sequence[Answered]
    learnt: int | None
    untrained: Answered | None

    @property
    def then(self) -> Answered | None:
        """Right after it was learnt."""
        return None if self.learnt is None else self.scored[self.learnt]

    @property
    def now(self) -> Answered:
        """After the last stage in which it was scored."""
        return self.scored[-1]

    @property
    def best(self) -> Answered | None:
        """The first of the highest scores after earlier stages; None if there are none."""
        return max(self.scored[:-1], key=lambda answered: answered.score, default=None)

    @property
    def before(self) -> Answered | None:
        """After the stage before the last; None if there is none."""
        return self.scored[-2] if len(self.scored) > 1 else None

    @cached_property
    def since_learnt(self) -> Change | None:
        """From `then` to `now`; None if they are the same stage, or cannot be compared example by example."""
        return None if self.then in (None, self.now) else self.then.change_to(self.now)

    @cached_property
    def majority(self) -> tuple[str, float] | None:
        """The most frequent label of the scored examples and its share: the score of always answering it. None for free text."""
        if any("value" in row for row in self.now.rows) or not self.now.rows:
            return None
        label, count = Counter(row["label"] for row in self.now.rows).most_common(1)[0]
        return label, count / len(self.now.rows)

    @property
    def baseline(self) -> tuple[str, float] | None:
        """What learning has to beat: the better of the untouched model and the most frequent label, in words and as a score."""
        known = [("the untouched model", self.untrained.score)] if self.untrained else []
        if self.majority:
            known.append((f"always answering '{self.majority[0]}'", self.majority[1]))
        return max(known, key=lambda pair: pair[1], default=None)

    @cached_property
    def above_baseline(self) -> Change | None:
        """From the baseline to `now`, example by example; None without one."""
        if self.baseline is None or self.now.values is None:
            return None
        if self.majority and self.majority[1] == self.baseline[1]:
            return paired_change([float(row["label"] == self.majority[0]) for row in self.now.rows], self.now.values)
        return self.untrained.change_to(self.now) if self.untrained else None


def task_outcomes(store: RunFolder, upcoming: tuple[str, Path] | None = None) -> list[TaskOutcome]:
    """Of every task that was learnt and scored, in the order of the run; `upcoming`: a stage that does not count yet."""
    about = store.about
    stages = [(name, store.stage_folder(position)) for position, name in enumerate(store.stages(), start=1)]
    stages += [upcoming] if upcoming else []
    names, joint = [name for name, _ in stages], [name for name, _ in stages] == ["joint"]
    tasks: list[str] = list(about["tasks"])
    if upcoming and not joint and upcoming[0] not in tasks:
        tasks.append(upcoming[0])
    cells = [(name, StageAnswers(folder), read_shaped(folder / "scores.json", SCORES)) for name, folder in stages]
    untrained = StageAnswers(store.stage_folder(0))
    at_first = {**about["untrained"], **read_shaped(store.stage_folder(0) / "scores.json", SCORES)}
    outcomes = []
    for task in tasks:
        if task not in names and not joint:
            continue
        scored = [
            Answered(name, task, answers, found["score"], found.get("adapter"))
            for name, answers, row in cells
            if (found := row.get(task)) and found["score"] is not None
        ]
        if scored:
            places = [place for place, answered in enumerate(scored) if answered.stage in (task, "joint")]
            base = at_first.get(task, {}).get("score")
            start = None if base is None else Answered("untrained", task, untrained, base)
            outcomes.append(TaskOutcome(task, scored, places[0] if places else None, start))
    return outcomes

"""The quality gate: a stage that costs earlier tasks too much, or gains too little, does not become part of the run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from perdure.errors import ConfigError
from perdure.state.outcomes import TaskOutcome, task_outcomes
from perdure.state.store import Accept, Store
from perdure.state.words import change_in_words
from perdure.state.words import points as shown

ROUNDING = 1e-9
UNCHANGED = (
    "It was not accepted: the run and its deployed model are unchanged. Accept it with another bound, or learn with settings "
    "that forget less (another method, a smaller training.later_learning_rate_factor) or learn more (training.epochs)."
)


@dataclass(frozen=True)
class Gate:
    """Bounds in points (100 = everything); None: no bound.

    Args:
        max_forgetting: how far a task may be below its best score after any earlier stage: its term of the metric `forgetting`.
        max_drop: how far a task may be below its score before the stage: what this stage alone costs.
        min_gain: how far the new task must be above the better of the untouched model and its most frequent label.
    """

    max_forgetting: float | None = None
    max_drop: float | None = None
    min_gain: float | None = None

    def __post_init__(self) -> None:
        for name, points in self.bounds().items():
            if not points >= 0:
                raise ConfigError(f"{name}: give points, 0 or more, for example 2.0 (got {points:g}).")

    def bounds(self) -> dict[str, float]:
        """Those that are set."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def accept(self) -> Accept | None:
        """What the store asks before a stage begins to count."""
        return self._why_not if self.bounds() else None

    def _why_not(self, store: Store, stage: str, folder: Path) -> str | None:
        outcomes = task_outcomes(store, (stage, folder))
        new, earlier = [o for o in outcomes if o.task == stage], [o for o in outcomes if o.task != stage]
        broken = [*self._fallen(stage, earlier), *self._no_gain(new)]
        return " ".join([*broken, UNCHANGED]) if broken else None

    def _fallen(self, stage: str, earlier: list[TaskOutcome]) -> Iterator[str]:
        below_best = [_lost(task, task.best and task.best.score, self.max_forgetting) for task in earlier]
        if too_far := [line for line in below_best if line]:
            yield f"After '{stage}', more than {self.max_forgetting:g} points are forgotten: {'; '.join(too_far)}."
        by_stage = [_lost(task, task.before and task.before.score, self.max_drop) for task in earlier]
        if too_far := [line for line in by_stage if line]:
            yield f"Learning '{stage}' costs more than {self.max_drop:g} points: {'; '.join(too_far)}."

    def _no_gain(self, new: list[TaskOutcome]) -> Iterator[str]:
        for outcome in new:
            if self.min_gain is None:
                return
            if outcome.baseline is None:
                yield f"'{outcome.task}' has nothing to be compared with: the untouched model was not scored on it."
                continue
            what, score = outcome.baseline
            if 100 * (outcome.now.score - score) < self.min_gain - ROUNDING:
                yield (
                    f"'{outcome.task}' gained less than {self.min_gain:g} points: it scores {shown(outcome.now.score)}, {what} "
                    f"{shown(score)}."
                )


def _lost(task: TaskOutcome, reference: float | None, most: float | None) -> str | None:
    """The task's fall in words, if it is more than `most` points below `reference`."""
    if most is None or reference is None or 100 * (reference - task.now.score) <= most + ROUNDING:
        return None
    best, before = task.best, task.before
    assert best is not None
    assert before is not None
    line = f"'{task.task}' is at {shown(task.now.score)}, {shown(best.score - task.now.score)} below its best "
    line += f"({shown(best.score)} after '{best.stage}')"
    if before.score == best.score:
        return f"{line}, all of it by this stage{change_in_words(before.change_to(task.now))}"
    moved = before.score - task.now.score
    part = "none" if abs(moved) < ROUNDING else f"{shown(moved)}"
    return f"{line}, {part} of it by this stage{change_in_words(before.change_to(task.now))}"


OPEN = Gate()
"""No bound."""

"""Everything a report shows about a run, read from its folder: scores, settings, log, notes, changed answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from perdure.errors import ConfigError, CorruptFile
from perdure.files.durable import finite_or_none
from perdure.report.changes import TaskChange, task_changes
from perdure.report.words import run_names
from perdure.state.answers import StageAnswers
from perdure.state.outcomes import TaskOutcome, task_outcomes
from perdure.state.scores import read_scores
from perdure.state.shapes import NOTES, StepShape, read_rows, read_shaped
from perdure.state.store import Store, set_aside
from perdure.training.metrics import Scores, average_accuracy, forgetting, learning_accuracy


@dataclass(frozen=True)
class Run:
    """One run of a report.

    Args:
        name: unique among the runs of the report.
        about: run.json.
        logs: the optimiser steps of each stage: step, loss, learning_rate, penalties, shares.
        notes: numbers the parts noted, one mapping for each stage.
        finished: whether every task was learnt and the model deployed.
        changes, without_changes: see `perdure.report.changes.task_changes`.
        outcomes: of every task learnt so far.
        aside: folder of a stage that was refused or rolled back -> why.
    """

    name: str
    scores: Scores
    about: Mapping[str, Any]
    logs: Sequence[Sequence[Mapping[str, Any]]]
    notes: Sequence[Mapping[str, float]]
    finished: bool
    changes: Sequence[TaskChange]
    without_changes: Mapping[str, str]
    outcomes: Sequence[TaskOutcome] = ()
    aside: Mapping[str, str] = field(default_factory=dict)

    @property
    def data_warnings(self) -> list[str]:
        """What was odd about the data: rows removed, splits cut, texts too long."""
        return list(self.about.get("warnings", []))

    def over_stages(self) -> list[tuple[float | None, float | None]]:
        """After each stage: average accuracy and forgetting over the tasks learnt so far. Empty for joint training."""
        return [(average_accuracy(square), forgetting(square)) for square in self._learnt_so_far()]

    def when_learnt(self) -> list[float | None]:
        """After each stage: what the tasks learnt so far scored right after each was learnt, on average."""
        return [learning_accuracy(square) for square in self._learnt_so_far()]

    def _learnt_so_far(self) -> list[list[list[float | None]]]:
        """After each stage: the score matrix of the tasks learnt so far. Empty for joint training."""
        scores = self.scores
        if not set(scores.stages) <= set(scores.tasks):
            return []
        columns = [scores.tasks.index(stage) for stage in scores.stages]
        return [[[row[t] for t in columns[:s]] for row in scores.score_matrix[:s]] for s in range(1, len(columns) + 1)]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with None for numbers that are not finite."""
        values = {
            "name": self.name,
            "finished": self.finished,
            **self.scores.as_dict(),
            "over_stages": [{"average_accuracy": a, "forgetting": f} for a, f in self.over_stages()],
            "changes": [asdict(change) for change in self.changes],
            "without_changes": self.without_changes,
            "notes": self.notes,
            "noticed": self.data_warnings,
            "about": self.about,
        }
        return finite_or_none(values)


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Every run, in the given order, with unique names.

    Raises:
        ConfigError: no folder, or one given twice.
        StoreError: a folder without a run or a finished stage, or a damaged file.
    """
    if not folders:
        raise ConfigError("No run to report; give at least one run folder.")
    resolved = [Path(folder).resolve() for folder in folders]
    if twice := sorted({str(folders[i]) for i, path in enumerate(resolved) if path in resolved[:i]}):
        raise ConfigError(f"Run {', '.join(twice)} is given twice; give each run once.")
    scores = [_checked(read_scores, folder) for folder in folders]
    return [
        _checked(_read_run, folder, name, run)
        for folder, name, run in zip(folders, run_names(scores), scores, strict=True)
    ]


def _checked(read: Any, folder: str | Path, *rest: Any) -> Any:
    try:
        return read(folder, *rest)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptFile(
            f"The run in '{folder}' cannot be read: {type(error).__name__}: {error}. "
            "A file is missing or damaged; restore the folder from a copy, or run again."
        ) from error


def _read_run(folder: str | Path, name: str, scores: Scores) -> Run:
    store = Store(Path(folder))
    order = store.stages()
    stages = [store.stage_folder(order.index(stage) + 1) for stage in scores.stages]
    changes, without = task_changes(scores, [StageAnswers(stage) for stage in stages])
    return Run(
        name=name,
        scores=scores,
        about=store.about,
        logs=[read_rows(stage / "log.jsonl", StepShape) for stage in stages],
        notes=[read_shaped(stage / "notes.json", NOTES) for stage in stages],
        finished=store.finished,
        changes=changes,
        without_changes=without,
        outcomes=task_outcomes(store),
        aside=set_aside(store),
    )

"""The scores of a run, read from its folder: matrix, metrics, and the dictionary `perdure scores --json` prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from perdure.durable import read_json
from perdure.errors import StoreError
from perdure.metrics import summary
from perdure.store import Store

Answer = Mapping[str, Any]
"""A row of predictions/<task>.jsonl: label, predicted, and predicted_task where another task's label was chosen."""


@dataclass(frozen=True)
class Scores:
    """What a run scored; fractions of 1, None where a metric has no meaning.

    Args:
        tasks: names in order; the columns of the matrix.
        stages: names in order; its rows. One for joint training; adapters taken in as history have none.
        score_matrix: [stages][tasks], the score on a task after a stage; None where it was not scored.
        untrained_scores: of the untouched base.
        examples: how many examples each task was scored on.
        folder: the run.
    """

    tasks: list[str]
    stages: list[str]
    score_matrix: list[list[float | None]]
    untrained_scores: list[float | None]
    examples: list[int]
    average_accuracy: float | None
    sample_weighted_accuracy: float | None
    learning_accuracy: float | None
    forgetting: float | None
    backward_transfer: float | None
    forward_transfer: float | None
    method: str
    seed: int
    split: str
    folder: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def read_scores(folder: str | Path) -> Scores:
    """The scores of the run's finished stages.

    Raises:
        StoreError: no run there, or no stage of it is finished.
    """
    store = Store(Path(folder))
    about, stages = store.about, store.stages()
    if not set(stages) - about.get("history", {}).keys():
        raise StoreError(f"No stage of the run in '{folder}' is finished; go on with `perdure resume {folder}`.")
    tasks, history = list(about["tasks"]), about.get("history", {})
    rows = [_row(store, position, tasks) for position, name in enumerate(["", *stages]) if name not in history]
    stages = [name for name in stages if name not in history]
    untrained = [score for score, _ in rows[0]]
    sizes = [examples for _, examples in rows[-1]]
    matrix = [[score for score, _ in row] for row in rows[1:]]
    return Scores(
        tasks=tasks,
        stages=stages,
        score_matrix=matrix,
        untrained_scores=untrained,
        examples=sizes,
        **summary(matrix, untrained, sizes),
        method=about["config"]["method"]["name"],
        seed=about["config"]["seed"],
        split=about["config"]["evaluation"]["split"],
        folder=str(folder),
    )


def is_right(answer: Answer) -> bool:
    """Whether the label, and among several label sets the task, was predicted."""
    return answer["label"] == answer["predicted"] and "predicted_task" not in answer


def _row(store: Store, position: int, tasks: list[str]) -> list[tuple[float | None, int]]:
    cells = read_json(store.stage_folder(position) / "scores.json")
    return [(cells[task]["score"], cells[task]["examples"]) if task in cells else (None, 0) for task in tasks]

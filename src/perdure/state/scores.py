"""The scores of a run, read from its folder: matrix, metrics, and the dictionary `perdure scores --json` prints."""

from __future__ import annotations

from pathlib import Path

from perdure.errors import StoreError
from perdure.files.durable import read_json
from perdure.state.store import Store
from perdure.training.metrics import Scores, summary


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


def _row(store: Store, position: int, tasks: list[str]) -> list[tuple[float | None, int]]:
    cells = read_json(store.stage_folder(position) / "scores.json")
    return [(cells[task]["score"], cells[task]["examples"]) if task in cells else (None, 0) for task in tasks]

"""The scores of a run, read from its folder: matrix, metrics, and the dictionary `perdure scores --json` prints."""

from __future__ import annotations

from pathlib import Path

from perdure.errors import StoreError
from perdure.state.answers import StageAnswers
from perdure.state.shapes import SCORES, read_shaped
from perdure.state.store import Store
from perdure.training.class_metrics import class_summary
from perdure.training.metrics import Scores, summary


def read_scores(folder: str | Path) -> Scores:
    """The scores of the run's finished stages; StoreError without a run or a finished stage."""
    store = Store(Path(folder))
    about = store.about
    history, tasks = about.get("history", {}), list(about["tasks"])
    positions = {name: position for position, name in enumerate(store.stages(), start=1) if name not in history}
    if not positions:
        raise StoreError(f"No stage of the run in '{folder}' is finished; continue it with `perdure resume {folder}`.")

    def row(position: int) -> list[tuple[float | None, int]]:
        cells = read_shaped(store.stage_folder(position) / "scores.json", SCORES)
        if position == 0:
            cells = {**about["untrained"], **cells}
        return [(cells[task]["score"], cells[task]["examples"]) if task in cells else (None, 0) for task in tasks]

    untrained, *rows = map(row, (0, *positions.values()))
    matrix = [[score for score, _ in row] for row in rows]
    sizes = [examples for _, examples in rows[-1]]
    return Scores(
        tasks=tasks,
        stages=list(positions),
        score_matrix=matrix,
        untrained_scores=[score for score, _ in untrained],
        examples=sizes,
        **summary(matrix, [score for score, _ in untrained], sizes),
        method=about["config"]["method"]["name"],
        seed=about["config"]["seed"],
        split=about["config"]["evaluation"]["split"],
        folder=str(folder),
        metrics=[metric for task in tasks if (metric := about.get("asked", {}).get(task, {}).get("metric"))],
    )


def class_scores(folder: str | Path) -> dict[str, dict[str, float]]:
    """Task with labels -> `class_summary` of its answers after the last stage; tasks that were not scored are left out."""
    store = Store(Path(folder))
    last, found = StageAnswers(store.stage_folder(len(store.stages()))), {}
    for task, asked in store.about.get("asked", {}).items():
        if asked.get("labels") and (rows := last.rows(task)):
            answers = ["" if "predicted_task" in row else row["predicted"] for row in rows]
            found[task] = class_summary([row["label"] for row in rows], answers, tuple(asked["labels"]))
    return found

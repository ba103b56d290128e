"""The quality gate: a stage that makes the model forget more than is allowed does not become part of the run."""

from __future__ import annotations

from pathlib import Path

from perdure.errors import ConfigError
from perdure.state.shapes import SCORES, read_shaped
from perdure.state.store import Accept, Store


def forgetting_gate(points: float | None) -> Accept | None:
    """Accepts a stage if no earlier task loses more than `points` (100 = everything); None: no gate.

    A task's loss is its term of the metric `forgetting`: its best score after any earlier stage, minus its score now.
    """
    if points is None:
        return None
    if not points >= 0:
        raise ConfigError(f"max_forgetting: give points, 0 or more, for example 2.0 (got {points:g}).")

    def accept(store: Store, stage: str, folder: Path) -> str | None:
        losses = [(100 * (best - now), task, best, now) for task, (best, now) in _losses(store, folder).items()]
        too_high = sorted((loss for loss in losses if loss[0] > points + 1e-9), key=lambda loss: -loss[0])
        if not too_high:
            return None
        falls = ", ".join(
            f"'{task}' fell from {100 * best:.1f} to {100 * now:.1f} ({loss:.1f} points)"
            for loss, task, best, now in too_high
        )
        return (
            f"Learning '{stage}' forgets more than {points:g} points: {falls}. It was not accepted: the run and its "
            "deployed model are unchanged. Accept it with a higher --max-forgetting, or learn with settings that "
            "forget less (another method, a smaller training.later_learning_rate_factor) in a new run."
        )

    return accept


def _losses(store: Store, folder: Path) -> dict[str, tuple[float, float]]:
    """Earlier task -> (best score after any earlier stage, score now), where both are known."""
    *earlier, now = map(_scores, (*map(store.stage_folder, range(1, len(store.stages()) + 1)), folder))
    scores = {task: [row[task] for row in earlier if row.get(task) is not None] for task in store.stages()}
    return {task: (max(known), now[task]) for task, known in scores.items() if known and now.get(task) is not None}


def _scores(folder: Path) -> dict[str, float]:
    return {task: cell["score"] for task, cell in read_shaped(folder / "scores.json", SCORES).items()}

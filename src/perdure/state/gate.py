"""The quality gate: a stage that makes the model forget more than is allowed does not become a part of the run."""

from __future__ import annotations

from pathlib import Path

from perdure.errors import ConfigError
from perdure.files.durable import read_json
from perdure.state.store import Accept, Store


def forgetting_gate(points: float | None) -> Accept | None:
    """Accepts a stage if no task learnt before loses more than `points` (100 = everything); None: no gate.

    What a task loses is its term of the metric `forgetting`: its best score after any earlier stage, minus its score now.

    Raises:
        ConfigError: a negative limit.
    """
    if points is None:
        return None
    if not points >= 0:
        raise ConfigError(f"max_forgetting: give points, 0 or more, for example 2.0 (got {points:g}).")

    def accept(store: Store, stage: str, folder: Path) -> str | None:
        lost = _losses(store, folder)
        worst = sorted((t for t in lost if _points(*lost[t]) > points + 1e-9), key=lambda t: -_points(*lost[t]))
        if not worst:
            return None
        told = ", ".join(
            f"'{task}' fell from {100 * lost[task][0]:.1f} to {100 * lost[task][1]:.1f} ({_points(*lost[task]):.1f} points)"
            for task in worst
        )
        return (
            f"Learning '{stage}' forgets more than {points:g} points: {told}. It was not accepted: the run and its "
            "deployed model stay as they were. Accept it with a higher --max-forgetting, or learn with settings that "
            "forget less (another method, a smaller training.later_learning_rate_factor) in a new run."
        )

    return accept


def _losses(store: Store, folder: Path) -> dict[str, tuple[float, float]]:
    """Task learnt before -> (best score after any earlier stage, score now), where both are known."""
    now = _scores(folder)
    earlier = [_scores(store.stage_folder(position + 1)) for position in range(len(store.stages()))]
    found = {}
    for task in store.stages():
        before = [row[task] for row in earlier if row.get(task) is not None]
        if before and now.get(task) is not None:
            found[task] = (max(before), now[task])
    return found


def _points(before: float, after: float) -> float:
    return 100 * (before - after)


def _scores(folder: Path) -> dict[str, float]:
    return {task: cell["score"] for task, cell in read_json(folder / "scores.json").items()}

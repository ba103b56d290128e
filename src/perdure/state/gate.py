"""The quality gate: a stage that makes the model forget more than is allowed does not become part of the run."""

from __future__ import annotations

from pathlib import Path

from perdure.errors import ConfigError
from perdure.files.durable import read_json
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
        now = _scores(folder)
        earlier = [_scores(store.stage_folder(position + 1)) for position in range(len(store.stages()))]
        falls: list[tuple[float, str]] = []
        for task in store.stages():
            known = [row[task] for row in earlier if row.get(task) is not None]
            if known and now.get(task) is not None and (loss := 100 * (max(known) - now[task])) > points + 1e-9:
                scores = f"from {100 * max(known):.1f} to {100 * now[task]:.1f}"
                falls.append((loss, f"'{task}' fell {scores} ({loss:.1f} points)"))
        if not falls:
            return None
        worst_first = ", ".join(text for _, text in sorted(falls, key=lambda fall: -fall[0]))
        return (
            f"Learning '{stage}' forgets more than {points:g} points: {worst_first}. It was not accepted: the run and its "
            "deployed model are unchanged. Accept it with a higher --max-forgetting, or learn with settings that "
            "forget less (another method, a smaller training.later_learning_rate_factor) in a new run."
        )

    return accept


def _scores(folder: Path) -> dict[str, float]:
    return {task: cell["score"] for task, cell in read_json(folder / "scores.json").items()}

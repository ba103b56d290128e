"""A run in TensorBoard, MLflow or Weights & Biases: a reporter that passes on every step, score and metric, through accelerate.

Trackers only observe. They are not part of a run's configuration: a run may be resumed with others, or without any, and has the
same bits. Each tracker's own environment variables decide where it writes:

    tensorboard   RUN/tensorboard; `tensorboard --logdir runs` compares runs
    mlflow        MLFLOW_TRACKING_URI, else mlflow's own default; experiment MLFLOW_EXPERIMENT_NAME, else 'perdure'
    wandb         RUN/wandb; project WANDB_PROJECT, else 'perdure'; WANDB_MODE=offline keeps everything on this machine

The step of everything is the number of optimiser steps since the run began; a resumed run continues to count.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure.errors import ConfigError, UnknownName
from perdure.state.store import Store
from perdure.training.metrics import FORMULAS
from perdure.training.reporter import Reporter

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

    from perdure.training.metrics import Scores
    from perdure.training.train import Step

TRACKERS = ("tensorboard", "mlflow", "wandb")
"""Each is also the name of the package it needs."""


class Trackers(Reporter):
    """Logs a run to trackers. One that fails during the run is dropped with a warning, and the run continues.

    `folder`: the run's; `names`: some of `TRACKERS` (UnknownName for others, ConfigError if a package is not installed).
    """

    def __init__(self, folder: str | Path, names: Sequence[str]) -> None:
        for name in names:
            if name not in TRACKERS:
                raise UnknownName("tracker", name, TRACKERS)
            if importlib.util.find_spec(name) is None:
                raise ConfigError(f"Tracker '{name}' needs a package. Install it: pip install 'perdure[trackers]'.")
        self._store, self._names = Store(Path(folder)), tuple(dict.fromkeys(names))
        self._open: dict[str, GeneralTracker] = {}
        self._before = self._now = 0

    def begin(self, stages: Sequence[str], finished: int) -> None:
        from accelerate import PartialState

        PartialState()  # accelerate's trackers read from it which process they are in
        # optimiser steps of the finished stages
        folders = map(self._store.stage_folder, range(1, len(self._store.stages()) + 1))
        self._before = self._now = sum((folder / "log.jsonl").read_bytes().count(b"\n") for folder in folders)
        settings = {"stages": ", ".join(stages), **flat(self._store.about["config"])}
        for name in self._names:
            try:
                tracker = _tracker(name, self._store.folder)
                tracker.start()
                tracker.store_init_configuration(settings)
            except Exception as error:  # whatever a tracker's package raises
                raise ConfigError(
                    f"Tracker '{name}' cannot start: {error}. Fix its settings, or leave out --tracker {name}."
                ) from error
            self._open[name] = tracker

    def step(self, stage: str, step: Step, total: int) -> None:
        self._now = self._before + step.step
        values = {"loss": step.loss, "learning_rate": step.learning_rate}
        values |= {f"penalty/{name}": value for name, value in step.penalties.items()}
        values |= {f"share/{name}": value for name, value in step.shares.items() if value is not None}
        if step.validation is not None:
            values["validation"] = step.validation
        self._log(values)

    def scored(self, learnt: Sequence[str], scores: Mapping[str, float | None]) -> None:
        self._log({f"score/{task}": score for task, score in scores.items() if score is not None})
        self._before = self._now

    def end(self, scores: Scores | None) -> None:
        if scores is not None:
            metrics = {name: getattr(scores, name) for name in FORMULAS}
            self._log({f"metric/{name}": value for name, value in metrics.items() if value is not None})
        self._each(lambda tracker: tracker.finish())
        self._open.clear()

    def _log(self, values: Mapping[str, float]) -> None:
        self._each(lambda tracker: tracker.log(dict(values), step=self._now))

    def _each(self, act: Callable[[GeneralTracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                act(tracker)
            except Exception as error:  # an unreachable server must not stop the run
                del self._open[name]
                warnings.warn(f"tracker '{name}' dropped: {error}. The run's own log is complete.", stacklevel=2)


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """Nested settings as `a.b.c` -> plain value, without unset ones; lists as strings.

    >>> flat({"lora": {"rank": 8, "targets": ["q", "v"]}, "data": None})
    {'lora.rank': 8, 'lora.targets': 'q, v'}
    """
    plain: dict[str, str | int | float | bool] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            plain |= flat(value, f"{prefix}{key}.")
        elif isinstance(value, str | int | float):
            plain[prefix + key] = value
        elif value is not None:
            items = (item.get("name", item) if isinstance(item, Mapping) else item for item in value)
            plain[prefix + key] = ", ".join(map(str, items))
    return plain


def _tracker(name: str, folder: Path) -> GeneralTracker:
    from accelerate.tracking import MLflowTracker, TensorBoardTracker, WandBTracker

    if name == "tensorboard":
        return TensorBoardTracker("tensorboard", logging_dir=folder)
    if name == "mlflow":
        return MLflowTracker("perdure", run_name=folder.name)
    project = os.environ.get("WANDB_PROJECT", "perdure")
    return WandBTracker(project, dir=str(folder), name=os.environ.get("WANDB_NAME", folder.name))

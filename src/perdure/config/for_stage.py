"""The settings one stage is trained with: a task may have its own."""

from __future__ import annotations

from collections.abc import Sequence

from perdure.config.run_config import RunConfig, TrainingSettings
from perdure.errors import ConfigError, UnknownName
from perdure.settings.read import validate
from perdure.tasks.task import Stage

OF_THE_RUN = "checkpoint_minutes"


def for_stage(config: RunConfig, name: str) -> RunConfig:
    """The run's configuration, in which the stage's own settings of `training` replace the run's; ConfigError if one is wrong."""
    own = config.training_by_task.get(name)
    if not own:
        return config
    place = f"training_by_task.{name}"
    if OF_THE_RUN in own:
        raise ConfigError(f"{place}: {OF_THE_RUN} is a setting of the run. Give it in `training`.")
    shared = {setting: getattr(config.training, setting) for setting in TrainingSettings.model_fields}
    return config.model_copy(update={"training": validate(TrainingSettings, {**shared, **own}, place)})


def check_stage_settings(config: RunConfig, stages: Sequence[Stage]) -> None:
    """Check every task's own settings before anything is loaded.

    Raises:
        ConfigError: one is unknown or has a wrong value, or all tasks are trained together.
        UnknownName: no task has that name.
    """
    names = [stage.name for stage in stages]
    for name in config.training_by_task:
        if names == ["joint"]:
            raise ConfigError(f"training_by_task: '{config.method_name}' trains all tasks together. Leave it out.")
        if name not in names:
            raise UnknownName("task in training_by_task", name, names)
        for_stage(config, name)

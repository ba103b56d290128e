"""Checks that a run passes before anything is trained: its settings, its folder, its processes."""

from __future__ import annotations

from collections.abc import Sequence

from perdure.backbones.base import Backbone
from perdure.backbones.models import model_names
from perdure.config.run_config import SUITE_SETTINGS, RunConfig, located, located_sources
from perdure.errors import ConfigError, RunMismatch, StoreError
from perdure.methods.contract.parts import Method
from perdure.state.gate import Gate
from perdure.state.reopen import initial_config
from perdure.state.store import Store
from perdure.tasks.task import Task
from perdure.training.processes import Processes

CUT_SIZES = ("validation_size", "test_size")


def absolute(config: RunConfig, store: Store) -> RunConfig:
    """The configuration with absolute paths, so that the run can be resumed from any folder.

    The configuration that the run in `store` began with is returned unchanged. Where it asked for all examples of splits cut
    from train, as every run did before sizes could be left open, it still does.
    """
    if store.exists:
        begun = initial_config(store)
        config = _with_begun_sizes(config, begun)
        if begun.model_dump() == config.model_dump():
            return config
    sources = located_sources({"suite": config.suite, "data": config.data, "backbone": config.backbone})
    model = sources["backbone"]["model"]
    if model not in model_names():
        sources["backbone"] = {**sources["backbone"], "model": located(model)}
    protect = located_sources({"protect": config.protect.model_dump()})["protect"]
    return config.model_copy(update={**sources, "protect": config.protect.model_copy(update=protect)})


def _with_begun_sizes(config: RunConfig, begun: RunConfig) -> RunConfig:
    """`config`, which leaves sizes of splits open, with "all" where the run began so."""
    tasks = [
        task.model_copy(
            update={key: "all" for key in CUT_SIZES if (getattr(task, key), getattr(old, key)) == (None, "all")}
        )
        for task, old in zip(config.tasks, begun.tasks, strict=False)
    ]
    return config.model_copy(update={"tasks": (*tasks, *config.tasks[len(tasks) :])})


def check_sources(config: RunConfig, tasks: Sequence[Task] | None, begun: bool) -> None:
    """Raise ConfigError unless exactly one source of tasks is given, and settings of suites only with a suite."""
    sources = [tasks is not None, config.suite is not None, bool(config.tasks)]
    if not any(sources):
        raise ConfigError("Nothing to learn: give `suite` (see `perdure suites`) or `tasks` (see `perdure init`).")
    if sum(sources) > 1:
        raise ConfigError("Give either `suite` (see `perdure suites`) or `tasks`, not both.")
    default = RunConfig()
    changed = [name for name in SUITE_SETTINGS if getattr(config, name) != getattr(default, name)]
    if changed and config.suite is None and not begun:
        raise ConfigError(
            f"{', '.join(f'`{name}`' for name in changed)}: only for suites. Your own tasks set train_size, validation_size, "
            "test_size and seed themselves, and are learnt in the order in which they are listed."
        )


def check_gate(config: RunConfig, method: Method, gate: Gate) -> None:
    """Raise ConfigError if the quality gate would have no scores to compare."""
    if not (asked := ", ".join(gate.bounds())):
        return
    if method.stream == "joint":
        raise ConfigError(f"Method '{method.name}' learns everything at once and cannot forget: leave {asked} out.")
    if config.evaluation.every_stage is not True:
        raise ConfigError(f"{asked}: a gate compares scores after every stage; leave evaluation.every_stage at true.")


def check_changed(store: Store, config: RunConfig) -> None:
    """Raise RunMismatch or StoreError unless a run with added tasks began with `config` and has finished it."""
    store.must_match({"config": config.model_dump(mode="json")})
    if "begun" in store.manifest:
        last = store.stages()[-1]
        raise StoreError(
            f"The run in '{store.folder}' was rolled back to '{last}' and ends there. Add tasks with `perdure add "
            f"{store.folder} FILE`, or run the configuration in a new folder."
        )


def check_shards(config: RunConfig, backbone: Backbone) -> None:
    """Raise ConfigError if the deployed model could not be written while the base is split over processes."""
    if config.shard and backbone.answers_from_examples:
        raise ConfigError(
            "shard=true does not work with a vision backbone: its deployed model is written with class means that the whole "
            "model computes, but the process that writes holds only a part of it. Leave shard out; data parallelism works."
        )


def check_count(store: Store, processes: Processes) -> None:
    """Raise RunMismatch if the run began with another number of processes."""
    if store.exists and (begun := store.about.get("processes", 1)) != processes.count:
        raise RunMismatch(
            f"The run in '{store.folder}' began with {begun} processes, and sums round differently in {processes.count}. Resume "
            "with as many (accelerate launch --num_processes), or choose another folder."
        )

"""A whole run from one call: configuration -> tasks, backbone, method, store -> the loop."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import reduce
from pathlib import Path
from typing import Any, cast

import torch

from perdure.backbones.base import Backbone
from perdure.backbones.device import choose_precision
from perdure.backbones.models import model_names
from perdure.config.run_config import SUITE_SETTINGS, RunConfig, load_config, located, located_sources
from perdure.errors import ConfigError, RunMismatch, StoreError
from perdure.loop.adapter_history import (
    check_history,
    check_names_apart,
    history_record,
    history_stages,
    history_warnings,
    learn_history,
)
from perdure.loop.sequence import run_sequence
from perdure.methods.contract.build import build_method, check_needs, check_stages
from perdure.methods.contract.own import sources
from perdure.methods.contract.parts import Method
from perdure.state.gate import forgetting_gate
from perdure.state.reopen import (
    UNRECORDED,
    begun_config,
    check_base_there,
    load_configured_suite,
    load_learner,
    load_recorded,
    offered,
    recorded_tasks,
    reopen,
    task_record,
)
from perdure.state.scores import read_scores
from perdure.state.store import Store
from perdure.tasks.sources.files import load_task, task_spec
from perdure.tasks.spec import TaskSpec
from perdure.tasks.splits import checked, repeated_from_older
from perdure.tasks.suites import Suite
from perdure.tasks.task import Task, given_tasks, stages
from perdure.training.evaluation import check_metric, check_scored
from perdure.training.lora import AdaptedModel
from perdure.training.metrics import Scores
from perdure.training.processes import Processes, join
from perdure.training.reporter import Reporter, as_reporter

OneTask = Task | str | Path | TaskSpec | Mapping[str, Any]
"""A task, its YAML file, or its settings."""
VERSIONS = ("perdure", "torch", "transformers", "peft")


def learn(
    *,
    out: str | Path,
    tasks: OneTask | Iterable[OneTask] | None = None,
    method: str | Mapping[str, Any] = "ps-lora",
    backbone: str | Mapping[str, Any] = "minilm",
    max_forgetting: float | None = None,
    report: Reporter | None = None,
    **settings: Any,
) -> Scores:
    """Learn tasks one after another into the run folder `out`, and return the scores.

    A folder that holds the same run, unfinished, is gone on with.

    Args:
        out: the run's folder.
        tasks: the tasks in order (or one alone), or their YAML files (or settings, whose relative files are looked for in
            the working folder): such a run can also be gone on with from the command line. Or give `suite="quickstart"`
            among the settings.
        method: a preset's name, or a composition of parts.
        backbone: a model, or settings of a backbone.
        max_forgetting: refuse a stage after which an earlier task scores more than this many points below its best.
        report: who is told about progress.
        settings: everything else of `perdure.config.run_config.RunConfig`, for example `training={"epochs": 2}`, `seed=1`.

    Raises:
        ConfigError, DataError, StoreError, TrainingError, QualityGate: see `perdure.errors`.
    """
    as_reporter(report)
    every = () if tasks is None else _listed(tasks)
    given = [task for task in every if isinstance(task, Task)]
    specs = [task_spec(task) for task in every if not isinstance(task, Task)]
    if given and specs:
        raise ConfigError("Give all tasks as tasks, or all as files; `perdure.load_task(file)` makes a task of a file.")
    if specs:
        settings["tasks"] = [spec.model_dump() for spec in specs]
    config = load_config({"method": method, "backbone": backbone, **settings})
    own = None if tasks is None or specs else [checked(task) for task in given]
    return run_config(config, out, tasks=own, max_forgetting=max_forgetting, report=report)


def _listed(tasks: OneTask | Iterable[OneTask]) -> tuple[OneTask, ...]:
    """Several tasks; one alone stands for a list of it.

    Raises:
        ConfigError: neither.
    """
    if isinstance(tasks, (Task, TaskSpec, str, Path, Mapping)):
        return (cast(OneTask, tasks),)
    if not isinstance(tasks, Iterable):
        raise ConfigError(f"tasks={tasks!r:.80}: expected a list of tasks, of their YAML files or of their settings.")
    return tuple(tasks)


def run_config(
    config: RunConfig,
    out: str | Path,
    *,
    tasks: Sequence[Task] | None = None,
    max_forgetting: float | None = None,
    report: Reporter | None = None,
    shared: Path | None = None,
    suite: Suite | None = None,
) -> Scores:
    """Run a validated configuration; see `learn`.

    Args:
        shared: a folder of stages that runs have in common (perdure.state.shared).
        suite: the configured suite, where it has been read before.
    """
    processes = join()
    report = as_reporter(report, processes.main)
    config = _absolute(config, Store(Path(out)))
    _check_sources(config, tasks, begun=Store(Path(out)).exists)
    method = build_method(config.method)
    if method.stream == "joint" and max_forgetting is not None:
        raise ConfigError(f"Method '{method.name}' learns everything at once, so there is no forgetting to limit.")
    if max_forgetting is not None and config.evaluation.every_stage is not True:
        raise ConfigError("max_forgetting compares scores after every stage; leave evaluation.every_stage at true.")
    store = Store(Path(out), accept=forgetting_gate(max_forgetting))
    processes.once(_check_place, store, config)
    with _writing(store, processes):
        processes.once(lambda: store.verify() if store.exists else None)
        if store.exists and store.changed:
            _check_grown(store, config)
            return told(report, store)
        if config.suite and suite is None:
            suite = processes.main_first(lambda: load_configured_suite(config))
        chosen = suite.tasks if suite else tuple(tasks or processes.main_first(lambda: _from_files(store, config)))
        for task in chosen:
            check_metric(task)
            check_scored(task, config.evaluation.split)
        # names that cannot stand together, and too many tasks, are told before a model is loaded
        check_stages(method, stages(chosen, method.stream))
        check_names_apart([stage.name for stage in history_stages(config.history)], chosen)
        threads = store.about["threads"] if store.exists else config.threads
        if threads:
            torch.set_num_threads(threads)  # before the tasks are prepared: a vision backbone measures features then
        if store.exists:
            check_base_there(store)
        model, learner = processes.main_first(lambda: load_learner(config, chosen))
        check_needs(method, offered(model, chosen, method, config))
        check_shards(config, learner)
        processes.once(check_history, config, method, model, store)
        _check_count(store, processes)
        warnings = suite.warnings if suite else ()
        processes.once(lambda: store.create(_about(config, chosen, method, model, warnings, store, learner, processes)))
        about = store.about
        learner.precision = about["precision"]
        if about["threads"] != torch.get_num_threads():
            torch.set_num_threads(about["threads"])
        with reporting(report, chosen, method, config, store):
            processes.once(learn_history, config, chosen, method, model, learner, store, report)
            if config.shard:
                model.shard(processes)
            run_sequence(chosen, method, model, learner, config, store, report, processes, shared)
    return told(report, store)


def _from_files(store: Store, config: RunConfig) -> list[Task]:
    """The configured tasks; of a run that exists, files that are gone are known to be recorded ones."""
    return [load_recorded(store, spec) if store.exists else load_task(spec) for spec in config.tasks]


def _absolute(config: RunConfig, store: Store) -> RunConfig:
    """The configuration with absolute names of files and folders, so that the run goes on from anywhere.

    One that the run in `store` was begun with is left as it is.
    """
    if store.exists and begun_config(store).model_dump() == config.model_dump():
        return config
    found = located_sources({"suite": config.suite, "data": config.data, "backbone": config.backbone})
    model = found["backbone"]["model"]
    if model not in model_names():
        found["backbone"] = {**found["backbone"], "model": located(model)}
    return config.model_copy(update=found)


def _check_sources(config: RunConfig, tasks: Sequence[Task] | None, begun: bool) -> None:
    """It is said what to learn, once; and nothing is said about a suite where there is none.

    Raises:
        ConfigError: neither a suite nor tasks, both, or settings of a suite beside tasks.
    """
    sources = [tasks is not None, config.suite is not None, bool(config.tasks)]
    if not any(sources):
        raise ConfigError("Say what to learn: `suite` (see `perdure suites`), or `tasks` (see `perdure init`).")
    if sum(sources) > 1:
        raise ConfigError("Say what to learn: either `suite` (see `perdure suites`) or `tasks`, not both.")
    usual = RunConfig()
    changed = [name for name in SUITE_SETTINGS if getattr(config, name) != getattr(usual, name)]
    if changed and config.suite is None and not begun:
        raise ConfigError(
            f"{', '.join(f'`{name}`' for name in changed)}: of suites only. A task of your own says it itself, with train_size, "
            "validation_size, test_size and seed; tasks are learnt in the order in which they are listed."
        )


def _check_place(store: Store, config: RunConfig) -> None:
    """The folder can hold this run: asked before anything is loaded or written.

    Raises:
        RunMismatch: it holds a run of another configuration; StoreError: it holds something else.
    """
    if store.exists:
        store.must_match({"config": config.model_dump(mode="json")})
    elif store.folder.is_dir() and any(not p.name.startswith((".lock", ".partial-")) for p in store.folder.iterdir()):
        raise StoreError(f"'{store.folder}' exists and holds no run; choose an empty or a new folder.")


@contextmanager
def _writing(store: Store, processes: Processes) -> Iterator[None]:
    """The main process holds the store's lock; that another run holds it is everybody's error."""
    with ExitStack() as held:
        processes.once(lambda: held.enter_context(store.writing()))
        yield


@contextmanager
def reporting(
    report: Reporter, tasks: Sequence[Task], method: Method, config: RunConfig, store: Store
) -> Iterator[None]:
    """Tell the reporter which stages begin, and if what is within does not come to its end.

    Adapters of `history` are finished stages from the start: taking them in trains nothing.
    """
    try:
        names = [stage.name for stage in (*history_stages(config.history), *stages(tasks, method.stream))]
        report.begin(names, max(len(store.stages()), len(config.history)))
        yield
    except BaseException:
        report.end(None)
        raise


def told(report: Reporter, store: Store) -> Scores:
    """The scores of the run, and the reporter knows them."""
    scores = read_scores(store.folder)
    report.end(scores)
    return scores


def _check_grown(store: Store, config: RunConfig) -> None:
    """A run to which tasks were added has finished what `config` begins.

    Raises:
        RunMismatch: it was begun with another configuration; StoreError: tasks of it were rolled back.
    """
    store.must_match({"config": config.model_dump(mode="json")})
    if "begun" in store.manifest:
        last = store.stages()[-1]
        raise StoreError(
            f"The run in '{store.folder}' was rolled back to '{last}'; it ends there. Add tasks with `perdure add "
            f"{store.folder} TASK.yaml`, or run the configuration in a new folder."
        )


def resume(
    out: str | Path,
    *,
    tasks: Sequence[Task] = (),
    max_forgetting: float | None = None,
    report: Reporter | None = None,
) -> Scores:
    """Go on with the run in `out` where its last checkpoint stands.

    Args:
        tasks: those that were given from Python.
        max_forgetting: see `learn`.

    Raises:
        StoreError: no run there, or its tasks were given from Python and are not given again.
    """
    store, tasks = Store(Path(out)), given_tasks(tasks)
    config = begun_config(store)
    if not store.changed and (tasks or config.suite is not None or config.tasks):
        return run_config(config, out, tasks=tasks or None, max_forgetting=max_forgetting, report=report)
    if not store.changed:
        raise StoreError(
            f"The tasks of '{out}' were given from Python; call perdure.learn again with out='{out}' to go on."
        )
    processes = join()
    report = as_reporter(report, processes.main)
    with _writing(store, processes):
        processes.once(store.verify)
        _check_count(store, processes)
        run = processes.main_first(lambda: reopen(store, recorded_tasks(store, tasks)))
        if config.shard:
            run.model.shard(processes)
        with reporting(report, run.tasks, run.method, run.config, store):
            run_sequence(run.tasks, run.method, run.model, run.backbone, run.config, store, report, processes)
    return told(report, store)


def check_shards(config: RunConfig, learner: Backbone) -> None:
    """What the run leaves behind can be written while the base is split over processes.

    Raises:
        ConfigError: the model itself is needed for it, and the one that writes has only a part.
    """
    if config.shard and learner.answers_from_examples:
        raise ConfigError(
            "shard=true does not go with a vision backbone: its deployed model is written with class means that the whole model "
            "computes, while the process that writes holds a part of it. Leave shard out; data parallelism works."
        )


def _check_count(store: Store, processes: Processes) -> None:
    """The run was begun by as many processes.

    Raises:
        RunMismatch: it was not.
    """
    if store.exists and (begun := store.about.get("processes", 1)) != processes.count:
        raise RunMismatch(
            f"The run in '{store.folder}' was begun by {begun} processes, and sums round otherwise in {processes.count}: go on "
            "with as many (accelerate launch --num_processes), or choose another folder."
        )


def _about(
    config: RunConfig,
    tasks: Sequence[Task],
    method: Method,
    model: AdaptedModel,
    warnings: Sequence[str],
    store: Store,
    learner: Backbone,
    processes: Processes,
) -> dict[str, Any]:
    """run.json: chosen once, when the run begins; a resume uses what it finds."""
    known = store.about if store.exists else None
    cut, length = learner.truncated, getattr(getattr(learner, "settings", None), "max_length", None)
    longest = f" ({length})" if length else ""
    return {
        "config": config.model_dump(mode="json"),
        **task_record(tasks),
        "base": model.fingerprint(),
        "history": history_record(config, store),
        "warnings": [
            *(warnings or [f"{task.name}: {note}" for task in tasks for note in task.notes]),
            *repeated_from_older(tasks),
            *history_warnings(config, store),
            *(
                [f"{cut} texts are too long for backbone.max_length{longest} and are cut; a larger one reads more"]
                if cut
                else []
            ),
        ],
        "precision": known["precision"] if known else choose_precision(config.precision, model.device),
        "threads": known["threads"] if known else torch.get_num_threads(),
        "processes": processes.count,
        **{name: reduce(getattr, key.split("."), config) for name, key in UNRECORDED.items()},
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "versions": versions(),
        **({"own_parts": own} if (own := sources(method)) else {}),
    }


def versions() -> dict[str, str]:
    """The packages that a run's numbers depend on -> their versions here."""
    return {name: importlib.metadata.version(name) for name in VERSIONS}

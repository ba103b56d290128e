"""A whole run from one call: configuration -> tasks, backbone, method, store -> the loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from perdure.backbones.base import Backbone
from perdure.commands.before_run import absolute, check_changed, check_count, check_gate, check_shards, check_sources
from perdure.commands.preview import dry_lines, preview_lines
from perdure.commands.run_record import begin_lines, run_record, same_libraries
from perdure.commands.skipped import write_skipped
from perdure.config.for_stage import check_stage_settings
from perdure.config.run_config import RunConfig, load_config
from perdure.errors import ConfigError, StoreError
from perdure.loop.adapter_history import check_history, check_names_apart, history_stages, learn_history
from perdure.loop.base_task import base_stage, check_protect, protect_base
from perdure.loop.progress import tell
from perdure.loop.sequence import run_sequence
from perdure.methods.contract.build import build_method, check_needs, check_stages
from perdure.methods.contract.parts import Method
from perdure.state.gate import OPEN, Gate
from perdure.state.reopen import (
    check_base_there,
    check_reading,
    initial_config,
    learner_config,
    load_configured_suite,
    load_learner,
    load_recorded,
    offered,
    recorded_tasks,
    reopen,
)
from perdure.state.scores import read_scores
from perdure.state.store import Store
from perdure.tasks.sources.files import load_task, task_spec
from perdure.tasks.spec import TaskSpec
from perdure.tasks.splits import checked
from perdure.tasks.suites import Suite
from perdure.tasks.task import Task, given_tasks, stages
from perdure.training.checks import check_training
from perdure.training.evaluation import check_scorable
from perdure.training.lora import AdaptedModel
from perdure.training.metrics import Scores
from perdure.training.processes import Processes, join
from perdure.training.reporter import Quiet, Reporter, as_reporter

OneTask = Task | str | Path | TaskSpec | Mapping[str, Any]
"""A task, its YAML file, or its settings."""


def learn(
    *,
    out: str | Path,
    tasks: OneTask | Iterable[OneTask] | None = None,
    method: str | Mapping[str, Any] = "ps-lora",
    backbone: str | Mapping[str, Any] = "minilm",
    max_forgetting: float | None = None,
    max_drop: float | None = None,
    min_gain: float | None = None,
    report: Reporter | None = None,
    **settings: Any,
) -> Scores:
    """Learn tasks one after another into the run folder `out`, and return the scores.

    If the folder holds the same run, unfinished, it is resumed.

    Args:
        out: the run's folder.
        tasks: the tasks in order (or a single one), or their YAML files, or their settings, whose relative files are looked for
            in the working folder. A run from files or settings can also be resumed from the command line. Or give
            `suite="quickstart"` among the settings.
        method: a preset's name, or a composition of parts.
        backbone: a model, or settings of a backbone.
        max_forgetting, max_drop, min_gain: refuse a stage that breaks one of these bounds (perdure.state.gate.Gate).
        report: follows the progress.
        settings: everything else of `perdure.config.run_config.RunConfig`, for example `training={"epochs": 2}`, `seed=1`.

    Raises:
        ConfigError, DataError, StoreError, TrainingError, QualityGate: see `perdure.errors`.
    """
    as_reporter(report)
    if isinstance(tasks, (Task, TaskSpec, str, Path, Mapping)):
        tasks = [cast(OneTask, tasks)]
    if not isinstance(tasks, Iterable | None):
        raise ConfigError(f"tasks={tasks!r:.80}: expected a list of tasks, of their YAML files or of their settings.")
    every = list(tasks or ())
    given = [task for task in every if isinstance(task, Task)]
    specs = [task_spec(task) for task in every if not isinstance(task, Task)]
    if given and specs:
        raise ConfigError("Give all tasks as tasks, or all as files; `perdure.load_task(file)` makes a task of a file.")
    if specs:
        settings["tasks"] = [spec.model_dump() for spec in specs]
    config = load_config({"method": method, "backbone": backbone, **settings})
    own = None if tasks is None or specs else [checked(task) for task in given]
    return run_config(config, out, tasks=own, gate=Gate(max_forgetting, max_drop, min_gain), report=report)


def run_config(
    config: RunConfig,
    out: str | Path,
    *,
    tasks: Sequence[Task] | None = None,
    gate: Gate = OPEN,
    report: Reporter | None = None,
    shared: Path | None = None,
    suite: Suite | None = None,
) -> Scores:
    """Run a validated configuration; see `learn`.

    Args:
        shared: a folder of stages that runs have in common (perdure.state.shared).
        suite: the configured suite, if it has already been read.
    """
    processes = join()
    report = as_reporter(report, processes.main)
    store = Store(Path(out), accept=gate.accept)
    config = absolute(config, store)
    check_sources(config, tasks, begun=store.exists)
    method = build_method(config.method)
    check_gate(config, method, gate)
    check_protect(config, method)
    processes.once(store.must_match, {"config": config.model_dump(mode="json")})
    with _writing(store, processes):
        processes.once(lambda: store.verify() if store.exists else None)
        if store.exists and store.changed:
            check_changed(store, config)
            return report_end(report, store)
        chosen, model, backbone, warnings = _load(config, method, store, tasks, suite, processes)
        protects = config.protect.base is not None and not (store.exists and store.stages())
        base = processes.once(base_stage, config, model, backbone) if protects else None
        if base and not processes.main:
            backbone.prepare(base.tasks)
        processes.once(check_history, config, method, model, store)
        check_count(store, processes)
        processes.once(
            lambda: store.create(run_record(config, chosen, method, model, warnings, store, backbone, processes))
        )
        processes.once(write_skipped, store.folder, chosen)
        about = store.about
        backbone.precision = about["precision"]
        if about["threads"] != torch.get_num_threads():
            torch.set_num_threads(about["threads"])
        lines = begin_lines(about)
        if type(report) is not Quiet and not store.stages():
            lines += preview_lines(stages(chosen, method.stream), model, backbone, config, out)
        with reporting(report, chosen, method, config, store, lines):
            if base:
                tell(report, f"protect: what the base can do is measured on {len(base.train)} texts")
                protect_base(base, method, model, backbone, config.seed, processes)
            processes.once(learn_history, config, chosen, method, model, backbone, store, report)
            if config.shard:
                model.shard(processes)
            run_sequence(chosen, method, model, backbone, config, store, report, processes, shared)
    return report_end(report, store)


def _load(
    config: RunConfig,
    method: Method,
    store: Store,
    tasks: Sequence[Task] | None,
    suite: Suite | None,
    processes: Processes,
) -> tuple[tuple[Task, ...], AdaptedModel, Backbone, Sequence[str]]:
    """Tasks, model, backbone and the suite's warnings, with every check that needs nothing but them."""
    if config.suite and suite is None:
        suite = processes.main_first(lambda: load_configured_suite(config))
    load = partial(load_recorded, store) if store.exists else load_task  # a missing file has another reason then
    chosen = suite.tasks if suite else tuple(tasks or processes.main_first(lambda: list(map(load, config.tasks))))
    for task in chosen:
        check_scorable(task, config.evaluation.split)
    check_stage_settings(config, stages(chosen, method.stream))
    # conflicting names and too many tasks are refused before a model is loaded
    check_stages(method, stages(chosen, method.stream))
    check_names_apart([stage.name for stage in history_stages(config.history)], chosen)
    threads = store.about["threads"] if store.exists else config.threads
    if threads:
        torch.set_num_threads(threads)  # before the tasks are prepared: a vision backbone measures features then
    if store.exists:
        check_base_there(store)
    whole = learner_config(store) if store.exists else config
    model, backbone = processes.main_first(lambda: load_learner(whole, chosen, same_libraries(store)))
    if store.exists:
        check_reading(store, backbone)
    check_needs(method, offered(model, chosen, method, config))
    check_shards(config, backbone)
    check_training(config, stages(chosen, method.stream), model.device)
    return chosen, model, backbone, suite.warnings if suite else ()


def preview(
    config: RunConfig, out: str | Path, tasks: Sequence[Task] | None = None, suite: Suite | None = None
) -> list[str]:
    """What `run_config` would learn, with the same checks, and an estimate of scores and time; nothing is trained or written.

    Raises:
        StoreError: the folder holds a run already, or something else.
    """
    store = Store(Path(out))
    if store.exists:
        raise StoreError(f"'{out}' holds a run already: `perdure show {out}` says what it is. Choose a new folder.")
    config = absolute(config, store)
    check_sources(config, tasks, begun=False)
    method = build_method(config.method)
    check_protect(config, method)
    store.must_match({"config": config.model_dump(mode="json")})
    chosen, model, backbone, warnings = _load(config, method, store, tasks, suite, join())
    record = run_record(config, chosen, method, model, warnings, store, backbone, join())
    backbone.precision = record["precision"]
    lines = dry_lines(stages(chosen, method.stream), (), model, backbone, config, out)
    return [*begin_lines(record), *lines]


@contextmanager
def _writing(store: Store, processes: Processes) -> Iterator[None]:
    """The main process holds the store's lock; if another run holds it, every process gets the error."""
    with ExitStack() as held:
        processes.once(lambda: held.enter_context(store.writing()))
        yield


@contextmanager
def reporting(
    report: Reporter, tasks: Sequence[Task], method: Method, config: RunConfig, store: Store, lines: Sequence[str]
) -> Iterator[None]:
    """Report `lines`, which stages begin (adapters of `history`, for which nothing is trained, as finished), and a body that
    fails."""
    try:
        for line in lines:
            tell(report, line)
        names = [stage.name for stage in (*history_stages(config.history), *stages(tasks, method.stream))]
        report.begin(names, max(len(store.stages()), len(config.history)))
        yield
    except BaseException:
        report.end(None)
        raise


def report_end(report: Reporter, store: Store) -> Scores:
    """Report the scores of the finished run, and return them."""
    scores = read_scores(store.folder)
    report.end(scores)
    return scores


def resume(
    out: str | Path,
    *,
    tasks: Sequence[Task] = (),
    max_forgetting: float | None = None,
    max_drop: float | None = None,
    min_gain: float | None = None,
    report: Reporter | None = None,
) -> Scores:
    """Resume the run in `out` from its last checkpoint.

    Args:
        tasks: those that were given from Python.
        max_forgetting, max_drop, min_gain: see `learn`.

    Raises:
        StoreError: no run there, or its tasks were given from Python and are not given again.
    """
    gate = Gate(max_forgetting, max_drop, min_gain)
    store, tasks = Store(Path(out), accept=gate.accept), given_tasks(tasks)
    config = initial_config(store)
    if not store.changed:
        if not (tasks or config.suite is not None or config.tasks):
            raise StoreError(
                f"The tasks of '{out}' were given from Python. Call perdure.learn again with out='{out}' to resume."
            )
        return run_config(config, out, tasks=tasks or None, gate=gate, report=report)
    processes = join()
    report = as_reporter(report, processes.main)
    with _writing(store, processes):
        processes.once(store.verify)
        check_count(store, processes)
        run = processes.main_first(lambda: reopen(store, recorded_tasks(store, tasks)))
        if config.shard:
            run.model.shard(processes)
        with reporting(report, run.tasks, run.method, run.config, store, begin_lines(store.about)):
            run_sequence(run.tasks, run.method, run.model, run.backbone, run.config, store, report, processes)
    return report_end(report, store)

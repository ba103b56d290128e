"""One more task on a finished run, and back: `perdure add`, `perdure rollback`.

An added task is recorded in the manifest beside its stage, so one write of the manifest makes it happen: whatever interrupts an
add or a rollback, the run is either the old one or the new one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perdure.backbones.models import public_name
from perdure.commands.learn import OneTask, report_end, reporting
from perdure.commands.preview import dry_lines, preview_lines
from perdure.commands.run_record import versions
from perdure.commands.skipped import write_skipped
from perdure.config.for_stage import check_stage_settings
from perdure.errors import ConfigError, DataError, StoreError, UnknownName
from perdure.loop.adapter_history import check_names_apart
from perdure.loop.sequence import run_sequence
from perdure.methods.contract.build import check_stages
from perdure.methods.contract.own import sources
from perdure.state.gate import Gate
from perdure.state.mismatch import other_versions
from perdure.state.record import load_deployed, save_deployed, score_cells, score_tasks
from perdure.state.reopen import (
    Reopened,
    initial_config,
    known_tasks,
    recorded_tasks,
    reopen,
    reopened_model,
    task_record,
)
from perdure.state.scores import read_scores
from perdure.state.store import Store
from perdure.tasks.sources.files import load_task, task_spec
from perdure.tasks.splits import check_new_data, checked, repeated_from_older
from perdure.tasks.task import Stage, Task, given_tasks, same_task, stages, version
from perdure.training.checks import check_training
from perdure.training.coverage import coverage_line
from perdure.training.evaluation import check_scorable
from perdure.training.metrics import Scores
from perdure.training.processes import started
from perdure.training.reporter import Quiet, Reporter, as_reporter


def add(
    run: str | Path,
    task: OneTask,
    *,
    tasks: Sequence[Task] = (),
    max_forgetting: float | None = None,
    max_drop: float | None = None,
    min_gain: float | None = None,
    training: Mapping[str, Any] | None = None,
    report: Reporter | None = None,
) -> Scores:
    """Learn one more task on the finished run in the folder `run`, with its own method and settings.

    Adapters, state, deployed model and final scores are bit for bit those of a run that was given all tasks from the start. A
    task with the name of a known one and new data is learnt as its next version (`reviews@2`).

    Args:
        task: a task's YAML file or settings, or a task.
        tasks: the run's earlier tasks that were given from Python; they are scored again.
        max_forgetting, max_drop, min_gain: refuse the task if it breaks one of these bounds (perdure.state.gate.Gate).
        training: settings of `training` for this task alone, for example {"epochs": 6}; recorded with the stage.
        report: follows the progress.

    Raises:
        QualityGate: the task was refused; the run is unchanged.
        StoreError: the run is not finished. RunMismatch: its data or its base changed since.
        ConfigError: its method cannot grow. DataError: the task's data are wrong, or not new.
    """
    if started() > 1:
        raise ConfigError("Only a single process can add a task: run `perdure add` without a launcher.")
    report, tasks = as_reporter(report), given_tasks(tasks)
    store = Store(Path(run), accept=Gate(max_forgetting, max_drop, min_gain).accept)
    _check_grows(store)
    with store.writing():
        store.verify()
        opened, new, record = _opened(store, task, tasks, training)
        every, config = opened.tasks, opened.config
        lines = [coverage_line(store.about["adapted"])] if "adapted" in store.about else []
        lines += [f"Warning: {line}" for line in record["warnings"]]
        if type(report) is not Quiet:
            stage = [Stage(new.name, (new,))]
            lines += preview_lines(stage, opened.model, opened.backbone, config, store.folder, len(every) - 1)
        with reporting(report, every, opened.method, config, store, lines), store.transaction() as more:
            untrained = score_tasks([new], (), {}, opened.model, opened.backbone, config.evaluation, report)
            more["added"] = {**record, "untrained": score_cells(untrained)}
            run_sequence(every, opened.method, opened.model, opened.backbone, config, store, report)
        write_skipped(store.folder, [new])
    return report_end(report, store)


def _opened(
    store: Store, task: OneTask, tasks: Sequence[Task], training: Mapping[str, Any] | None
) -> tuple[Reopened, Task, dict[str, Any]]:
    """The run with one more task, that task, and what the manifest will record of it."""
    spec = None if isinstance(task, Task) else task_spec(task)
    new = _named(load_task(spec) if spec else checked(task), store)  # pyright: ignore[reportArgumentType]
    check_scorable(new, initial_config(store).evaluation.split)
    earlier = recorded_tasks(store, tasks)
    check_new_data(new, earlier)
    every = (*earlier, new)
    by_task = {new.name: dict(training or {})}
    config = initial_config(store).model_copy(update={"training_by_task": by_task})
    check_stage_settings(config, [Stage(new.name, (new,))])
    opened = reopen(store, every)
    check_stages(opened.method, stages(every))
    check_training(config, [Stage(new.name, (new,))], opened.model.device)
    check_names_apart(store.about.get("history", {}), [new])
    now = {"versions": versions(), "own_parts": sources(opened.method)}
    record = {
        "task": spec.model_copy(update={"name": new.name}).model_dump(mode="json") if spec else None,
        **task_record([new]),
        "training": dict(training or {}),
        "warnings": [
            *(f"{new.name}: {note}" for note in new.notes),
            *(line for line in repeated_from_older(every) if line.startswith(f"{new.name}: ")),
            *_other_labels(new, store),
            *(f"{new.name}: {line}" for line in other_versions(store.initial, now)),
        ],
    }
    return dataclasses.replace(opened, config=config), new, record


def preview_add(run: str | Path, task: OneTask, *, training: Mapping[str, Any] | None = None) -> list[str]:
    """What `add` would learn, with the same checks, and an estimate of score and time; nothing is trained or written.

    Errors as in `add`.
    """
    store = Store(Path(run))
    _check_grows(store)
    store.verify()
    opened, new, record = _opened(store, task, (), training)
    known = [one for one in opened.tasks if one is not new]
    lines = dry_lines([Stage(new.name, (new,))], known, opened.model, opened.backbone, opened.config, store.folder)
    return [*(f"Warning: {line}" for line in record["warnings"]), *lines]


def rollback(run: str | Path, to: str, *, tasks: Sequence[Task] = ()) -> Scores:
    """Return the run in the folder `run` to its state after the task `to`; later stages are moved to `aside/`.

    `deployed/` gets the bits it had then. Adding the same task again gives the same bits as before.

    Args:
        tasks: as in `add`; only models that answer from training examples (vision) need them.

    Raises:
        UnknownName: no finished stage of that name. StoreError: the run learnt everything in one stage.
    """
    store, tasks = Store(Path(run)), given_tasks(tasks)
    store.about  # noqa: B018  (raises without a run, before a lock is made)
    with store.writing():
        store.verify()
        about, learnt = store.about, store.stages()
        if learnt == ["joint"]:
            raise StoreError(f"The run in '{run}' learnt all its tasks in one stage: there is nothing to go back to.")
        if to not in learnt or to not in about["tasks"]:
            raise UnknownName(f"learnt task of '{run}'", to, [name for name in learnt if name in about["tasks"]])
        keep = learnt.index(to) + 1
        kept = [name for name in about["tasks"] if name in learnt[:keep]]
        with store.transaction():
            store.truncate(keep + 1, kept)
            # `deployed/` as the run of the first `keep` stages wrote it
            model, backbone = reopened_model(store)
            given = [task for task in tasks if task.name in kept]
            backbone.prepare(known_tasks(store, backbone, kept, given))  # a tokenizer is saved as it was last used
            base = public_name(store.about["config"]["backbone"]["model"])
            rank = initial_config(store).deploy.rank
            save_deployed(store, load_deployed(store, keep), model, backbone, base, rank=rank)
    return read_scores(run)


def _check_grows(store: Store) -> None:
    about = store.about
    if about["config"]["method"]["stream"] == "joint":
        raise ConfigError(
            f"The run in '{store.folder}' trains on all tasks together ({about['config']['method']['name']}): another task "
            "would mean training on all of them again. Start a new run with all tasks, or use a method that learns one by one."
        )
    if not store.finished:
        learnt = len([name for name in store.stages() if name in about["tasks"]])
        ends = f", or end it with `perdure rollback {store.folder} --to {store.stages()[-1]}`" if learnt else ""
        raise StoreError(
            f"The run in '{store.folder}' is not finished ({learnt} of {len(about['tasks'])} tasks learnt). Continue it with "
            f"`perdure resume {store.folder}`{ends}; then add."
        )


def _named(task: Task, store: Store) -> Task:
    """The task under the name of its stage: new data of a known task are its next version."""
    known: dict[str, str] = store.about["tasks"]
    versions = [name for name in known if same_task(name, task.name)]
    for name in versions:
        if dataclasses.replace(task, name=name).fingerprint() == known[name]:
            raise DataError(
                f"'{task.name}' is already learnt: '{store.folder}' learnt '{name}' from the same data. Nothing was added."
            )
    plain, number = version(task.name)
    if task.name not in known and (number > 1 or not versions):
        return task
    if number > 1:
        raise DataError(
            f"'{task.name}' is already learnt, from other data. Call the task '{plain}' to add another version."
        )
    return dataclasses.replace(task, name=f"{plain}@{max(version(name)[1] for name in versions) + 1}")


def _other_labels(new: Task, store: Store) -> list[str]:
    """A warning if a new version's labels, which `perdure predict` will use, differ from the previous version's."""
    asked = store.about.get("asked", {})
    before = max((name for name in asked if same_task(name, new.name)), key=lambda name: version(name)[1], default=None)
    if before is None or set(asked[before]["labels"]) == set(new.labels):
        return []
    more = [repr(label) for label in new.labels if label not in asked[before]["labels"]]
    fewer = [repr(label) for label in asked[before]["labels"] if label not in new.labels]
    differs = [f"{what} {', '.join(labels)}" for what, labels in (("new:", more), ("gone:", fewer)) if labels]
    plain = version(new.name)[0]
    return [
        f"{new.name}: other labels than {before} ({'; '.join(differs)}); `--task {plain}` chooses among those of {new.name}, "
        f"`--task {plain}@{version(before)[1]}` among the old ones"
    ]

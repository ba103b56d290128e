"""One more task on a finished run, and back: `perdure add`, `perdure rollback`.

What is added stands in the manifest beside its stage, so that one write of the manifest makes it happen: whatever interrupts an
add or a rollback, the run is the old one or the new one, whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perdure.backbones.models import public_name
from perdure.commands.learn import reporting, told, versions
from perdure.errors import ConfigError, DataError, StoreError, UnknownName
from perdure.loop.adapter_history import check_names_apart
from perdure.loop.sequence import run_sequence
from perdure.methods.contract.build import check_stages
from perdure.methods.contract.own import sources
from perdure.state.gate import forgetting_gate
from perdure.state.mismatch import other_versions
from perdure.state.record import load_deployed, save_deployed
from perdure.state.reopen import known_tasks, recorded_tasks, reopen, reopened_model, task_record
from perdure.state.scores import read_scores
from perdure.state.store import Store
from perdure.tasks.sources.files import load_task, task_spec
from perdure.tasks.spec import TaskSpec
from perdure.tasks.splits import checked, repeated_from_older
from perdure.tasks.task import Task, given_tasks, same_task, stages, version
from perdure.training.evaluation import check_metric, check_scored
from perdure.training.metrics import Scores
from perdure.training.processes import started
from perdure.training.reporter import Reporter, as_reporter


def add(
    run: str | Path,
    task: str | Path | TaskSpec | Mapping[str, Any] | Task,
    *,
    tasks: Sequence[Task] = (),
    max_forgetting: float | None = None,
    report: Reporter | None = None,
) -> Scores:
    """Learn one more task on the finished run in the folder `run`, with its own method and settings.

    Adapters, state, deployed model and final scores are those of a run that learnt all tasks at once, to the bit. A task of
    a name that the run knows, with new data, is learnt as its next version (`reviews@2`).

    Args:
        task: a task's YAML file or settings, or a task.
        tasks: the run's earlier tasks that were given from Python; they are scored again.
        max_forgetting: refuse the task if one learnt before scores so many points less than at its best.
        report: who is told about progress.

    Raises:
        QualityGate: the task was refused; the run is unchanged.
        StoreError: the run is not finished; RunMismatch: its data or its base changed since.
        ConfigError: its method cannot grow; DataError: the task's data are wrong, or not new.
    """
    if started() > 1:
        raise ConfigError("A task is added by one process: run `perdure add` without a launcher.")
    report, tasks = as_reporter(report), given_tasks(tasks)
    store = Store(Path(run), accept=forgetting_gate(max_forgetting))
    _check_grows(store)
    with store.writing():
        store.verify()
        spec = None if isinstance(task, Task) else task_spec(task)
        new = _named(load_task(spec) if spec else checked(task), store)  # pyright: ignore[reportArgumentType]
        check_metric(new)
        every = (*recorded_tasks(store, tasks), new)
        opened = reopen(store, every)
        check_scored(new, opened.config.evaluation.split)
        check_stages(opened.method, stages(every))
        check_names_apart(store.about.get("history", {}), [new])
        now = {"versions": versions(), "own_parts": sources(opened.method)}
        record = {
            "task": spec.model_copy(update={"name": new.name}).model_dump(mode="json") if spec else None,
            **task_record([new]),
            "warnings": [
                *(f"{new.name}: {note}" for note in new.notes),
                *_repeated(every),
                *_other_labels(new, store),
                *(f"{new.name}: {line}" for line in other_versions(store.begun, now)),
            ],
        }
        with (
            reporting(report, every, opened.method, opened.config, store),
            store.transaction() as more,
        ):
            more["added"] = record
            run_sequence(every, opened.method, opened.model, opened.backbone, opened.config, store, report)
    return told(report, store)


def rollback(run: str | Path, to: str, *, tasks: Sequence[Task] = ()) -> Scores:
    """Take the run in the folder `run` back to its state after the task `to`; what came later is moved to `aside/`.

    `deployed/` has the bits it had then. Adding the same task again gives the same bits as before.

    Args:
        tasks: as in `add`; only models that answer from training examples (vision) need them.

    Raises:
        UnknownName: no finished stage of that name. StoreError: the run learnt everything in one stage.
    """
    store, tasks = Store(Path(run)), given_tasks(tasks)
    store.about  # noqa: B018  (no run there: said before a lock is made)
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
            _deploy(store, keep, kept, tasks)
    return read_scores(run)


def _deploy(store: Store, stage: int, kept: Sequence[str], given: Sequence[Task]) -> None:
    """Write `deployed/` as the run of the first `stage` stages wrote it."""
    about = store.about
    model, backbone = reopened_model(store)
    given = [task for task in given if task.name in kept]
    # a tokenizer is saved as it was last used
    backbone.prepare(known_tasks(store, backbone, kept, given))
    base = public_name(about["config"]["backbone"]["model"])
    save_deployed(store, load_deployed(store, stage), model, backbone, base)


def _check_grows(store: Store) -> None:
    about = store.about
    if about["config"]["method"]["stream"] == "joint":
        raise ConfigError(
            f"The run in '{store.folder}' trains on all tasks mixed ({about['config']['method']['name']}): a further task "
            "means training on all of them again. Run it anew with all tasks, or use a method that learns one by one."
        )
    if not store.finished:
        learnt = len([name for name in store.stages() if name in about["tasks"]])
        ends = f", or end it with `perdure rollback {store.folder} --to {store.stages()[-1]}`" if learnt else ""
        raise StoreError(
            f"The run in '{store.folder}' is not finished ({learnt} of {len(about['tasks'])} tasks learnt). Go on with "
            f"`perdure resume {store.folder}`{ends}; then add."
        )


def _named(task: Task, store: Store) -> Task:
    """The task under the name of its stage: a known task with new data is its next version.

    Raises:
        DataError: the data are those that a version was learnt from, or the version is learnt already.
    """
    known: dict[str, str] = store.about["tasks"]
    versions = [name for name in known if same_task(name, task.name)]
    for name in versions:
        if dataclasses.replace(task, name=name).fingerprint() == known[name]:
            raise DataError(
                f"'{task.name}' is learnt already: '{store.folder}' learnt '{name}' from the same data. Nothing was added."
            )
    plain, number = version(task.name)
    if task.name not in known and (number > 1 or not versions):
        return task
    if number > 1:
        raise DataError(
            f"'{task.name}' is learnt already, from other data. Call the task '{plain}' to add a further version."
        )
    return dataclasses.replace(task, name=f"{plain}@{max(version(name)[1] for name in versions) + 1}")


def _other_labels(new: Task, store: Store) -> list[str]:
    """That a new version of a task has other labels than the one before it, by which `perdure predict` then answers."""
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


def _repeated(every: Sequence[Task]) -> list[str]:
    """What `repeated_from_older` says about the last task."""
    return [line for line in repeated_from_older(every) if line.startswith(f"{every[-1].name}: ")]

"""General ability before and after: how a finished run's language model does on tasks it was never taught here.

    general performance       mean score of the tasks without examples in the prompt     (SLICE's GP, arXiv 2605.12752)
    in-context performance    mean score of the same tasks with examples in the prompt   (SLICE's IP)

`offline_rows` needs package files only (the suite `ability`); `harness_rows` uses lm-evaluation-harness. A text's
1 / perplexity, or another score of the harness that is not a share of right answers, is a row of its own and in neither mean.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from perdure.backbones import backbone_kind
from perdure.backbones.base import Backbone
from perdure.backbones.language import LanguageModel
from perdure.commands.learn import load_learner
from perdure.config.run_config import RunConfig, load_config
from perdure.errors import ConfigError, StoreError
from perdure.methods.contract.build import build_method
from perdure.methods.contract.past import PerTask
from perdure.ops.lowrank import Update
from perdure.state.record import load_past
from perdure.state.reopen import check_base, learner_config
from perdure.state.store import Store
from perdure.studies.harness import Harness
from perdure.tasks.few_shot import with_shots
from perdure.tasks.suites import describe, load_suite
from perdure.tasks.task import INVERSE_PERPLEXITY, Task
from perdure.training.evaluation import score
from perdure.training.lora import AdaptedModel

LENGTH = 768
"""Tokens to which prompts are cut if the run's `max_length` is shorter: examples make them long.

A model with fewer positions keeps the run's.
"""


@dataclass(frozen=True)
class AskedTask:
    """One task with one number of examples in the prompt, scored on the untouched base and on what the run deploys.

    Args:
        is_share: whether the score is a share of right answers; if not, it is shown as it is and is in no mean.
    """

    task: str
    shots: int
    metric: str
    before: float
    after: float
    examples: int
    is_share: bool = True


@dataclass(frozen=True)
class Ability:
    """The rows, and their means before and after.

    Args:
        left_out: tasks that the run itself learnt.
    """

    method: str
    model: str
    stages: Sequence[str]
    rows: Sequence[AskedTask]
    left_out: Sequence[str] = ()

    def mean(self, few_shot: bool) -> tuple[float, float] | None:
        """(before, after) over the tasks with, or without, examples in the prompt; None if there is none."""
        asked = [r for r in self.rows if (r.shots > 0) == few_shot and r.is_share]
        if not asked:
            return None
        return statistics.mean(row.before for row in asked), statistics.mean(row.after for row in asked)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        means = {"general_performance": self.mean(few_shot=False), "in_context_performance": self.mean(few_shot=True)}
        return {**asdict(self), **means}

    def as_markdown(self) -> str:
        """Rows and means in points; for texts the perplexity; other scores as they are."""
        lines = ["| task | examples in the prompt | before | after |", "|---|---|---|---|"]
        for row in self.rows:
            if row.metric == INVERSE_PERPLEXITY:
                lines.append(f"| {row.task}, perplexity | - | {1 / row.before:.2f} | {1 / row.after:.2f} |")
            else:
                before, after = (f"{100 * v:.1f}" if row.is_share else f"{v:.4g}" for v in (row.before, row.after))
                lines.append(f"| {row.task}, {row.metric} | {row.shots} | {before} | {after} |")
        for name, few_shot in (("general performance", False), ("in-context performance", True)):
            if mean := self.mean(few_shot):
                shots = "some" if few_shot else 0
                lines.append(f"| **{name}** | {shots} | {100 * mean[0]:.1f} | {100 * mean[1]:.1f} |")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Finished:
    """A finished run's model with the update it deploys. Use `open_finished`."""

    config: RunConfig
    stages: Sequence[str]
    model: AdaptedModel
    backbone: LanguageModel
    deployed: Update

    def before_and_after(self, measure: Callable[[], Any]) -> tuple[Any, Any]:
        """`measure()` of the untouched base, and of what the run deploys."""
        with self.model.deployed({}):
            before = measure()
        with self.model.deployed(self.deployed):
            return before, measure()


def open_finished(
    folder: Path, tasks: Sequence[Task], task: str | None = None, load: Callable[..., Any] = load_learner
) -> Finished:
    """The model of the run in `folder`, prepared for `tasks`.

    Args:
        task: whose update, if the run deploys one for each task.

    Raises:
        StoreError: no run there, it is damaged, or it has no finished stage.
        RunMismatch: the base model has changed since.
        ConfigError: not a language model; `task` missing where it is needed, or given where it is not.
    """
    store = Store(folder)
    about, stages = store.about, store.stages()
    if not stages:
        raise StoreError(f"No stage of the run in '{folder}' is finished; continue it with `perdure resume {folder}`.")
    store.verify()
    config = learner_config(store)
    if (kind := backbone_kind(config.backbone)) not in ("causal", "seq2seq"):
        raise ConfigError(f"'{folder}' has a model of kind {kind}; general ability needs a language model.")
    deployed = _chosen_update(load_past(store, build_method(config.method)).deployed, task)
    longer = {**config.backbone, "max_length": max(LENGTH, int(config.backbone.get("max_length", 0)))}
    try:
        model, backbone = load(config.model_copy(update={"backbone": longer}), tasks)
    except ConfigError:  # too long for the model's positions, or for its window if ranking=packed: use the run's length
        model, backbone = load(config, tasks)
    check_base(store, model)
    backbone.precision = about["precision"]
    return Finished(config, stages, model, backbone, deployed)


def _chosen_update(deployed: Update | PerTask, task: str | None) -> Update:
    """The update that is deployed, for `task` if there is one for each."""
    if not isinstance(deployed, PerTask):
        if task is not None:
            raise ConfigError("This run deploys one update for all tasks; leave --task out.")
        return deployed
    if task is None or task not in deployed.updates:
        raise ConfigError(
            f"This run deploys an update for each task; choose one with --task: {', '.join(deployed.updates)}."
        )
    return deployed.updates[task]


def offline_tasks(
    config: RunConfig, examples: int | None = None, added: Iterable[Mapping[str, Any] | None] = ()
) -> tuple[list[Task], list[str]]:
    """The tasks of the suite `ability`, and the names of those left out because the run learns from the same data.

    Data is the same if it is read from the same package file: by the run's suite, its own tasks, or those `added` later (their
    settings, None for one given from Python). The origin of your own data files is unknown.
    """
    every = describe("ability")["tasks"]
    suite = describe(config.suite)["tasks"].values() if config.suite else ()
    learnt = [task.get("source") or task.get("package") for task in suite]
    learnt += [*(task.package for task in config.tasks), *(task.get("package") for task in added if task)]
    names = [name for name, task in every.items() if task["source"] not in learnt]
    left_out = [name for name in every if name not in names]
    return list(load_suite("ability", order=names, test=examples).tasks) if names else [], left_out


def offline_rows(run: Finished, tasks: Sequence[Task], shots: Sequence[int]) -> list[AskedTask]:
    """Every task with each number of examples in its prompt; texts once."""
    asked = [(with_shots(task, k), k) for task in tasks for k in shots if k == shots[0] or not task.learns_text]
    scores = run.before_and_after(lambda: [_score(run.backbone, task) for task, _ in asked])
    rows = []
    for (task, k), before, after in zip(asked, *scores, strict=True):
        k, is_share = (0, False) if task.learns_text else (k, True)
        rows.append(AskedTask(task.name, k, task.metric, before, after, len(task.test), is_share))
    return rows


def harness_rows(run: Finished, asked: Harness, shots: Sequence[int], examples: int | None) -> list[AskedTask]:
    """The same for tasks of lm-evaluation-harness (`perdure.studies.harness`).

    `shots` of a row is the number the harness reports; a task with a fixed prompt is one row.
    """
    rows = dict[tuple[str, int], AskedTask]()
    for k in shots:
        scores = run.before_and_after(lambda k=k: asked.scores(run.backbone, k, examples))
        for name, before in scores[0].items():
            after, used = scores[1][name], before.shots
            share = before.is_share and after.is_share
            row = AskedTask(name, used, before.metric, before.value, after.value, before.examples, share)
            rows.setdefault((name, used), row)
    return list(rows.values())


def _score(backbone: Backbone, task: Task) -> float:
    backbone.prepare([task])  # replaces the task of that name with another prompt
    return score(task, task.test, backbone.predict(task.test, [task.name])) or 0.0


def general_ability(
    folder: str | Path,
    *,
    shots: Sequence[int] = (0, 5),
    examples: int | None = None,
    task: str | None = None,
    harness: Sequence[str] = (),
    include: str | Path | None = None,
) -> Ability:
    """General ability of the finished run in `folder`.

    Args:
        shots: numbers of examples in the prompt; each task is scored with each of them.
        examples: at most so many of each task; None: the suite's number (with the harness: all).
        task: whose update, if the run deploys one for each task.
        harness: tasks of lm-evaluation-harness instead of the offline set.
        include: a folder with custom harness tasks.

    Raises:
        ConfigError: fewer than 0 examples in a prompt, or `include` without `harness`.
        StoreError, ConfigError, FetchError: see `open_finished`, `load_suite` and `perdure.studies.harness`.
    """
    if min(shots, default=0) < 0:
        raise ConfigError(f"--shots {min(shots)}: a prompt holds 0 examples or more.")
    if include is not None and not harness:
        raise ConfigError(
            "--include is the folder of tasks for --harness; name one with --harness, or leave --include out."
        )
    tasks: list[Task] = []
    left_out: list[str] = []
    asked = Harness.open(harness, include) if harness else None  # fails before a model is loaded
    if asked is None:
        about = Store(Path(folder)).about
        tasks, left_out = offline_tasks(load_config(about["config"]), examples, about["added"].values())
        if not tasks:
            raise ConfigError(
                "The run learnt from every set of the suite `ability`; use lm-evaluation-harness (--harness)."
            )
    run = open_finished(Path(folder), tasks, task)
    rows = harness_rows(run, asked, shots, examples) if asked else offline_rows(run, tasks, shots)
    return Ability(run.config.method_name, str(run.config.backbone["model"]), run.stages, rows, left_out)

"""General ability before and after: what a finished run's language model can do that it was never taught here.

    general performance       mean score of the tasks asked without examples          (SLICE's GP, arXiv 2605.12752)
    in-context performance    mean score of the same tasks with examples in the prompt  (SLICE's IP)

`offline_rows` needs package files only (the suite `ability`); `harness_rows` asks lm-evaluation-harness. A text's
1 / perplexity, or another score of the harness that is no share of right answers, is a row of its own and in neither mean.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from perdure.state.reopen import check_base
from perdure.state.store import Store
from perdure.studies.harness import Harness, HarnessScore
from perdure.tasks.few_shot import with_shots
from perdure.tasks.suites import describe, load_suite
from perdure.tasks.task import INVERSE_PERPLEXITY, Task
from perdure.training.evaluation import score
from perdure.training.lora import AdaptedModel

LENGTH = 768
"""Prompts with examples are longer than a run's own: cut to this many tokens, whatever the run's `max_length`.

A model with fewer positions is asked at the run's.
"""

LANGUAGE_KINDS = ("causal", "seq2seq")


@dataclass(frozen=True)
class AskedTask:
    """One task, asked in one way, by the untouched base and by what the run deploys.

    Args:
        is_share: of right answers; what is not is shown as it is, and in no mean.
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
        left_out: tasks that the run itself has learnt.
    """

    method: str
    model: str
    stages: Sequence[str]
    rows: Sequence[AskedTask]
    left_out: Sequence[str] = ()

    def mean(self, few_shot: bool) -> tuple[float, float] | None:
        """(before, after) over the tasks asked with, or without, examples; None where there is none."""
        asked = [r for r in self.rows if (r.shots > 0) == few_shot and r.is_share]
        if not asked:
            return None
        return statistics.mean(row.before for row in asked), statistics.mean(row.after for row in asked)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        means = {"general_performance": self.mean(few_shot=False), "in_context_performance": self.mean(few_shot=True)}
        return {**asdict(self), **means}

    def as_markdown(self) -> str:
        """Rows in points, and the means; of texts the perplexity, and other scores as they are."""
        lines = ["| task | examples in the prompt | before | after |", "|---|---|---|---|"]
        for row in self.rows:
            if row.metric == INVERSE_PERPLEXITY:
                lines.append(f"| {row.task}, perplexity | - | {1 / row.before:.2f} | {1 / row.after:.2f} |")
            else:
                before, after = (f"{100 * v:.1f}" if row.is_share else f"{v:.4g}" for v in (row.before, row.after))
                lines.append(f"| {row.task}, {row.metric} | {row.shots} | {before} | {after} |")
        for name, few_shot in (("general performance", False), ("in-context performance", True)):
            if (mean := self.mean(few_shot)) is not None:
                lines.append(
                    f"| **{name}** | {'some' if few_shot else 0} | {100 * mean[0]:.1f} | {100 * mean[1]:.1f} |"
                )
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Finished:
    """A finished run's model with the update it deploys. Use `open_finished`."""

    config: RunConfig
    stages: Sequence[str]
    model: AdaptedModel
    backbone: LanguageModel
    deployed: Update

    @contextmanager
    def holding(self, after: bool) -> Iterator[None]:
        """Within: the untouched base answers, or what the run deploys."""
        with self.model.deployed(self.deployed if after else {}):
            yield

    def ability(self, rows: Sequence[AskedTask], left_out: Sequence[str] = ()) -> Ability:
        """The rows with what they are of."""
        return Ability(self.config.method_name, str(self.config.backbone["model"]), self.stages, rows, left_out)


def open_finished(
    folder: Path, tasks: Sequence[Task], task: str | None = None, load: Callable[..., Any] = load_learner
) -> Finished:
    """The model of the run in `folder`, which knows `tasks`.

    Args:
        task: whose update, of a run that deploys one for each task.

    Raises:
        StoreError: no run there, it is damaged, or no stage of it is finished.
        RunMismatch: the base model changed since.
        ConfigError: it is no language model, or it is not said which update, or it is and there is one only.
    """
    store = Store(folder)
    about, stages = store.about, store.stages()
    if not stages:
        raise StoreError(f"No stage of the run in '{folder}' is finished; go on with `perdure resume {folder}`.")
    store.verify()
    config = load_config(about["config"])
    if (kind := backbone_kind(config.backbone)) not in LANGUAGE_KINDS:
        raise _no_language(folder, kind)
    deployed = _asked_of(load_past(store, build_method(config.method)).deployed, task)
    longer = {**config.backbone, "max_length": max(LENGTH, int(config.backbone.get("max_length", 0)))}
    try:
        model, backbone = load(config.model_copy(update={"backbone": longer}), tasks)
    except ConfigError:  # too long for its positions, or for its window where ranking=packed: then as it was trained
        model, backbone = load(config, tasks)
    check_base(store, model)
    if not isinstance(backbone, LanguageModel):
        raise _no_language(folder, type(backbone).__name__.lower())
    backbone.precision = about["precision"]
    return Finished(config, stages, model, backbone, deployed)


def _asked_of(deployed: Update | PerTask, task: str | None) -> Update:
    """The one update that answers."""
    if not isinstance(deployed, PerTask):
        if task is not None:
            raise ConfigError("This run deploys one update for all tasks; leave --task out.")
        return deployed
    if task is None or task not in deployed.updates:
        raise ConfigError(
            f"This run deploys an update for each task; say which with --task: {', '.join(deployed.updates)}."
        )
    return deployed.updates[task]


def _no_language(folder: Path, kind: str) -> ConfigError:
    return ConfigError(f"'{folder}' learnt with a model of kind {kind}; general ability is asked of language models.")


def offline_tasks(
    config: RunConfig, examples: int | None = None, added: Iterable[Mapping[str, Any] | None] = ()
) -> tuple[list[Task], list[str]]:
    """The tasks of the suite `ability`, and the names of those left out since the run learns from the same data.

    Told by the package file and what is read of it: in the run's suite, in tasks of its own, and in those `added` to it
    (their settings, None for one given from Python). Data files of one's own say nothing about where they come from.
    """
    about = describe("ability")
    suite = describe(config.suite)["tasks"].values() if config.suite else ()
    own = [*(task.package for task in config.tasks), *(task.get("package") for task in added if task)]
    learnt = [*(task.get("source") or task.get("package") for task in suite), *own]
    names = [name for name, task in about["tasks"].items() if task["source"] not in learnt]
    if not names:
        return [], list(about["tasks"])
    suite = load_suite("ability", order=names, test=examples)
    return list(suite.tasks), [name for name in about["tasks"] if name not in names]


def offline_rows(run: Finished, tasks: Sequence[Task], shots: Sequence[int]) -> list[AskedTask]:
    """Every task asked with each number of examples in its prompt; texts once."""
    asked = [(with_shots(task, k), k) for task in tasks for k in shots if k == shots[0] or not task.learns_text]
    scores: dict[bool, list[float]] = {}
    for after in (False, True):
        with run.holding(after):
            scores[after] = [_score(run.backbone, task) for task, _ in asked]
    return [
        AskedTask(
            task.name, 0 if task.learns_text else k, task.metric, before, after, len(task.test), not task.learns_text
        )
        for (task, k), before, after in zip(asked, scores[False], scores[True], strict=True)
    ]


def harness_rows(run: Finished, asked: Harness, shots: Sequence[int], examples: int | None) -> list[AskedTask]:
    """The same for tasks of lm-evaluation-harness (`perdure.studies.harness`).

    A row has the number of examples that the harness says were in the prompt; a task that is always asked alike is one row.
    """
    rows = dict[tuple[str, int], AskedTask]()
    for k in shots:
        found: list[Mapping[str, HarnessScore]] = []
        for after in (False, True):
            with run.holding(after):
                found.append(asked.scores(run.backbone, k, examples))
        before, later = found
        for name, one in before.items():
            other, is_share = later[name], one.is_share and later[name].is_share
            row = AskedTask(name, one.shots, one.metric, one.value, other.value, one.examples, is_share)
            rows.setdefault((name, one.shots), row)
    return list(rows.values())


def _score(backbone: Backbone, task: Task) -> float:
    backbone.prepare([task])  # the same name with another prompt: the last one counts
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
        shots: with how many examples in the prompt each task is asked.
        examples: of each task at most; None = as the suite says (with the harness: all).
        harness: tasks of lm-evaluation-harness instead of the offline set.
        include: a folder with harness tasks of your own.

    Raises:
        ConfigError: fewer than 0 examples in a prompt, or `include` without `harness`.
        StoreError, ConfigError, FetchError: see `open_finished`, `load_suite` and `perdure.studies.harness`.
    """
    if min(shots, default=0) < 0:
        raise ConfigError(f"--shots {min(shots)}: a prompt holds 0 examples or more.")
    if include is not None and not harness:
        raise ConfigError("--include says where tasks for --harness lie; name one with --harness, or leave it out.")
    if harness:
        asked = Harness.open(harness, include)  # what it cannot ask is said before a model is loaded
        run = open_finished(Path(folder), [], task)
        return run.ability(harness_rows(run, asked, shots, examples))
    about = Store(Path(folder)).about
    tasks, left_out = offline_tasks(load_config(about["config"]), examples, about["added"].values())
    if not tasks:
        raise ConfigError(
            "The run has learnt from every set of the suite `ability`; ask lm-evaluation-harness (--harness)."
        )
    run = open_finished(Path(folder), tasks, task)
    return run.ability(offline_rows(run, tasks, shots), left_out)

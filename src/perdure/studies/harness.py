"""General ability by lm-evaluation-harness (extra `lm-eval`): any of its tasks, before and after a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from perdure.errors import ConfigError

if TYPE_CHECKING:
    from perdure.backbones.language import LanguageModel

METRICS = ("acc_norm", "acc", "exact_match", "rougeL", "f1", "mcq_accuracy")
"""Shares of right answers. A task's score is the first of these it has, otherwise its first one."""


class HarnessScore(NamedTuple):
    """The score of one harness task, the number of examples scored, and `shots`, the number in the prompt.

    `metric` is the harness's name, with the filter of the answers if there is one: 'exact_match,strict-match'.
    """

    metric: str
    value: float
    examples: int
    shots: int

    @property
    def is_share(self) -> bool:
        """Whether the score is a share of right answers, unlike a perplexity, or a BLEU or F1 from 0 to 100."""
        return self.metric.partition(",")[0] in METRICS and self.value <= 1


@dataclass(frozen=True)
class Harness:
    """Some tasks of the harness, looked up once: it reads thousands of files to know their names."""

    tasks: tuple[str, ...]
    _manager: Any

    @classmethod
    def open(cls, tasks: Sequence[str], include: str | Path | None = None) -> Harness:
        """The harness with these tasks.

        Args:
            tasks: names of the harness, such as hellaswag, commonsense_qa, bbh_fewshot_object_counting.
            include: a folder with custom harness tasks.

        Raises:
            ConfigError: the harness is not installed, or does not know a task.
        """
        try:
            from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ConfigError(
                f"--harness needs lm-evaluation-harness ({error}). Install it: pip install 'perdure[lm-eval]'. Or leave "
                "--harness out, which evaluates a small offline set."
            ) from error
        manager = TaskManager(include_path=None if include is None else str(include))
        if unknown := [name for name in tasks if name not in manager.all_tasks]:
            raise ConfigError(
                f"lm-evaluation-harness has no task {', '.join(unknown)}; see `lm_eval ls tasks`, or give --include."
            )
        return cls(tuple(tasks), manager)

    def scores(self, backbone: LanguageModel, shots: int, examples: int | None = None) -> dict[str, HarnessScore]:
        """Each task's main score with the backbone's current model; for groups see `counted_once`.

        Args:
            shots: examples in the prompt; a task whose own file says 0 has none.
            examples: at most so many of each task, the first ones.

        Raises:
            ConfigError: a task's data cannot be loaded.
        """
        import lm_eval  # pyright: ignore[reportMissingImports]
        from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

        wrapped: Any = HFLM(
            pretrained=backbone.model,
            tokenizer=backbone.tokenizer,
            batch_size=backbone.settings.predict_batch_size,
        )
        try:
            evaluated: Any = lm_eval.simple_evaluate(
                model=wrapped, tasks=list(self.tasks), num_fewshot=shots, limit=examples, bootstrap_iters=0,
                task_manager=self._manager,
            )  # fmt: skip
        # data comes from the hub: `datasets` raises ValueError for an unknown configuration, RuntimeError for a script
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"lm-evaluation-harness could not evaluate {', '.join(self.tasks)}; most often their data is missing: {error}"
            ) from error
        return counted_once(evaluated, self.tasks, shots)


def counted_once(evaluated: Mapping[str, Any], asked: Sequence[str], shots: int) -> dict[str, HarnessScore]:
    """Name -> score from the harness's results, which list a group and its subtasks; every task counts once.

    A group is one row if it has a score of its own and its tasks had the same number of examples in the prompt; otherwise its
    subtasks are rows.

    Args:
        evaluated: the result of `simple_evaluate`.
        asked: the names given: tasks, groups or tags. A task asked by name is a row besides its group.
        shots: examples in the prompt, for tasks of which the harness does not report it.

    Raises:
        ConfigError: a task without a score.
    """
    results, given, counts = evaluated["results"], evaluated.get("n-shot", {}), evaluated.get("n-samples", {})
    subtasks = {name: below for name, below in evaluated.get("group_subtasks", {}).items() if below}
    rows: dict[str, HarnessScore] = {}

    def tasks_of(name: str) -> set[str]:
        return set().union(*map(tasks_of, subtasks[name])) if name in subtasks else {name}

    def add_row(name: str) -> None:
        tasks = tasks_of(name)
        prompts = {int(given.get(task, shots)) for task in tasks}
        if name in subtasks and (len(prompts) > 1 or not known_scores(results.get(name, {}))):
            for below in subtasks[name]:
                add_row(below)
            return
        examples = sum(int(counts.get(task, {}).get("effective", 0)) for task in tasks)
        rows[name] = HarnessScore(*main_score(results[name]), examples, prompts.pop())

    inner = {below for some in subtasks.values() for below in some}
    for name in dict.fromkeys([*results, *subtasks]):
        if name in asked or name not in inner:
            add_row(name)
    return rows


def main_score(scores: Mapping[str, Any]) -> tuple[str, float]:
    """(metric, value) of one task's scores; the first of several filters of a metric."""
    known = known_scores(scores)
    if not known:
        raise ConfigError(f"lm-evaluation-harness gave no score among {', '.join(scores)}.")
    ranked = [score for metric in METRICS for score in known.items() if score[0].partition(",")[0] == metric]
    return ranked[0] if ranked else next(iter(known.items()))


def known_scores(scores: Mapping[str, Any]) -> dict[str, float]:
    """Metric -> value, under the harness's name 'metric,filter'; empty for a group without a score of its own."""
    return {
        key.removesuffix(",none"): value
        for key, value in scores.items()
        if isinstance(value, float) and "stderr" not in key
    }

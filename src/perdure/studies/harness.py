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
"""Which score of a task counts: the first of these it has, else its first one. These are shares of right answers."""


class HarnessScore(NamedTuple):
    """What one of its tasks scored, on how many examples, and with how many in the prompt (the harness' own word).

    `metric` is the harness' name, with the filter of the answers where there is one: 'exact_match,strict-match'.
    """

    metric: str
    value: float
    examples: int
    shots: int

    @property
    def is_share(self) -> bool:
        """Whether the score is a share of right answers, unlike a perplexity, or a BLEU or F1 from 0 to 100."""
        return _rank(self.metric) < len(METRICS) and self.value <= 1


@dataclass(frozen=True)
class Harness:
    """Some of its tasks, looked up once: the harness reads thousands of files to know their names."""

    tasks: tuple[str, ...]
    _manager: Any

    @classmethod
    def open(cls, tasks: Sequence[str], include: str | Path | None = None) -> Harness:
        """The harness, ready to ask these tasks.

        Args:
            tasks: names that the harness knows, such as hellaswag, commonsense_qa, bbh_fewshot_object_counting.
            include: a folder with harness tasks of your own.

        Raises:
            ConfigError: the harness is not installed, or does not know a task.
        """
        try:
            from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ConfigError(
                f"--harness needs lm-evaluation-harness ({error}): pip install 'perdure[lm-eval]'. Without --harness a small "
                "offline set is asked."
            ) from error
        manager = TaskManager(include_path=None if include is None else str(include))
        if unknown := [name for name in tasks if name not in manager.all_tasks]:
            raise ConfigError(
                f"lm-evaluation-harness knows no task {', '.join(unknown)}; see `lm_eval ls tasks`, or give --include."
            )
        return cls(tuple(tasks), manager)

    def scores(self, backbone: LanguageModel, shots: int, examples: int | None = None) -> dict[str, HarnessScore]:
        """Each task's main score by the backbone's model as it stands now; groups as `counted_once` tells them.

        Args:
            shots: examples in the prompt; a task whose own file says 0 is asked without, whatever is given.
            examples: of each task at most, the first ones.

        Raises:
            ConfigError: a task's data cannot be had.
        """
        import lm_eval  # pyright: ignore[reportMissingImports]
        from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

        wrapped: Any = HFLM(
            pretrained=backbone.model,
            tokenizer=backbone.tokenizer,
            batch_size=backbone.settings.predict_batch_size,
        )
        try:
            found: Any = lm_eval.simple_evaluate(
                model=wrapped, tasks=list(self.tasks), num_fewshot=shots, limit=examples, bootstrap_iters=0,
                task_manager=self._manager,
            )  # fmt: skip
        # its data come from the hub: `datasets` raises ValueError for an unknown configuration, RuntimeError for a script
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"lm-evaluation-harness could not ask {', '.join(self.tasks)}, most often for want of their data: {error}"
            ) from error
        return counted_once(found, self.tasks, shots)


def counted_once(found: Mapping[str, Any], asked: Sequence[str], shots: int) -> dict[str, HarnessScore]:
    """Name -> score of the rows of the harness' results, which hold a group beside its subtasks, that count once each.

    A group is one row where it has a score of its own and its tasks were asked alike; else its subtasks are rows.

    Args:
        found: what `simple_evaluate` returns.
        asked: the names given: tasks, groups or tags. A task that is asked by name is a row beside its group, too.
        shots: examples in the prompt, of tasks of which the harness does not say it.

    Raises:
        ConfigError: a task without a score.
    """
    results, given, counts = found["results"], found.get("n-shot", {}), found.get("n-samples", {})
    subtasks = {name: below for name, below in found.get("group_subtasks", {}).items() if below}
    rows: dict[str, HarnessScore] = {}

    def tasks_of(name: str) -> set[str]:
        return set().union(*map(tasks_of, subtasks[name])) if name in subtasks else {name}

    def tell(name: str) -> None:
        tasks = tasks_of(name)
        prompts = {int(given.get(task, shots)) for task in tasks}
        if name in subtasks and (len(prompts) > 1 or not known_scores(results.get(name, {}))):
            for below in subtasks[name]:
                tell(below)
            return
        examples = sum(int(counts.get(task, {}).get("effective", 0)) for task in tasks)
        rows[name] = HarnessScore(*main_score(results[name]), examples, prompts.pop())

    inner = {below for some in subtasks.values() for below in some}
    for name in dict.fromkeys([*results, *subtasks]):
        if name in asked or name not in inner:
            tell(name)
    return rows


def main_score(scores: Mapping[str, Any]) -> tuple[str, float]:
    """(metric, value) of one task's scores; of several filters of one metric the first."""
    known = known_scores(scores)
    if not known:
        raise ConfigError(f"lm-evaluation-harness gave no score among {', '.join(scores)}.")
    return min(known.items(), key=lambda score: _rank(score[0]))


def known_scores(scores: Mapping[str, Any]) -> dict[str, float]:
    """Metric -> value, under the harness' name 'metric,filter'; empty for a group that has no score of its own."""
    return {
        key.removesuffix(",none"): value
        for key, value in scores.items()
        if isinstance(value, float) and "stderr" not in key
    }


def _rank(metric: str) -> int:
    """Place in `METRICS`, whatever the filter; behind all of them for another one."""
    name = metric.partition(",")[0]
    return METRICS.index(name) if name in METRICS else len(METRICS)

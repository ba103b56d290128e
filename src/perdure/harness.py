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
"""Which score of a task counts: the first of these it has, else its first one."""


class HarnessScore(NamedTuple):
    """What one of its tasks scored, and on how many examples."""

    metric: str
    value: float
    examples: int


@dataclass(frozen=True)
class Harness:
    """Some of its tasks, looked up once: the harness reads thousands of files to know their names."""

    tasks: tuple[str, ...]
    _manager: Any

    @classmethod
    def open(cls, tasks: Sequence[str], include: str | Path | None = None) -> Harness:
        """The harness, ready to ask these tasks.

        Args:
            tasks: names that the harness knows, such as hellaswag, commonsense_qa, bbh_zeroshot_object_counting.
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
        """Each task's main score by the backbone's model as it stands now.

        Args:
            shots: examples in the prompt.
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
        except (OSError, ConnectionError) as error:  # its data come from the hub
            raise ConfigError(f"lm-evaluation-harness could not get its data: {error}") from error
        counts = found.get("n-samples", {})
        return {
            name: HarnessScore(*main_score(scores), int(counts.get(name, {}).get("effective", 0)))
            for name, scores in found["results"].items()
        }


def main_score(scores: Mapping[str, Any]) -> tuple[str, float]:
    """(metric, value) of one task's scores, which the harness calls 'metric,filter'."""
    known = {
        key.partition(",")[0]: value
        for key, value in scores.items()
        if isinstance(value, float) and "stderr" not in key
    }
    for metric in (*METRICS, *known):
        if metric in known:
            return metric, known[metric]
    raise ConfigError(f"lm-evaluation-harness gave no score among {', '.join(scores)}.")

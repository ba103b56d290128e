"""Metrics of a continual-learning run, as pure functions of its score matrix.

Legend: score_ST[s, t] is the score (a fraction of 1) on task t after stage s; T tasks, S stages. In the usual sequence
stage s learns task s (S = T); joint training has one stage. b_T holds the untrained model's scores. In `FORMULAS`, which
reports print, a stands for score_ST. An undefined metric (one stage, an unscored cell) is None, never 0. Nothing is clipped:
forgetting may be negative.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

Matrix = Sequence[Sequence[float | None]]

FORMULAS: Mapping[str, str] = {
    "average_accuracy": "mean over tasks of the final row",
    "sample_weighted_accuracy": "mean of the final row weighted by each task's number of test examples",
    "learning_accuracy": "mean over tasks of a[t,t], the score right after learning the task",
    "forgetting": "mean over t<T of (max over scored stages s<T of a[s,t]) - a[T,t]; may be negative",
    "backward_transfer": "mean over t<T of a[T,t] - a[t,t]",
    "forward_transfer": "mean over t>1 of a[t-1,t] - b[t], b the untrained model's scores",
}

NOUNS: Mapping[str, str] = {"rouge-l": "ROUGE-L", "sari": "SARI", "macro-f1": "macro-F1"}
"""How a task's metric is written; others as they are named, with spaces."""


def noun(metric: str) -> str:
    """A task's metric in a heading.

    >>> noun("rouge-l"), noun("trace-rouge-l"), noun("balanced-accuracy")
    ('ROUGE-L', "TRACE's ROUGE-L", 'balanced accuracy')
    """
    own = metric.removeprefix("trace-")
    written = own if ":" in own else NOUNS.get(own, own.replace("-", " "))
    return written if own == metric else f"TRACE's {written}"


def averaged(metrics: Iterable[str]) -> str:
    """What the mean over tasks scored by these metrics is a mean of: "accuracy" (also where nothing is said), or "score"."""
    found = set(metrics) or {"accuracy"}
    return noun(found.pop()) if len(found) == 1 else "score"


def average_accuracy(score_ST: Matrix) -> float | None:
    """Mean over tasks of the final row (macro average)."""
    return _mean(score_ST[-1])


def sample_weighted_accuracy(score_ST: Matrix, sizes_T: Sequence[int]) -> float | None:
    """Mean of the final row, each task weighted by its number of test examples."""
    final = score_ST[-1]
    if any(score is None for score in final) or sum(sizes_T) == 0:
        return None
    return sum(score * size for score, size in zip(final, sizes_T, strict=True) if score is not None) / sum(sizes_T)


def learning_accuracy(score_ST: Matrix) -> float | None:
    """Mean of the diagonal: the score on each task right after learning it. None unless stages are tasks."""
    return _mean([row[t] for t, row in enumerate(score_ST)]) if _is_square(score_ST) else None


def forgetting(score_ST: Matrix) -> float | None:
    """Mean over all but the last task of (best score before the last stage) - (final score)."""
    known = [[score for row in score_ST[:-1] if (score := row[t]) is not None] for t in range(len(score_ST) - 1)]
    best = [max(scores, default=None) for scores in known]
    return _mean_difference(score_ST, best, score_ST[-1])


def backward_transfer(score_ST: Matrix) -> float | None:
    """Mean over all but the last task of final score - score right after learning it."""
    return _mean_difference(score_ST, score_ST[-1], [row[t] for t, row in enumerate(score_ST[:-1])])


def forward_transfer(score_ST: Matrix, untrained_T: Sequence[float | None] | None) -> float | None:
    """Mean over all but the first task of (score just before learning it) - (untrained score)."""
    before = [row[t + 1] for t, row in enumerate(score_ST[:-1])]
    return None if untrained_T is None else _mean_difference(score_ST, before, untrained_T[1:])


def summary(
    score_ST: Matrix, untrained_T: Sequence[float | None] | None, sizes_T: Sequence[int]
) -> dict[str, float | None]:
    """Every metric by name; the keys of `FORMULAS`."""
    return {
        "average_accuracy": average_accuracy(score_ST),
        "sample_weighted_accuracy": sample_weighted_accuracy(score_ST, sizes_T),
        "learning_accuracy": learning_accuracy(score_ST),
        "forgetting": forgetting(score_ST),
        "backward_transfer": backward_transfer(score_ST),
        "forward_transfer": forward_transfer(score_ST, untrained_T),
    }


def _is_square(score_ST: Matrix) -> bool:
    return all(len(row) == len(score_ST) for row in score_ST)


def _mean_difference(score_ST: Matrix, left: Sequence[float | None], right: Sequence[float | None]) -> float | None:
    """The mean of left - right over all but one task; None unless stages are tasks."""
    if not _is_square(score_ST) or len(score_ST) < 2:
        return None
    return _mean([None if a is None or b is None else a - b for a, b in zip(left, right, strict=False)])


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; None without values, or if one is missing."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


Answer = Mapping[str, Any]
"""A row of predictions/<task>.jsonl: label, predicted, and predicted_task where another task's label was chosen."""


@dataclass(frozen=True)
class Scores:
    """The scores of a run; fractions of 1, None where a metric is undefined.

    Args:
        tasks: names in order; the columns of the matrix.
        stages: names in order; its rows. One for joint training; adapters given as `history` have none.
        score_matrix: [stages, tasks], the score on a task after a stage; None where it was not scored.
        untrained_scores: of the untouched base.
        examples: how many examples each task was scored on.
        folder: the run.
        metrics: what each task is scored by; empty where a run does not say.
    """

    tasks: list[str]
    stages: list[str]
    score_matrix: list[list[float | None]]
    untrained_scores: list[float | None]
    examples: list[int]
    average_accuracy: float | None
    sample_weighted_accuracy: float | None
    learning_accuracy: float | None
    forgetting: float | None
    backward_transfer: float | None
    forward_transfer: float | None
    method: str
    seed: int
    split: str
    folder: str
    metrics: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def is_right(answer: Answer) -> bool:
    """Whether the label was predicted, and among several label sets also the task."""
    return answer["label"] == answer["predicted"] and "predicted_task" not in answer

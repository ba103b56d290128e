"""How every report shows numbers, metrics and runs: points with one decimal, short unique names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from perdure.training.metrics import Scores, averaged, noun

METRICS: Mapping[str, str] = {
    "average_accuracy": "Average accuracy",
    "sample_weighted_accuracy": "Sample-weighted accuracy",
    "learning_accuracy": "Learning accuracy",
    "forgetting": "Forgetting",
    "backward_transfer": "Backward transfer",
    "forward_transfer": "Forward transfer",
}
"""Key of `perdure.training.metrics.FORMULAS` -> heading, in the order of the tables."""

MANY = 40
"""A run of more tasks is shown by its aggregates: no line and no cell a task and stage; report.json has them all."""
UNTRAINED = "(untrained)"
AFTER = "After stage"


def headings(runs: Sequence[Scores]) -> dict[str, str]:
    """`METRICS` for these runs: "accuracy" only where all tasks are scored by it; else their metric, or "score" for several."""
    name = averaged(metric for run in runs for metric in run.metrics)
    return {key: title.replace("accuracy", name) for key, title in METRICS.items()}


def task_headings(run: Scores) -> list[str]:
    """Each task's name, with its metric where that is not accuracy."""
    metrics = run.metrics if len(run.metrics) == len(run.tasks) else ["accuracy"] * len(run.tasks)
    named = zip(run.tasks, metrics, strict=True)
    return [task if metric == "accuracy" else f"{task} ({noun(metric)})" for task, metric in named]


def run_names(runs: Sequence[Scores]) -> list[str]:
    """The shortest unique name of each run: the method; else with the seed; else with the folder."""
    names = [run.method for run in runs]
    for longer in (lambda run: f"{run.method}, seed {run.seed}", lambda run: f"{run.method}, {run.folder}"):
        count = Counter(names)
        names = [longer(run) if count[name] > 1 else name for name, run in zip(names, runs, strict=True)]
    return names


def rows(run: Scores) -> list[tuple[str, list[float | None]]]:
    """The score matrix with the untrained row on top: (stage, scores in the order of `run.tasks`)."""
    return [(UNTRAINED, run.untrained_scores), *zip(run.stages, run.score_matrix, strict=True)]


def plain(text: str) -> str:
    """Text on one line; control characters, escapes and direction marks become '\ufffd'.

    >>> plain("a\\x1b[31mb\\nc")
    'a\ufffd[31mb c'
    """
    return "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in text)

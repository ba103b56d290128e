"""What was right and became wrong: the same test examples, answered right after a task was learnt and again at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from perdure.state.answers import StageAnswers
from perdure.training.metrics import Answer, Scores, is_right


@dataclass(frozen=True)
class Confusion:
    """Examples of `label` that were right when learnt and are answered with `predicted` at the end."""

    label: str
    predicted: str
    count: int


@dataclass(frozen=True)
class TaskChange:
    """One task's examples, right after it was learnt and at the end.

    Args:
        task: learnt in a stage before the last.
        examples: how many are compared.
        still_right, became_wrong, became_right, still_wrong: they add up to `examples`.
        confusions: of those that became wrong, most frequent first.
    """

    task: str
    examples: int
    still_right: int
    became_wrong: int
    became_right: int
    still_wrong: int
    confusions: tuple[Confusion, ...]


def task_changes(run: Scores, answers: Sequence[StageAnswers]) -> tuple[list[TaskChange], dict[str, str]]:
    """A `TaskChange` for every task learnt before the last stage; for every other task the reason why there is none.

    Args:
        run: the scores, to check that they are shares of right answers.
        answers: of each stage, without the untrained one.
    """
    changes: list[TaskChange] = []
    reasons: dict[str, str] = {}
    for t, task in enumerate(run.tasks):
        if task not in run.stages:
            reasons[task] = "learnt together with others, or not yet"
            continue
        learnt = run.stages.index(task)
        before, after = answers[learnt].rows(task), answers[-1].rows(task)
        if learnt == len(run.stages) - 1:
            reasons[task] = "learnt last"
        elif run.score_matrix[learnt][t] is None:
            reasons[task] = "not scored right after it was learnt"
        elif not _is_accuracy(before, run.score_matrix[learnt][t]) or not _is_accuracy(after, run.score_matrix[-1][t]):
            reasons[task] = "scored by something other than the share of answers equal to the label"
        elif [row["label"] for row in before] != [row["label"] for row in after]:
            reasons[task] = "scored on other examples in between"
        else:
            changes.append(_change(task, before, after))
    return changes, reasons


def change_table(changes: Iterable[TaskChange]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: what became of each task's examples."""
    head = ["Task", "Examples", "Still right", "Became wrong", "Became right", "Still wrong"]
    fields = ("examples", "still_right", "became_wrong", "became_right", "still_wrong")
    return head, [[c.task, *(str(getattr(c, name)) for name in fields)] for c in changes]


def confusion_table(changes: Iterable[TaskChange]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: answers that were right when learnt and are wrong at the end, of all tasks, most frequent first."""
    lost = [(change.task, confusion) for change in changes for confusion in change.confusions]
    lost.sort(key=lambda pair: -pair[1].count)
    head = ["Task", "Right label", "Answer at the end", "Examples"]
    return head, [[task, c.label, c.predicted, str(c.count)] for task, c in lost]


def _is_accuracy(answers: Sequence[Answer], score: float | None) -> bool:
    if not answers or score is None:
        return False
    return abs(sum(map(is_right, answers)) / len(answers) - score) < 1e-9


def _change(task: str, before: Sequence[Answer], after: Sequence[Answer]) -> TaskChange:
    count = Counter[tuple[bool, bool]]()
    lost = Counter[tuple[str, str]]()
    for first, last in zip(before, after, strict=True):
        count[is_right(first), is_right(last)] += 1
        if is_right(first) and not is_right(last):
            other = f" (a label of {last['predicted_task']})" if last.get("predicted_task") else ""
            lost[last["label"], last["predicted"] + other] += 1
    return TaskChange(
        task=task,
        examples=count.total(),
        still_right=count[True, True],
        became_wrong=count[True, False],
        became_right=count[False, True],
        still_wrong=count[False, False],
        confusions=tuple(Confusion(*pair, n) for pair, n in sorted(lost.items(), key=lambda item: (-item[1], item[0]))),
    )

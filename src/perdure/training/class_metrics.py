"""Scores for classes of unequal size: balanced accuracy and macro-F1, as one value an example whose mean is the score.

Both count the classes that occur, in the truth or (of the known labels) among the answers, as scikit-learn's do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence


def balanced_accuracy(truth: Sequence[str], answers: Sequence[str], _labels: Sequence[str]) -> list[float]:
    """Mean over the truth's classes of their recall: a right answer counts N / (classes x examples of its class), others 0."""
    counts = Counter(truth)
    weight = {label: len(truth) / (len(counts) * count) for label, count in counts.items()}
    return [weight[true] if answer == true else 0.0 for true, answer in zip(truth, answers, strict=True)]


def macro_f1(truth: Sequence[str], answers: Sequence[str], labels: Sequence[str]) -> list[float]:
    """Mean over classes of F1 = 2 right / (examples + answers), linearised about itself: the mean of the values is the score."""
    known = set(labels)
    sizes = Counter(truth) + Counter(answer for answer in answers if answer in known)
    right = Counter(true for true, answer in zip(truth, answers, strict=True) if answer == true)
    f1 = {label: 2 * right[label] / size for label, size in sizes.items()}
    mean, scale = sum(f1.values()) / len(f1), len(truth) / len(f1)

    def influence(true: str, answer: str) -> float:
        if answer == true:
            return 2 * (1 - f1[true]) / sizes[true]
        return -sum(f1[label] / sizes[label] for label in (true, answer) if label in f1)

    return [mean + scale * influence(true, answer) for true, answer in zip(truth, answers, strict=True)]


CLASS_METRICS: Mapping[str, Callable[[Sequence[str], Sequence[str], Sequence[str]], list[float]]] = {
    "balanced-accuracy": balanced_accuracy,
    "macro-f1": macro_f1,
}
"""Name -> function of (true labels, answers, known labels); an answer of another task is given as the empty string."""


def class_summary(truth: Sequence[str], answers: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """Every score of one task's answers beside its accuracy, and the share of the most frequent class."""
    count = len(truth)
    scores = {name: sum(metric(truth, answers, labels)) / count for name, metric in CLASS_METRICS.items()}
    right = sum(true == answer for true, answer in zip(truth, answers, strict=True))
    return {"accuracy": right / count, **scores, "largest-class": max(Counter(truth).values()) / count}

"""Scores of written answers, each a fraction of 1: exact match, ROUGE-L, edit similarity, SARI.

`TEXT_METRICS` maps a name to a function of (inputs, answers, targets). The score of a task is the mean over its examples.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from perdure.errors import ConfigError, UnknownName

TextMetric = Callable[[Sequence[str], Sequence[str], Sequence[str]], float]
"""Inputs, answers, targets (one each an example) -> a mean score in [0, 1]."""

_WORD = re.compile(r"\w+|[^\w\s]")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower case, no ASCII punctuation, white space collapsed: two answers are equal if these are (O-LoRA's evaluation).

    >>> normalise(" Very  Positive. ")
    'very positive'
    """
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())


def exact_match(_inputs: Sequence[str], answers: Sequence[str], targets: Sequence[str]) -> float:
    """Share of answers equal to their target after `normalise`."""
    return _mean([float(normalise(a) == normalise(t)) for a, t in zip(answers, targets, strict=True)])


def rouge_l(_inputs: Sequence[str], answers: Sequence[str], targets: Sequence[str]) -> float:
    """Mean ROUGE-L F1 with Porter stemming, by the package rouge-score.

    Source: Lin 2004; F1 with stemming as in Super-NaturalInstructions' evaluation (arXiv 2204.07705) and SAPT.
    """
    scorer = _rouge_scorer()
    return _mean([scorer.score(t, a)["rougeL"].fmeasure for a, t in zip(answers, targets, strict=True)])


def edit_similarity(_inputs: Sequence[str], answers: Sequence[str], targets: Sequence[str]) -> float:
    """Mean of 1 - (insertions + deletions) / (both lengths), by rapidfuzz; TRACE's score of Py150 (arXiv 2310.06762)."""
    try:
        from rapidfuzz import fuzz
    except ImportError as error:
        raise _missing("edit-similarity", "rapidfuzz") from error
    return _mean([fuzz.ratio(a, t) / 100 for a, t in zip(answers, targets, strict=True)])


def sari(inputs: Sequence[str], answers: Sequence[str], targets: Sequence[str]) -> float:
    """Mean SARI: how well words are kept, added and deleted, against the input and one target (Xu et al. 2016, Q16-1029)."""
    triples = zip(inputs, answers, targets, strict=True)
    return _mean([sentence_sari(source, answer, [target]) for source, answer, target in triples])


def sentence_sari(source: str, answer: str, targets: Sequence[str], order: int = 4) -> float:
    """SARI in [0, 1] of one answer: mean over n-gram orders 1..4 of (F1 of kept + F1 of added + precision of deleted) / 3.

    Texts are lower-cased; words and punctuation marks are one unit each (close to the 13a rules the script below uses).
    Counts are weighted by the share of targets that hold the n-gram; 0 / 0 counts as 1, and kept n-grams are scored by
    the released formula's repaired form, both as in the maintained script `evaluate-metric/sari`, whose published example
    is a test here. Written here since no package of the index holds SARI: that script is fetched from the hub and run.
    """
    scores = []
    for n in range(1, order + 1):
        grams = [_grams(text, n) for text in targets]
        every = sum(grams, Counter[tuple[str, ...]]())
        scores.append(_sari_of_order(_grams(source, n), _grams(answer, n), every, len(targets)))
    return _mean([_mean(parts) for parts in scores])


def _sari_of_order(
    source: Counter[tuple[str, ...]], answer: Counter[tuple[str, ...]], targets: Counter[tuple[str, ...]], count: int
) -> tuple[float, float, float]:
    """F1 of kept, precision of deleted, F1 of added n-grams of one order; `targets` sums over `count` texts."""
    # every text stands for `count` copies, so that it weighs as much as all targets together
    source_all = Counter({gram: k * count for gram, k in source.items()})
    answer_all = Counter({gram: k * count for gram, k in answer.items()})

    kept, to_keep = source_all & answer_all, source_all & targets
    kept_right = kept & targets
    precision = _ratio(sum(kept_right[g] / kept[g] for g in kept_right), len(kept))
    recall = _ratio(sum(kept_right.values()), sum(to_keep.values()))

    deleted, to_delete = source_all - answer_all, source_all - targets
    deleted_right = deleted & to_delete
    delete_precision = _ratio(sum(deleted_right[g] / deleted[g] for g in deleted_right), len(deleted))

    added, to_add = set(answer) - set(source), set(targets) - set(source)
    added_right = added & set(targets)
    add_f1 = _f1(_ratio(len(added_right), len(added)), _ratio(len(added_right), len(to_add)))
    return _f1(precision, recall), delete_precision, add_f1


def _grams(text: str, n: int) -> Counter[tuple[str, ...]]:
    words = _WORD.findall(text.lower())
    return Counter(zip(*(words[i:] for i in range(n)), strict=False))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 1.0


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _rouge_scorer():
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise _missing("rouge-l", "rouge-score") from error
    return RougeScorer(["rougeL"], use_stemmer=True)


def _missing(metric: str, package: str) -> ConfigError:
    return ConfigError(f"The metric '{metric}' needs the package {package}: pip install {package} (or perdure[text]).")


TEXT_METRICS: dict[str, TextMetric] = {
    "exact-match": exact_match,
    "rouge-l": rouge_l,
    "edit-similarity": edit_similarity,
    "sari": sari,
}


def text_metric(name: str) -> TextMetric:
    """The metric called `name`.

    Raises:
        UnknownName: no such metric.
    """
    if name not in TEXT_METRICS:
        raise UnknownName("text metric", name, TEXT_METRICS)
    return TEXT_METRICS[name]

"""Scores of one written answer, each in [0, 1]: exact match, first character, ROUGE-L, edit similarity, SARI; and TRACE's own.

`TEXT_METRICS` maps a name to a function of (input, answer, references). With several references the best score counts
(SARI uses them all). A task's score is the mean over its examples.
"""

from __future__ import annotations

import importlib
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace

from perdure.backbones import trace_metrics as trace
from perdure.errors import ConfigError

TextMetric = Callable[[str, str, Sequence[str]], float]
"""The input, the model's answer, the reference answers (at least one) -> a score in [0, 1]."""

_ONE_CHARACTER_WORD = re.compile(
    r"([\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])"
)  # written without spaces
_WORD = re.compile(r"\w+|[^\w\s]")
_PUNCTUATION = re.compile(rf"(?!\.\d|(?<!\w)-\.?\d)[{re.escape(string.punctuation)}]")


def normalise(text: str) -> str:
    """Lower case, no ASCII punctuation, white space collapsed; answers that agree in this are equal.

    As in O-LoRA's evaluation, except that the point and the sign of a number stay: 2.5 is not 25, -3 is not 3.

    >>> normalise(" Very  Positive. "), normalise("$-2.50!")
    ('very positive', '-2.50')
    """
    return " ".join(_PUNCTUATION.sub("", text.lower()).split())


def exact_match(_text: str, answer: str, references: Sequence[str]) -> float:
    """1 if the answer equals a reference after `normalise`, else 0."""
    return float(normalise(answer) in map(normalise, references))


def first_character(_text: str, answer: str, references: Sequence[str]) -> float:
    """1 if the first non-blank characters agree, else 0."""
    return float(bool(answer.strip()) and any(answer.strip()[0] == one.strip()[:1] for one in references))


def rouge_l(_text: str, answer: str, references: Sequence[str]) -> float:
    """ROUGE-L F1 with Porter stemming, by the package rouge-score; over words of any script.

    Source: Lin 2004; F1 with stemming and the best of several references as in Super-NaturalInstructions' evaluation
    (arXiv 2204.07705).

    Raises:
        ConfigError: the package is not installed.
    """
    _require("rouge-score", "rouge-l")
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    tokenize = partial(_any_script_words, ascii_words=DefaultTokenizer(use_stemmer=True).tokenize)
    scorer = RougeScorer(["rougeL"], tokenizer=SimpleNamespace(tokenize=tokenize))
    return max(scorer.score(one, answer)["rougeL"].fmeasure for one in references)


def _any_script_words(text: str, ascii_words: Callable[[str], list[str]]) -> list[str]:
    """Words of any script: rouge-score's `ascii_words` drops all but a-z and 0-9. A Chinese character is a word.

    ASCII words still go through `ascii_words`, which stems them, so that ASCII texts score as published.
    """
    spaced = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in text.lower())
    words = _ONE_CHARACTER_WORD.sub(r" \1 ", spaced).split()
    return [part for word in words for part in (ascii_words(word) if word.isascii() else [word])]


def edit_similarity(_text: str, answer: str, references: Sequence[str]) -> float:
    """1 - (insertions + deletions) / (sum of lengths), by rapidfuzz; of code with its literals (`trace_metrics.literals`).

    Raises:
        ConfigError: the package is not installed.
    """
    _require("rapidfuzz", "edit-similarity")
    from rapidfuzz import fuzz

    return max(fuzz.ratio(trace.literals(answer), trace.literals(one)) / 100 for one in references)


def _words(text: str) -> list[str]:
    """Lower-cased words and punctuation marks, one unit each: close to the rules 13a."""
    return _WORD.findall(text.lower())


def sari(text: str, answer: str, references: Sequence[str], words: Callable[[str], list[str]] = _words) -> float:
    """SARI: mean over n-gram orders 1..4 of (F1 of kept + F1 of added + precision of deleted) / 3 (Xu et al. 2016, Q16-1029).

    `words` cuts a text into units; `trace_metrics.tokens_13a` are those of the script below.
    Counts are weighted by the share of references that hold the n-gram; 0 / 0 counts as 1, and kept n-grams are scored by
    the released formula's repaired form, both as in the maintained script `evaluate-metric/sari`, whose published example
    is a test here. Implemented here because no package on the index has SARI, and that script is fetched from the hub and run.
    """
    scores = []
    for n in range(1, 5):
        targets = sum((_grams(words(one), n) for one in references), Counter[tuple[str, ...]]())
        source, written = _grams(words(text), n), _grams(words(answer), n)
        scores.append(sum(_sari_of_order(source, written, targets, len(references))) / 3)
    return sum(scores) / 4


def _sari_of_order(
    source: Counter[tuple[str, ...]], answer: Counter[tuple[str, ...]], targets: Counter[tuple[str, ...]], count: int
) -> tuple[float, float, float]:
    """F1 of kept, precision of deleted, F1 of added n-grams of one order; `targets` sums over `count` texts."""
    # every text counts `count` times, so that it weighs as much as all targets together
    source_all = Counter({gram: k * count for gram, k in source.items()})
    answer_all = Counter({gram: k * count for gram, k in answer.items()})

    kept, to_keep = source_all & answer_all, source_all & targets
    kept_right = kept & targets
    precision = _ratio(sum(kept_right[g] / kept[g] for g in kept_right), len(kept))
    recall = _ratio(sum(kept_right.values()), sum(to_keep.values()))

    deleted = source_all - answer_all
    deleted_right = (
        deleted - targets
    )  # what the targets hold was wrong to delete, however often the answer still holds it
    delete_precision = _ratio(sum(deleted_right[g] / deleted[g] for g in deleted_right), len(deleted))

    added, to_add = answer.keys() - source.keys(), targets.keys() - source.keys()
    added_right = len(added & to_add)
    add_f1 = _f1(_ratio(added_right, len(added)), _ratio(added_right, len(to_add)))
    return _f1(precision, recall), delete_precision, add_f1


def _grams(units: list[str], n: int) -> Counter[tuple[str, ...]]:
    words = units or [""]  # an empty answer adds one wrong word, as in the maintained script
    return Counter(zip(*(words[i:] for i in range(n)), strict=False))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 1.0


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _require(package: str, metric: str) -> None:
    try:
        importlib.import_module(package.replace("-", "_"))
    except ImportError as error:
        raise ConfigError(
            f"The metric '{metric}' needs the package {package}: pip install {package} (or perdure[text])."
        ) from error


TEXT_METRICS: dict[str, TextMetric] = {
    "exact-match": exact_match,
    "first-character": first_character,
    "rouge-l": rouge_l,
    "edit-similarity": edit_similarity,
    "sari": sari,
    "trace-exact-match": trace.exact_match,
    "trace-first-character": trace.first_character,
    "trace-rouge-l": trace.rouge_l,
    "trace-edit-similarity": trace.edit_similarity,
    "trace-sari": partial(sari, words=trace.tokens_13a),
}
AS_WRITTEN = frozenset(name for name in TEXT_METRICS if name.startswith("trace-"))
"""Metrics of the answer as the model wrote it, white space included; others get it without that around."""

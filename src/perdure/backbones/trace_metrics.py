"""The scores of TRACE (arXiv 2310.06762) as its released evaluation computes them, each in [0, 1]; no answer scores 0.

Tests hold them to the packages it uses: rouge 1.0.1, fuzzywuzzy on difflib, sacrebleu's 13a tokens. Perdure's own scores of the
same tasks (perdure.backbones.text_metrics) forgive more: case, spaces around, plural forms.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher

_LITERAL = re.compile(r"<(STR|NUM|CHAR)_LIT:(.*?)>", re.DOTALL)
_TOKENS_13A = (
    (re.compile(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])"), r" \1 "),  # symbols, not apostrophe, comma, hyphen or point
    (re.compile(r"([^0-9])([\.,])"), r"\1 \2 "),
    (re.compile(r"([\.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)


def _best(one: Callable[[str, str], float]) -> Callable[[str, str, Sequence[str]], float]:
    """A score of an answer against the reference it fits best; an empty text on either side scores 0."""

    def score(_text: str, answer: str, references: Sequence[str]) -> float:
        return max(one(answer, reference) if answer and reference else 0.0 for reference in references)

    return score


@_best
def exact_match(answer: str, reference: str) -> float:
    """Whether both are the same string (C-STANCE, FOMC, NumGLUE)."""
    return float(answer == reference)


@_best
def first_character(answer: str, reference: str) -> float:
    """Whether both begin with the same character (ScienceQA)."""
    return float(answer[0] == reference[0])


@_best
def edit_similarity(answer: str, reference: str) -> float:
    """fuzzywuzzy's ratio, whole per cent, on difflib (Py150): 2 matches / (sum of lengths), after `literals`."""
    answer, reference = literals(answer), literals(reference)
    return round(100 * SequenceMatcher(None, answer, reference).ratio()) / 100 if answer and reference else 0.0


def literals(code: str) -> str:
    """CodeXGLUE's placeholders replaced by what they stand for.

    >>> literals("x = <NUM_LIT> + <NUM_LIT:1> + len(<STR_LIT>)")
    'x = 0 + 1 + len()'
    """
    for placeholder, value in (("<NUM_LIT>", "0"), ("<STR_LIT>", ""), ("<CHAR_LIT>", "")):
        code = code.replace(placeholder, value)
    return _LITERAL.sub(lambda match: match[2], code)


@_best
def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L F1 as in the package rouge 1.0.1 (MeetingBank): case counts, words are distinct and split at spaces.

    Sentences end at points. Of every pair of sentences one longest common subsequence is taken; the distinct words of all of
    them are over those of the answer (precision) and of the reference (recall).
    """
    answers, references = _sentences(answer), _sentences(reference)
    if not answers or not references:  # points alone, where the package fails
        return 0.0
    common = {word for one in answers for other in references for word in _common(one, other)}
    precision, recall = (len(common) / len({w for words in text for w in words}) for text in (answers, references))
    return 2 * precision * recall / (precision + recall + 1e-8)


def _sentences(text: str) -> list[list[str]]:
    return [" ".join(sentence.split()).split(" ") for sentence in text.split(".") if sentence]


def _common(x: Sequence[str], y: Sequence[str]) -> list[str]:
    """A longest common subsequence; of several, the one the package finds: read backwards, `y` is shortened first."""
    length = [[0] * (len(y) + 1) for _ in range(len(x) + 1)]
    for i, word in enumerate(x):
        for j, other in enumerate(y):
            length[i + 1][j + 1] = length[i][j] + 1 if word == other else max(length[i][j + 1], length[i + 1][j])
    i, j, found = len(x), len(y), []
    while i and j:
        if x[i - 1] == y[j - 1]:
            i, j = i - 1, j - 1
            found.append(x[i])
        elif length[i - 1][j] > length[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found


def tokens_13a(text: str) -> list[str]:
    """Words and symbols by the rules 13a of mteval, lower-cased, as the SARI of TRACE's 20Minuten counts them.

    >>> tokens_13a("It's 2.5 km, isn't it?")
    ["it's", '2.5', 'km', ',', "isn't", 'it', '?']
    """
    text = text.lower().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, symbol in (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")):
        text = text.replace(entity, symbol)
    text = f" {text} "
    for pattern, replacement in _TOKENS_13A:
        text = pattern.sub(replacement, text)
    return text.split()

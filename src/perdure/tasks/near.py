"""Texts that nearly repeat an earlier one: quoted mails, corrected articles, retweets."""

from __future__ import annotations

import re
import zlib
from collections import defaultdict
from collections.abc import Iterable

RUN = 5  # words in a row that are compared
WORDS = 200  # the beginning of a text that is looked at
SKETCH = 6  # smallest hashes of a text by which candidates are found
ALIKE = 0.8  # Jaccard index of the runs from which on two texts nearly repeat each other


def near_repeats(texts: Iterable[str]) -> set[int]:
    """Positions of texts that nearly repeat an earlier one that is kept.

    Two texts do if their words (case and punctuation aside) are the same, or at least 0.8 of the 5-word runs in their
    first 200 words (Jaccard index). Candidates share one of the 6 smallest hashes of their runs: a pair of 0.8 is missed
    with a chance of well below 1 %. The same on every machine.
    """
    found: set[int] = set()
    same_words: set[str] = set()
    runs: dict[int, frozenset[int]] = {}
    holders: defaultdict[int, list[int]] = defaultdict(list)
    for position, text in enumerate(texts):
        words = re.findall(r"\w+", text.casefold())[:WORDS]
        key = " ".join(words)
        mine = frozenset(zlib.crc32(" ".join(words[i : i + RUN]).encode()) for i in range(len(words) - RUN + 1))
        sketch = sorted(mine)[:SKETCH]
        candidates = {other for value in sketch for other in holders[value]}
        if key in same_words or any(_alike(mine, runs[other]) for other in candidates):
            found.add(position)
            continue
        if key:
            same_words.add(key)
        runs[position] = mine
        for value in sketch:
            holders[value].append(position)
    return found


def _alike(one: frozenset[int], other: frozenset[int]) -> bool:
    shared = len(one & other)
    return shared > 0 and shared >= ALIKE * (len(one) + len(other) - shared)

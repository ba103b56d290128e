"""Near-duplicates: quoted mails, corrected articles, retweets."""

from __future__ import annotations

import re
import zlib
from collections import defaultdict
from collections.abc import Iterable

RUN = 5  # words per compared run
WORDS = 200  # words compared at the start of a text
SKETCH = 6  # smallest hashes of a text, by which candidates are found
THRESHOLD = 0.8  # Jaccard index of the runs from which two texts are near-duplicates


def near_repeats(texts: Iterable[str]) -> set[int]:
    """Positions of texts that nearly repeat an earlier text that is kept.

    Two texts do if their words (ignoring case and punctuation) are the same, or if they share at least 0.8 of the 5-word
    runs in their first 200 words (Jaccard index). Candidates share one of the 6 smallest hashes of their runs: a pair at
    0.8 is missed with a probability well below 1 %. Deterministic across machines.
    """
    repeats: set[int] = set()
    same_words: set[str] = set()
    runs: dict[int, frozenset[int]] = {}
    holders: defaultdict[int, list[int]] = defaultdict(list)
    for position, text in enumerate(texts):
        words = re.findall(r"\w+", text.casefold())[:WORDS]
        key = " ".join(words)
        mine = frozenset(zlib.crc32(" ".join(words[i : i + RUN]).encode()) for i in range(len(words) - RUN + 1))
        sketch = sorted(mine)[:SKETCH]
        candidates = [runs[other] for other in {other for value in sketch for other in holders[value]}]
        if key in same_words or any(len(mine & other) >= THRESHOLD * len(mine | other) for other in candidates):
            repeats.add(position)
            continue
        if key:
            same_words.add(key)
        runs[position] = mine
        for value in sketch:
            holders[value].append(position)
    return repeats

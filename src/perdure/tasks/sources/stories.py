"""Texts for language modelling: TinyStories, sorted by theme."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from perdure.errors import DataError, MissingTask
from perdure.tasks.pool import Pair, Pool
from perdure.tasks.sources.hub import load_split

END = "<|endoftext|>"
LOOKED_AT = 100_000  # stories of a split that are searched, from the first


def read_stories(
    data: Path | None, *, dataset: str, theme: str, themes: Mapping[str, list[str]], looked_at: int = LOOKED_AT
) -> Pool:
    """Stories with a word of `theme` and none of the other `themes`; labels are empty, as nothing is answered.

    Args:
        data: folder with TinyStories-train.txt and TinyStories-valid.txt; None: `dataset` of the hub.

    Raises:
        MissingTask: none of the files is there; DataError: one is missing; FetchError: the hub cannot be read.
    """
    known = {word: name for name, words in themes.items() for word in words}
    splits: dict[str, list[Pair]] = {}
    for split, file in (("train", "TinyStories-train.txt"), ("validation", "TinyStories-valid.txt")):
        if data is None:
            stories = (record["text"].strip() for record in load_split(dataset, None, split))
        else:
            stories = _stories(data, file)
        splits[split] = [
            (story, "")
            for story in itertools.islice(stories, looked_at)
            if {known[word] for word in re.findall(r"[a-z]+", story.lower()) if word in known} == {theme}
        ]
        if not splits[split]:
            raise DataError(f"{data or dataset}: no story about {theme} among the first {looked_at:,} of {split}.")
    return Pool(
        splits["train"], splits["validation"], free=True, notes=[f"of the first {looked_at:,} stories per split"]
    )


def _stories(folder: Path, file: str) -> Iterator[str]:
    """The stories of one file, read lazily."""
    path = folder / file
    if not os.path.isfile(path):
        if not any(folder.glob("TinyStories-*.txt")):
            raise MissingTask(f"not found: {file} in {folder}")
        raise DataError(f"{path} is missing.")
    with path.open(encoding="utf-8", errors="replace") as lines:
        story: list[str] = []
        for line in itertools.chain(lines, [END]):
            if line.strip() != END:
                story.append(line)
            elif text := "".join(story).strip():
                yield text
                story = []

"""Texts to be learnt as they are, for language modelling: TinyStories, sorted by theme."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from perdure.errors import DataError, MissingTask
from perdure.tasks.pool import Pool
from perdure.tasks.sources.hub import load_split

END = "<|endoftext|>"
LOOKED_AT = 100_000
"""So many stories of a split are looked at, the first ones."""


def read_stories(
    data: Path | None, *, dataset: str, theme: str, themes: Mapping[str, list[str]], looked_at: int = LOOKED_AT
) -> Pool:
    """Stories with a word of `theme` and none of the other `themes`; their labels are empty, since nothing is answered.

    Args:
        data: folder with TinyStories-train.txt and TinyStories-valid.txt; None: `dataset` of the hub.

    Raises:
        MissingTask: none of the files is there; DataError: one is missing; FetchError: the hub cannot be read.
    """
    splits: dict[str, list[tuple[str, str]]] = {}
    for split, file in (("train", "TinyStories-train.txt"), ("validation", "TinyStories-valid.txt")):
        stories = _of_hub(dataset, split) if data is None else _of_file(data, file)
        chosen = _about(itertools.islice(stories, looked_at), theme, themes)
        splits[split] = [(story, "") for story in chosen]
        if not splits[split]:
            raise DataError(f"{data or dataset}: no story about {theme} among the first {looked_at:,} of {split}.")
    return Pool(splits["train"], splits["validation"], free=True, notes=[f"of the first {looked_at:,} stories a split"])


def _about(stories: Iterable[str], theme: str, themes: Mapping[str, list[str]]) -> Iterator[str]:
    known = {word: name for name, words in themes.items() for word in words}
    for story in stories:
        if {known[word] for word in re.findall(r"[a-z]+", story.lower()) if word in known} == {theme}:
            yield story


def _of_hub(dataset: str, split: str) -> Iterator[str]:
    for record in load_split(dataset, None, split):
        yield record["text"].strip()


def _of_file(folder: Path, file: str) -> Iterator[str]:
    """The stories of one file, read as far as they are asked for."""
    path = folder / file
    if not path.is_file():
        if not any(folder.glob("TinyStories-*.txt")):
            raise MissingTask(f"there is no {file} in {folder}")
        raise DataError(f"{path} is missing; the folder should hold it.")
    with path.open(encoding="utf-8", errors="replace") as lines:
        story: list[str] = []
        for line in itertools.chain(lines, [END]):
            if line.strip() != END:
                story.append(line)
            elif text := "".join(story).strip():
                yield text
                story = []

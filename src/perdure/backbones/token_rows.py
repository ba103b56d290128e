"""Token ids by text, every text read once: of few texts in memory, of many in a file that later runs read too.

    CACHE/tokens/<key>/   ids.bin      the ids of all texts, one after another (int32)
                          texts.npy    the texts' digests, sorted
                          places.npy   where each one's ids begin and end
                          cut.npy      how many of the texts were longer than the model reads

The key is a checksum of the texts, of the tokenizer and of the settings it reads by, so a file that was changed or is read
otherwise has another key. A folder is filled beside its place, listed with checksums and renamed: half of one is never read.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import transformers
from transformers import PreTrainedTokenizerBase

from perdure.tasks.sources.folders import whole_folder
from perdure.tasks.sources.packages import cache_folder

MANY = 5_000
"""From so many new texts on, their ids lie in a file."""
TOGETHER = 1_000
"""Texts tokenised at once: a tokenizer's own record of a text is many times as large as its ids."""

Row = Sequence[int]
Reader = Callable[[list[str]], tuple[list[Row], int]]


class TokenRows:
    """Text -> its row of integers.

    Args:
        read: the rows of some texts in order, and how many texts were too long and were cut.
        what: what the rows are: those of two kinds have files of their own.
        key: what else besides the texts decides about rows, as a checksum; None if that is not known: all stay in memory.
    """

    def __init__(self, what: str, read: Reader, key: Callable[[], str | None]) -> None:
        self._what, self._read, self._key = what, read, key
        self._held: dict[str, Row] = {}
        self._cut = 0
        self._files: list[_RowFile] = []

    def __contains__(self, text: str) -> bool:
        return text in self._held or self._filed(text) is not None

    def __getitem__(self, text: str) -> Row:
        """The row of a text, read now if it is new."""
        if (held := self._held.get(text)) is not None:
            return held
        if (filed := self._filed(text)) is not None:
            return filed
        self._hold([text])
        return self._held[text]

    def __bool__(self) -> bool:
        return bool(self._held or self._files)

    @property
    def cut(self) -> int:
        """How many of the texts were cut."""
        return self._cut + sum(file.cut for file in self._files)

    def add(self, texts: Iterable[str]) -> None:
        """Read those that are new; FetchError if the cache cannot be written.

        Args:
            texts: of many, none is held if they can be gone through again (a list, or `Again`).
        """
        given = list(texts) if isinstance(texts, Iterator) else texts
        new = Again(lambda: (text for text in given if text not in self))
        key = self._key() if _at_least(MANY, new) else None
        if key is not None:
            self._files.append(_RowFile(new, self._read, f"{self._what} {key}"))
            return
        for some in _batches(dict.fromkeys(new)):
            self._hold(some)

    def _hold(self, texts: list[str]) -> None:
        rows, cut = self._read(texts)
        self._held |= zip(texts, rows, strict=True)
        self._cut += cut

    def extremes(self) -> list[Row]:
        """The shortest and the longest row; none where there is none."""
        rows = [row for file in self._files for row in file.extremes()] + list(self._held.values())
        ordered = sorted(rows, key=len)
        return [ordered[0], ordered[-1]] if ordered else []

    def _filed(self, text: str) -> Row | None:
        if not self._files:
            return None
        digest = _digest(text)
        return next((row for file in self._files if (row := file.get(digest)) is not None), None)


class Again(Iterable[str]):
    """What `make` gives, from the start each time it is gone through."""

    def __init__(self, make: Callable[[], Iterable[str]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[str]:
        return iter(self._make())


class _RowFile:
    """The rows of many texts in a file of the cache, which is made if it is not there."""

    def __init__(self, texts: Iterable[str], read: Reader, key: str) -> None:
        every = np.fromiter(map(_digest, texts), "S16")
        first = np.zeros(len(every), bool)  # of equal texts
        first[np.unique(every, return_index=True)[1]] = True
        digests = every[first]
        name = hashlib.sha256(key.encode() + digests.tobytes()).hexdigest()[:32]
        folder = whole_folder(
            cache_folder() / "tokens" / name,
            lambda fresh: _write(fresh, itertools.compress(texts, first), digests, read),
        )
        self._texts, self._places = np.load(folder / "texts.npy"), np.load(folder / "places.npy")
        self._ids = np.memmap(folder / "ids.bin", np.int32, "r")
        self.cut = int(np.load(folder / "cut.npy"))

    def get(self, digest: bytes) -> Row | None:
        at = int(np.searchsorted(self._texts, np.bytes_(digest)))
        if at == len(self._texts) or self._texts[at] != np.bytes_(digest):
            return None
        return self._row(at)

    def extremes(self) -> list[Row]:
        lengths = self._places[:, 1] - self._places[:, 0]
        return [self._row(int(lengths.argmin())), self._row(int(lengths.argmax()))]

    def _row(self, at: int) -> Row:
        begin, end = self._places[at]
        return self._ids[begin:end].tolist()


def tokenizer_key(tokenizer: PreTrainedTokenizerBase, settings: Mapping[str, Any]) -> str | None:
    """A checksum of a tokenizer, its version, and what else decides how it reads; None for one that cannot be written out."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        return None
    backend.no_truncation()  # as transformers left them after the last text
    backend.no_padding()
    about = [transformers.__version__, tokenizers.__version__, type(tokenizer).__name__, tokenizer.chat_template]
    parts = [backend.to_str(), *about, str(tokenizer.special_tokens_map), settings]
    return hashlib.sha256(json.dumps(parts, default=str, sort_keys=True).encode()).hexdigest()


def _write(folder: Path, texts: Iterable[str], digests: np.ndarray, read: Reader) -> None:
    ends, cut = array("q", [0]), 0
    with (folder / "ids.bin").open("wb") as file:
        for some in _batches(texts):
            rows, too_long = read(some)
            cut += too_long
            file.write(np.fromiter(itertools.chain.from_iterable(rows), np.int32).tobytes())
            for row in rows:
                ends.append(ends[-1] + len(row))
    order = np.argsort(digests)
    np.save(folder / "cut.npy", cut)
    np.save(folder / "texts.npy", digests[order])
    np.save(folder / "places.npy", np.stack([ends[:-1], ends[1:]], axis=1)[order])


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(texts)
    return iter(lambda: list(itertools.islice(rest, TOGETHER)), [])


def _at_least(many: int, texts: Iterable[str]) -> bool:
    """Whether there are so many different texts."""
    found: set[str] = set()
    return any(len(found) >= many for text in texts if not found.add(text))


def _digest(text: str) -> bytes:
    """16 bytes that stand for a text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()

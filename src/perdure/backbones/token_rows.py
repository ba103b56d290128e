"""Token ids by text, every text read once: of few texts in memory, of many in a file that later runs read too.

    CACHE/tokens/<key>/   ids.bin      the ids of all texts, one after another (int32)
                          texts.npy    the texts' digests, sorted
                          places.npy   where each one's ids begin and end
                          cut.npy      how many of the texts were longer than the model reads

The key is a checksum of the texts, of the tokenizer and of the settings it reads by, so a file that was changed or is read
otherwise has another key. A folder is filled beside its place, listed with checksums and renamed: half of one is never read.

With `later` the file is made when its rows are needed, at the first scoring or step: what is said before that comes from a
sample, so that a mistake in the settings shows in seconds.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import random
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
SAMPLE = 1_000
"""So many of them, drawn by a fixed seed, stand for all until a file is made."""
SINGLES = 1_500
"""So many more are read one by one before that."""
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
        later: many texts are read when their rows are needed; then `extremes` and `cut` are those of a sample.
    """

    def __init__(self, what: str, read: Reader, key: Callable[[], str | None], later: bool = False) -> None:
        self._what, self._read, self._key, self._later = what, read, key, later
        self._held: dict[str, Row] = {}
        self._cut = 0
        self._files: list[_RowFile] = []

    def __contains__(self, text: str) -> bool:
        return text in self._held or (bool(self._files) and self._has(_digest(text)))

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
        """How many of the texts were cut; of those of a sample, about so many."""
        return self._cut + sum(file.cut for file in self._files)

    @property
    def sampled(self) -> bool:
        """Whether `cut` is estimated from a sample."""
        return any(file.sampled for file in self._files)

    def add(self, texts: Iterable[str]) -> None:
        """Read those that are new; FetchError if the cache cannot be written.

        Args:
            texts: of many, none is held if they can be gone through again (a list, or `Again`).
        """
        given = list(texts) if isinstance(texts, Iterator) else texts
        new = Again(lambda: (text for text in given if text not in self))
        key = self._key() if _at_least(MANY, new) else None
        if key is not None:
            about = f"{self._what} {key}"
            self._files.append(_RowFile(given, lambda text: text not in self, self._read, about, self._later))
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

    def _has(self, digest: bytes) -> bool:
        return any(file.place(digest) is not None for file in self._files)

    def _filed(self, text: str) -> Row | None:
        if not self._files:
            return None
        digest = _digest(text)
        return next((row for file in self._files if (row := file.get(text, digest)) is not None), None)


class Again(Iterable[str]):
    """What `make` gives, from the start each time it is gone through."""

    def __init__(self, make: Callable[[], Iterable[str]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[str]:
        return iter(self._make())


class _RowFile:
    """The rows of many texts in a file of the cache, which is made if it is not there: now, or `later`, when it is needed."""

    def __init__(
        self, texts: Iterable[str], is_new: Callable[[str], bool], read: Reader, key: str, later: bool
    ) -> None:
        every = np.fromiter(map(_digest, texts), "S16")
        new = np.fromiter(map(is_new, texts), bool)
        first = np.zeros(len(every), bool)  # of equal texts
        first[np.unique(every, return_index=True)[1]] = True
        first &= new
        digests = every[first]
        self._read, self.sampled = read, later and len(digests) > SAMPLE
        self._few: dict[str, Row] = {}
        name = hashlib.sha256(key.encode() + digests.tobytes()).hexdigest()[:32]
        self._made = functools.partial(
            whole_folder,
            cache_folder() / "tokens" / name,
            lambda fresh: _write(fresh, itertools.compress(texts, first), digests, read),
        )
        if self.sampled:
            self._texts = np.sort(digests)
            self.cut = self._take_sample(itertools.compress(texts, first), len(digests))
        else:
            self.cut = int(np.load(self._load() / "cut.npy"))

    def _take_sample(self, texts: Iterable[str], count: int) -> int:
        """Read a sample of these `count` texts; about how many of all are cut."""
        cut, chosen = 0, set(random.Random(0).sample(range(count), SAMPLE))
        for some in _batches(text for place, text in enumerate(texts) if place in chosen):
            rows, too_long = self._read(some)
            cut += too_long
            self._few |= zip(some, rows, strict=True)
        return round(cut * count / SAMPLE)

    def _load(self) -> Path:
        folder = self._made()
        self._texts, self._places = np.load(folder / "texts.npy"), np.load(folder / "places.npy")
        self._ids = np.memmap(folder / "ids.bin", np.int32, "r")
        self._few, self._made = {}, lambda: folder  # the texts are needed no more
        return folder

    def place(self, digest: bytes) -> int | None:
        """Where a text is among the digests; None if it is not."""
        wanted = np.bytes_(digest.rstrip(b"\0"))  # as numpy gives it back: one in 256 ends with a zero
        at = int(np.searchsorted(self._texts, wanted))
        return at if at < len(self._texts) and self._texts[at] == wanted else None

    def get(self, text: str, digest: bytes) -> Row | None:
        if (at := self.place(digest)) is None:
            return None
        if self._few:
            if (known := self._few.get(text)) is not None:
                return known
            if len(self._few) < SAMPLE + SINGLES:
                [self._few[text]] = self._read([text])[0]
                return self._few[text]
            self._load()  # sorted alike
        return self._row(at)

    def extremes(self) -> list[Row]:
        if self._few:
            return [pick(self._few.values(), key=len) for pick in (min, max)]
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

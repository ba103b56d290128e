"""(text, label) of many rows in an Arrow file that is mapped into memory: read like a list of pairs, and none is held."""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from perdure.tasks.pool import Pair

TOGETHER = 2_000
"""Rows of a record batch of the file; all batches but the last are full."""
RELEASE = 64
"""After so many texts the mapped pages are given back: they count as memory of the process, and the system keeps them anyway."""
CLASSES = 1_000
"""Up to so many different labels are held as numbers; more are read like texts."""


class Table(Sequence[Pair]):
    """Chosen rows of such a file, in any order.

    Args:
        path: an Arrow file that `write_table` wrote.
        begin: what stands before a row's number in its place, as "file, line".
    """

    def __init__(self, path: Path, begin: str) -> None:
        import numpy as np
        import pyarrow as pa

        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        data = pa.ipc.open_file(pa.py_buffer(self._map))
        batches = [self._batch(data, i) for i in range(data.num_record_batches)]
        self._columns = [[batch.column(i) for batch in batches] for i in range(3)]
        self._rows = np.arange(sum(len(batch) for batch in batches), dtype=np.int32)
        self._names: Mapping[str, str] = {}
        self._begin = begin
        self._read = 0
        self._classes, self._codes = self._numbered()

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> Table: ...
    def __getitem__(self, index: int | slice) -> Pair | Table:
        if isinstance(index, slice):
            return self._of(self._rows[index])
        return self._cell(0, index), self._label(index)

    def __iter__(self) -> Iterator[Pair]:
        return (self[i] for i in range(len(self)))

    def labels(self) -> Iterator[str]:
        """The label of each row, without its text."""
        return map(self._label, range(len(self)))

    def take(self, indices: Iterable[int]) -> Table:
        """The rows at these places of this one."""
        import numpy as np

        return self._of(self._rows[np.fromiter(indices, np.int32)])

    def renamed(self, names: Mapping[str, str]) -> Table:
        """The same with other labels."""
        other = self._of(self._rows)
        other._names = names
        return other

    def place(self, i: int) -> str:
        """Where a row was read."""
        return f"{self._begin} {self._cell(2, i)}"

    def _of(self, rows: Any) -> Table:
        other = Table.__new__(Table)
        vars(other).update(vars(self), _rows=rows)
        return other

    def _label(self, i: int) -> str:
        label = self._cell(1, i) if self._codes is None else self._classes[self._codes[self._rows[i]]]
        return self._names.get(label, label)

    def _cell(self, column: int, i: int) -> Any:
        self._read += 1
        if self._read % RELEASE == 0:
            self._release()
        batch, row = divmod(int(self._rows[i]), TOGETHER)
        return self._columns[column][batch][row].as_py()

    def _numbered(self) -> tuple[list[str], Any]:
        """The different labels, and each row's number among them; none if there are many."""
        import numpy as np

        known: dict[str, int] = {}
        codes: list[Any] = []
        for column in self._columns[1]:
            encoded = column.dictionary_encode()
            own = encoded.dictionary.to_pylist() if len(encoded.dictionary) <= CLASSES else ()
            numbers = np.array([known.setdefault(label, len(known)) for label in own], np.int16)
            self._release()
            if not own or len(known) > CLASSES:
                return [], None
            codes.append(numbers[encoded.indices.to_numpy()])
        return list(known), np.concatenate(codes) if codes else None

    def _batch(self, data: Any, i: int) -> Any:
        if i % RELEASE == 0:
            self._release()
        return data.get_batch(i)

    def _release(self) -> None:
        if hasattr(self._map, "madvise") and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


def write_table(path: Path, rows: Iterable[tuple[str, str, int]]) -> None:
    """Write (text, label, number of the row) in batches; OSError if the disk is full."""
    import pyarrow as pa

    columns = pa.schema([("text", pa.large_string()), ("label", pa.large_string()), ("number", pa.int64())])
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, columns) as writer:
        every = iter(rows)
        while some := list(itertools.islice(every, TOGETHER)):
            arrays = [
                pa.array(column, field.type) for column, field in zip(zip(*some, strict=True), columns, strict=True)
            ]
            writer.write_batch(pa.record_batch(arrays, schema=columns))


def taken(pairs: Sequence[Pair], indices: Sequence[int]) -> Sequence[Pair]:
    """The pairs at these places: a table of a table, else a list."""
    return pairs.take(indices) if isinstance(pairs, Table) else [pairs[i] for i in indices]


def labels_of(pairs: Sequence[Pair]) -> Iterator[str]:
    """The label of each pair."""
    return pairs.labels() if isinstance(pairs, Table) else (label for _, label in pairs)

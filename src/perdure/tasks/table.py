"""(text, label) of many rows in an Arrow file that is mapped into memory: read like a list of pairs, and none is held."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from perdure.tasks.pool import Pair

TOGETHER = 10_000
"""Rows of a record batch of the file; all batches but the last are full."""


class Table(Sequence[Pair]):
    """Chosen rows of such a file, in any order.

    Args:
        path: an Arrow file that `write_table` wrote.
        begin: what stands before a row's number in its place, as "file, line".
    """

    def __init__(self, path: Path, begin: str) -> None:
        import numpy as np
        import pyarrow as pa

        data = pa.ipc.open_file(pa.memory_map(str(path)))
        batches = [data.get_batch(i) for i in range(data.num_record_batches)]
        self._columns = [[batch.column(i) for batch in batches] for i in range(3)]
        self._rows = np.arange(sum(len(batch) for batch in batches), dtype=np.int32)
        self._names: Mapping[str, str] = {}
        self._begin = begin

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> Table: ...
    def __getitem__(self, index: int | slice) -> Pair | Table:
        if isinstance(index, slice):
            return self._of(self._rows[index])
        label = self._cell(1, index)
        return self._cell(0, index), self._names.get(label, label)

    def __iter__(self) -> Iterator[Pair]:
        return (self[i] for i in range(len(self)))

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

    def _cell(self, column: int, i: int) -> Any:
        batch, row = divmod(int(self._rows[i]), TOGETHER)
        return self._columns[column][batch][row].as_py()


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

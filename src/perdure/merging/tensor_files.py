"""Safetensors files read and written a few rows at a time, so that a model of any size takes little memory.

The format: 8 bytes length of the header, the header in JSON (name -> dtype, shape, data_offsets), the data.
A tensor is treated as a matrix [first dimension, all others].
"""

from __future__ import annotations

import json
import math
import os
import threading
import weakref
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perdure.adapters.folder import check_written
from perdure.adapters.weights import opened
from perdure.errors import AdapterError
from perdure.ops.finite import all_finite
from perdure.ops.tiling import Arena

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Dtypes whose rows can be read and written as numbers; tensors of all others are copied as bytes."""
CHUNK = 1 << 24


@dataclass(frozen=True)
class Stored:
    """One tensor of a file: the format's name of its dtype, shape, and where its bytes are."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def height(self) -> int:
        """Rows: the first dimension (1 for a scalar)."""
        return self.shape[0] if self.shape else 1

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.begin

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.size // self.height if self.height else 0

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """None for a dtype that is not in DTYPES (8-bit floats, unsigned)."""
        return DTYPES.get(self.dtype)


class TensorReader(AbstractContextManager["TensorReader"]):
    """An open safetensors file; rows are read on request, by several threads. Garbage collection closes it too."""

    def __init__(self, path: Path) -> None:
        with opened(path):  # checks the header, every offset and the file's length
            pass
        self.path = path
        self._fd = os.open(path, os.O_RDONLY)
        self._close = weakref.finalize(self, os.close, self._fd)
        length = int.from_bytes(os.pread(self._fd, 8, 0), "little")
        header: dict[str, Any] = json.loads(os.pread(self._fd, length, 8))
        self.metadata: dict[str, str] = header.pop("__metadata__", {})
        self.tensors = _stored(header, 8 + length)

    def rows(self, name: str, start: int, stop: int, arena: Arena | None = None) -> Tensor:
        """Rows `start:stop` as a matrix [N, others] in the stored dtype; in memory of `arena`, if given."""
        stored = self.tensors[name]
        dtype = stored.torch_dtype
        if dtype is None:
            raise AdapterError(f"{self.path}: '{name}' is stored as {stored.dtype}, which cannot be merged into.")
        rows = (arena or Arena()).empty(stop - start, stored.row_bytes // dtype.itemsize, dtype)
        self.read(_bytes_of(rows), stored.begin + start * stored.row_bytes)
        return rows

    def read(self, view: memoryview, offset: int) -> None:
        """Fill `view` with the file's bytes from `offset` on."""
        while view:
            count = os.preadv(self._fd, [view], offset)
            if count == 0:
                raise AdapterError(f"{self.path} was truncated while it was read.")
            view, offset = view[count:], offset + count

    def __exit__(self, *_: object) -> None:
        self._close()


class TensorWriter(AbstractContextManager["TensorWriter"]):
    """A safetensors file of known names, dtypes and shapes, whose rows are written in any order, by several threads.

    Args:
        layout: name -> (the format's name of its dtype, shape).
        source: a file with the same names, for its metadata and the tensors to copy.
    """

    def __init__(
        self, path: Path, layout: Mapping[str, tuple[str, tuple[int, ...]]], source: TensorReader | None = None
    ) -> None:
        header: dict[str, Any] = {}
        self._left: dict[str, int] = {}  # bytes not yet written
        offset = 0
        for name, (dtype, shape) in layout.items():
            old = source.tensors[name] if source is not None else None
            size = old.size if old and old.dtype == dtype else math.prod(shape) * DTYPES[dtype].itemsize
            self._left[name] = size
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
            offset += size
        metadata = {"format": "pt", **(source.metadata if source is not None else {})}
        text = json.dumps({"__metadata__": metadata, **header}, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # data begins at a multiple of 8 bytes
        self.path, self.tensors = path, _stored(header, 8 + len(text))
        self._lock = threading.Lock()
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        self._close = weakref.finalize(self, os.close, self._fd)
        self._write(memoryview(len(text).to_bytes(8, "little") + text), 0)
        os.ftruncate(self._fd, 8 + len(text) + offset)

    def write_rows(
        self, name: str, start: int, rows: Tensor, arena: Arena | None = None, carried: bool = False
    ) -> None:
        """Write `rows` [N, others], converted to the tensor's dtype, from row `start` on; `arena` gives memory for that.

        Args:
            carried: they are another file's and only converted: NaN or Inf among them are that file's own, and stay.

        Raises:
            AdapterError: they are not finite, or not in the tensor's dtype; names the tensor.
        """
        stored = self.tensors[name]
        dtype = stored.torch_dtype
        assert dtype is not None, f"{stored.dtype} is written as bytes"
        given = rows
        if rows.dtype != dtype or rows.device.type != "cpu" or not rows.is_contiguous():
            rows = (arena or Arena()).empty(rows.shape[0], rows.shape[1], dtype).copy_(rows)
        if not all_finite(rows) and not (carried and not all_finite(given)):
            check_written(name, rows, given)
        self._put(name, start * stored.row_bytes, _bytes_of(rows))

    def copy(self, name: str, source: TensorReader) -> None:
        """Copy a tensor from another file, byte by byte."""
        old = source.tensors[name]
        for begin in range(old.begin, old.end, CHUNK):
            data = memoryview(bytearray(min(CHUNK, old.end - begin)))
            source.read(data, begin)
            self._put(name, begin - old.begin, data)

    def _put(self, name: str, begin: int, data: memoryview) -> None:
        self._write(data, self.tensors[name].begin + begin)
        with self._lock:
            self._left[name] -= len(data)

    def _write(self, view: memoryview, offset: int) -> None:
        while view:
            count = os.pwrite(self._fd, view, offset)
            view, offset = view[count:], offset + count

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            os.fsync(self._fd)
        self._close()
        missing = [name for name, left in self._left.items() if left]
        assert kind or not missing, f"{self.path}: rows of {missing} were not written exactly once"


def _stored(header: Mapping[str, Any], start: int) -> dict[str, Stored]:
    """The tensors of a header, in the order of their data, which begins at byte `start` of the file."""
    return {
        name: Stored(entry["dtype"], tuple(entry["shape"]), *(start + offset for offset in entry["data_offsets"]))
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0])
    }


def _bytes_of(tensor: Tensor) -> memoryview:
    """A contiguous tensor's own memory."""
    return tensor.view(-1).view(torch.uint8).numpy().data

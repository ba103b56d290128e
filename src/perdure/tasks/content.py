"""What a task's data are, as a checksum: texts as they are, images by the bytes of their files."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from typing import Any

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""A text that ends in one of these and names a file is an image. A vision backbone reads any text but a data URI as a path."""
ROWS = 1000
"""How many examples are held as JSON at a time."""


def digest(name: str, splits: Mapping[str, Sequence[Any]], parts: Sequence[object]) -> str:
    """sha256 of the JSON text [name, {split: [[text, label], ...]}, *parts] of examples, which is never held whole."""
    found = hashlib.sha256(f"[{json.dumps(name)}, {{".encode())
    for number, (split, examples) in enumerate(splits.items()):
        found.update(f'{", " if number else ""}"{split}": ['.encode())
        for start in range(0, len(examples), ROWS):
            rows = json.dumps([(content(e.text), e.label) for e in examples[start : start + ROWS]])
            found.update(f"{', ' if start else ''}{rows[1:-1]}".encode())
        found.update(b"]")
    found.update(f"}}, {json.dumps(parts)[1:]}".encode())
    return found.hexdigest()


def content(text: str) -> str:
    """The text itself, or the sha256 of the image file it names."""
    if not text.lower().endswith(IMAGE_SUFFIXES) or "\n" in text:
        return text
    try:
        info = os.stat(text)
        return _image_digest(text, info.st_mtime_ns, info.st_size) if stat.S_ISREG(info.st_mode) else text
    except (OSError, ValueError):  # no such file, or not a valid file name
        return text


@functools.lru_cache(maxsize=1 << 17)
def _image_digest(path: str, changed: int, size: int) -> str:  # noqa: ARG001  (cache keys: a changed file is read again)
    with open(path, "rb") as file:
        return f"image sha256 {hashlib.file_digest(file, 'sha256').hexdigest()}"

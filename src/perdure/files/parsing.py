"""JSON that anybody may have written: of limited size and depth, and of the shape that is expected."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from perdure.errors import CorruptFile

DEEPEST = 100
"""How deep lists and mappings may be nested. What copies, compares or prints a value takes several calls a level."""
LARGEST = 1 << 28
"""How many bytes a record in JSON may have."""
UNWRITABLE = re.compile("[\ud800-\udfff]")
"""Half of a character: no encoding has it."""
IN_NO_NAME = re.compile("[\0\ud800-\udfff]")
"""What no file's name may hold either."""


def read_limited(path: Path, most: int | None = None) -> str:
    """The text of a file; a ValueError if it is not UTF-8, or larger than `most` bytes (`LARGEST`); an OSError as usual."""
    most = LARGEST if most is None else most
    if (size := path.stat().st_size) > most:
        raise ValueError(f"it has {size:,} bytes, more than the {most:,} that are read")
    return path.read_text(encoding="utf-8")


def parse_json(text: str, strict: bool = False) -> Any:
    """The value that a JSON text holds; a ValueError for whatever is wrong with it, nesting deeper than `DEEPEST` included.

    `strict`: refuse NaN and Infinity, which JSON does not have and Python reads, and the character 0.
    """
    try:
        value = json.loads(text, parse_constant=_not_finite if strict else None)
    except RecursionError:
        raise ValueError(f"nested more than {DEEPEST} deep") from None
    check_size(value, without=IN_NO_NAME if strict else UNWRITABLE)
    return value


def _not_finite(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def check_size(value: Any, most: float = math.inf, without: re.Pattern[str] = IN_NO_NAME) -> None:
    """Raise a ValueError if it is nested too deep, holds more than `most` values, or one of these characters."""
    level, seen = [value], 0
    for _ in range(DEEPEST):
        inner: list[Any] = []
        for one in level:
            if isinstance(one, str):
                if found := without.search(one):
                    raise ValueError(
                        f"{one!r:.40} holds {found[0]!r}, which is not a character that can be written or named"
                    )
            elif isinstance(one, Mapping):
                inner += [*one.keys(), *one.values()]
            elif isinstance(one, list | tuple | set):
                inner += one
            if seen + len(inner) > most:
                raise ValueError(f"more than {most:,} values")
        if not inner:
            return
        level, seen = inner, seen + len(inner)
    raise ValueError(f"nested more than {DEEPEST} deep")


def checked_shape(kind: TypeAdapter[Any], value: Any, path: Path, then: str) -> Any:
    """The value itself, if it is of that kind; keys that the kind does not name are not looked at.

    Args:
        then: what to do about a damaged file, a sentence.

    Raises:
        CorruptFile: it is not; names the file and the place in it.
    """
    try:
        kind.validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        where = f"{place:.120}: " if place else ""
        raise CorruptFile(
            f"'{path}' is not what a run writes there: {where}{first['msg']} (got {first['input']!r:.60}). {then}"
        ) from error
    return value

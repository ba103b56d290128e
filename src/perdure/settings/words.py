"""A settings class in words: of every key what may stand there, its default, and what it means, from its docstring's `Args`."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

NAMES = {int: "whole number", float: "number", bool: "`true` or `false`", str: "text", type(None): "`null`"}
"""A type -> what a reader of YAML calls it."""
SEE = re.compile(r"see `(\w+)`")
BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


@dataclass(frozen=True)
class Key:
    """One key of a settings class.

    Args:
        name: as it is written in YAML.
        values: what may stand there, with bounds, such as "number > 0"; words to be written as they are stand in backticks.
        default: as it is written in YAML; None where the key must be given.
        meaning: the words of the docstring; empty where there are none.
    """

    name: str
    values: str
    default: str | None
    meaning: str


def keys(model: type[BaseModel]) -> Iterator[Key]:
    """Every key of a settings class, in its order; without `kind`, which says what class it is."""
    meant = meanings(model)
    for name, field in model.model_fields.items():
        if name != "kind":
            yield Key(name, values(field), default(field), meant.get(name, ""))


def meanings(model: type[BaseModel]) -> dict[str, str]:
    """Key -> its words in the `Args:` of the class, or of a class above it where they say to see that one."""
    found: dict[str, str] = {}
    above: dict[str, dict[str, str]] = {}
    for cls in reversed(model.__mro__):
        own = _arguments(cls)
        seen = {name: above.get(see[1], {}).get(name) for name, words in own.items() if (see := SEE.search(words))}
        above[cls.__name__] = own = {name: seen.get(name) or words for name, words in own.items()}
        found |= own
    return found


def _arguments(cls: type) -> dict[str, str]:
    """Key -> its words in the `Args:` of this one class."""
    lines = inspect.cleandoc(vars(cls).get("__doc__") or "").partition("\nArgs:\n")[2].partition("\n\n")[0]
    entries = (entry.partition(": ") for entry in re.split(r"\n {4}(?! )", f"\n{lines}")[1:])
    return {name.strip(): " ".join(words.split()) for names, _, words in entries for name in names.split(",")}


def values(field: FieldInfo) -> str:
    """What may stand there, with its bounds."""
    bounds = [
        f"{sign} {getattr(one, key)}" for one in field.metadata for key, sign in BOUNDS.items() if hasattr(one, key)
    ]
    if not bounds:
        return kind_of_value(field.annotation)
    first, *further = kind_of_value(field.annotation).split(" or ")
    return " or ".join([" ".join([first, *bounds]), *further])


def kind_of_value(annotation: Any) -> str:
    """A type as a reader of YAML knows it."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        bounds = [f" >= {one.ge}" for one in args[1].metadata if hasattr(one, "ge")] if args[1:] else []
        return kind_of_value(args[0]) + "".join(bounds)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(dict.fromkeys(kind_of_value(arg) for arg in args))
    if origin is typing.Literal:
        return " or ".join(f"`{arg}`" for arg in args)
    if origin is tuple:
        return f"list of {kind_of_value(args[0])}s" if args[0] is str else "list of mappings or files"
    return NAMES.get(annotation, "mapping")


def default(field: FieldInfo) -> str | None:
    """The default as YAML has it; None where the key must be given."""
    return None if field.is_required() else in_yaml(field.get_default(call_default_factory=True))


def in_yaml(value: Any) -> str:
    """A value of a setting on one line; of settings that a name may stand for, the name."""
    if isinstance(value, dict):
        return str(value.get("name") or value.get("model"))
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, tuple):
        return str(list(value))
    return str(value) if str(value).strip() else repr(value)

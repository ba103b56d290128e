"""A settings class in words: what may stand at each key, its default, and its meaning, from the docstring below the field."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

NAMES = {int: "whole number", float: "number", bool: "`true` or `false`", str: "text", type(None): "`null`"}
"""A type -> what a reader of YAML calls it."""
BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


@dataclass(frozen=True)
class Key:
    """One key of a settings class.

    Args:
        name: as it is written in YAML.
        values: what may stand there, with bounds, such as "number > 0"; words to be written as they are stand in backticks.
        default: as it is written in YAML; None where the key must be given.
        meaning: the docstring below the field; empty where there is none.
    """

    name: str
    values: str
    default: str | None
    meaning: str


def keys(model: type[BaseModel]) -> Iterator[Key]:
    """Every key of a settings class, in its order; without `kind`, which says what class it is."""
    for name, field in model.model_fields.items():
        if name != "kind":
            yield Key(name, values(field), default(field), _meaning(model, name))


def _meaning(model: type[BaseModel], name: str) -> str:
    """The docstring below a field; one declared again, for another default, has that of the class above."""
    described = (
        cls.model_fields[name].description for cls in model.__mro__ if name in getattr(cls, "model_fields", ())
    )
    return " ".join((next(filter(None, described), "")).split())


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

"""Describes a settings class in words, from its JSON schema: the allowed values, default and meaning of each key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

TYPES = {"boolean": "`true` or `false`", "null": "`null`", "object": "mapping"}
"""JSON type -> its name in YAML, where they differ."""
BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


@dataclass(frozen=True)
class Key:
    """One key of a settings class.

    Args:
        name: as written in YAML.
        values: allowed values with bounds, such as "number > 0"; literals are in backticks.
        default: as written in YAML; None for a required key.
        meaning: the docstring below the field, or "".
    """

    name: str
    values: str
    default: str | None
    meaning: str


class _AnyType(GenerateJsonSchema):
    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> dict[str, Any]:
        return {"type": "object"}  # a custom part's field may have any type


def keys(model: type[BaseModel]) -> Iterator[Key]:
    """Every key of a settings class in order, except `kind`, which names the class."""
    properties = model.model_json_schema(schema_generator=_AnyType).get("properties", {})
    for name, field in model.model_fields.items():
        if name != "kind":
            given = None if field.is_required() else in_yaml(field.get_default(call_default_factory=True))
            declared = (cls.model_fields[name] for cls in model.__mro__ if name in getattr(cls, "model_fields", ()))
            meaning = next((one.description for one in declared if one.description), "")  # a new default inherits it
            yield Key(name, _values(properties[name]), given, " ".join(meaning.split()))


def _values(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_values(one) for one in schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return " or ".join(f"`{word}`" for word in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return "list of strings" if schema["items"].get("type") == "string" else "list of mappings or files"
    kind: str = schema.get("type") or "object"
    return " ".join(
        [TYPES.get(kind, kind), *(f"{sign} {schema[key]:g}" for key, sign in BOUNDS.items() if key in schema)]
    )


def in_yaml(value: Any) -> str:
    """A setting's value on one line; for settings that may be given as a name, the name."""
    if isinstance(value, dict):
        return str(value.get("name") or value.get("model"))
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, tuple):
        return str(list(value))
    return str(value) if str(value).strip() else repr(value)

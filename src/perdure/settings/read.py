"""Reads settings from YAML and `key=value` pairs and validates them against a pydantic class.

One ConfigError lists every problem with its place. An unknown key gets a suggestion: the nearest key, in the same group of
settings or another one, also for the names other libraries use.
"""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from ruamel.yaml import YAMLError

from perdure.errors import ConfigError, UnknownName, nearest
from perdure.settings.yaml_text import parse_yaml

Model = TypeVar("Model", bound=BaseModel)


class Settings(BaseModel):
    """Base class of all settings: frozen; rejects unknown keys, infinite numbers, and booleans in place of numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        if _boolean_as_number(cls.model_fields[info.field_name or ""].annotation, value):
            raise ValueError("should be a number, not true or false")
        return value


def _boolean_as_number(annotation: Any, value: Any) -> bool:
    """Whether a boolean is given where the type allows numbers only: pydantic would read it as 1 or 0."""
    kinds, origin = typing.get_args(annotation), typing.get_origin(annotation)
    if origin is Annotated:
        return _boolean_as_number(kinds[0], value)
    if origin in (types.UnionType, typing.Union):
        return bool not in kinds and any(_boolean_as_number(kind, value) for kind in kinds)
    if origin in (tuple, list) and isinstance(value, list | tuple):
        return any(_boolean_as_number(kinds[0], one) for one in value)
    return annotation in (int, float) and isinstance(value, bool)


def parse_overrides(pairs: list[str]) -> dict[str, Any]:
    """['training.epochs=2', ...] -> {'training.epochs': 2, ...}; values are parsed as YAML.

    Raises:
        ConfigError: a pair without '=', or a value that is not valid YAML.
    """
    overrides: dict[str, Any] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not key:
            raise ConfigError(f"'{pair}' is not a setting. Write key=value, for example training.epochs=2.")
        try:
            parsed = parse_yaml(value)
        except YAMLError as error:
            raise ConfigError(f"The value of '{key}' is not valid YAML: {value!r}. Put strings in quotes.") from error
        # unquoted, 2E5 is a number here; in a file it stays a string, because it may be a label
        power = parsed == value.strip() and re.fullmatch(r"[-+]?\d+[eE]\d+", parsed)
        overrides[key] = float(parsed) if power else parsed
    return overrides


SHORT = {
    "method": "preset",
    "backbone": "model",
    **dict.fromkeys(("init", "consolidate", "replay", "step_rule", "head"), "kind"),
}
"""Settings that may be given as a name alone -> the key that name stands for."""
WHICH = {"model", "kind"}
"""Keys of `backbone` that choose the backbone; the others only adjust it."""


def with_override(data: Mapping[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    """A copy of `data` with `a.b.c` set to `value`; naming a backbone keeps the settings given for it so far.

    Raises:
        ConfigError: a key on the way holds something else than settings.
    """
    return _with(data, _split(dotted), value)


def _split(dotted: str) -> list[str]:
    """The keys of a dotted name; a custom penalty is one key, as in penalties.lab.parts:Overlap.weight."""
    before, mark, after = dotted.partition("penalties.")
    if not mark or not (custom := re.match(r"[\w.]+:\w+", after)):
        return dotted.split(".")
    return [*f"{before}penalties".split("."), custom[0], *filter(None, after[custom.end() :].split("."))]


def _with(data: Mapping[str, Any], keys: Sequence[str], value: Any) -> dict[str, Any]:
    head, *rest = keys
    current = data.get(head)
    if not rest:
        by_name = head == "backbone" and isinstance(value, str)
        if by_name and isinstance(current, Mapping) and not current.keys() & WHICH:
            value = {**current, "model": value}
        return {**data, head: value}
    if isinstance(current, str) and head in SHORT:
        current = {SHORT[head]: current}
    if not isinstance(current, Mapping | None):
        raise ConfigError(f"'{head}' is {current!r:.80} and has no '{'.'.join(rest)}'. Write {head}=value.")
    return {**data, head: _with(current or {}, rest, value)}


def validate(model: type[Model], data: Any, where: str = "") -> Model:
    """`data` as a `model`.

    Args:
        where: the place of `data` in the user's file, for error messages.

    Raises:
        ConfigError: lists every problem with its place, one per line.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems: dict[tuple[Any, ...], list[Any]] = {}
        for problem in error.errors():  # a union reports one for each of its types
            problems.setdefault(_place(data, problem), []).append(problem)
        lines = (_explain(model, place, found, where) for place, found in problems.items())
        raise ConfigError("\n".join(lines)) from error


def _place(data: Any, problem: Any) -> tuple[Any, ...]:
    """The location of a problem in the data, without the names of a union's types that pydantic appends."""
    loc = problem["loc"]
    for depth, part in enumerate(loc):
        if not isinstance(data, Mapping | list | tuple):
            return loc[:depth]
        if part not in (data if isinstance(data, Mapping) else range(len(data))):
            return loc[: depth + (problem["type"] == "missing")]
        data = data[part]
    return loc


def _explain(model: type[BaseModel], place: tuple[Any, ...], problems: Sequence[Any], where: str) -> str:
    named = [where, *place] if where else place
    if problems[0]["type"] == "extra_forbidden":
        inside = ".".join(map(str, named[:-1]))
        return unknown_key(model, str(place[-1]), problems[0]["input"], _model_at(model, place[:-1]), inside)
    first, *others = dict.fromkeys(
        EXPECTED.get(one["type"]) or one["msg"].removeprefix("Value error, ").replace("Input should", "should")
        for one in problems
    )
    expected = " or ".join([first, *(other.removeprefix("should be ") for other in others)])
    given, inside = problems[0]["input"], ".".join(map(str, named))
    if problems[0]["type"] == "value_error" and isinstance(given, Mapping):  # of several settings, which it names
        return f"{inside}: {expected}" if inside else expected
    return f"{inside or 'settings'}: {expected} (got {given!r:.80})"


EXPECTED = {
    kind: expected
    for expected, kinds in {
        "expected a list, as in [a, b]": "tuple_type list_type",
        "expected settings, as in {key: value}": "dict_type mapping_type model_type model_attributes_type",
        "is missing": "missing",
        "should be an integer": "int_type int_parsing int_from_float",
        "should be a number": "float_type float_parsing",
        "should be true or false": "bool_type bool_parsing",
    }.items()
    for kind in kinds.split()
}
"""pydantic's error type -> a message without Python's type names."""


def _model_at(model: type[BaseModel], path: tuple[Any, ...]) -> type[BaseModel] | None:
    """The settings class at `path` below `model`, if there is one; a number in it is an item of a list."""
    found: type[BaseModel] | None = model
    for key in (part for part in path if isinstance(part, str)):
        annotation = found.model_fields[key].annotation if found and key in found.model_fields else None
        kinds = (annotation, *typing.get_args(annotation))  # of Settings | None, tuple[Settings, ...]
        found = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
    return found


ALIASES = {
    alias: name
    for name, aliases in {
        "learning_rate": "lr",
        "epochs": "epoch num_epochs num_train_epochs n_epochs",
        "batch_size": "bs batch batchsize per_device_train_batch_size",
        "accumulation": "grad_accum gradient_accumulation_steps",
        "warmup_share": "warmup warmup_ratio",
        "schedule": "scheduler lr_scheduler lr_scheduler_type",
        "weight_decay": "wd decay",
        "max_grad_norm": "clip grad_clip max_norm",
        "rank": "r lora_r lora_rank",
        "alpha": "lora_alpha",
        "dropout": "lora_dropout",
        "targets": "target_modules modules",
        "rslora": "use_rslora",
        "backbone": "model base_model model_name",
        "backbone.max_length": "max_length max_len max_seq_length",
    }.items()
    for alias in aliases.split()
}
"""What other libraries call a setting -> its name here."""


def unknown_key(
    model: type[BaseModel],
    key: str,
    value: Any = None,
    owner: type[BaseModel] | None = None,
    inside: str = "",
    beside: Iterable[str] = (),
) -> str:
    """The message for a `key` that the settings of a `model` do not have, with the key that was probably meant.

    Args:
        owner, inside: the class that was given the key and its place, where that is not the model itself.
        beside: further keys that are allowed there.
    """
    known = [*(owner.model_fields if owner else () if inside else model.model_fields), *beside]
    head, _, rest = key.partition(".")
    if rest and head in known:
        nested = with_override({}, rest, value)
        in_file = f"{head}: " + re.sub(r'"([a-z][\w-]*)"', r"\1", json.dumps(nested))
        return f"'{key}' is a setting inside `{head}`: write {head}={nested!r:.80} (in a file `{in_file:.80}`)."
    names = {name: name for name in known}
    for group, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names = {leaf: f"{group}.{leaf}" for leaf in field.annotation.model_fields} | names  # the first group's
    alias = ALIASES.get(key.casefold(), "")
    group, _, leaf = alias.rpartition(".")
    meant = alias if group and group in known else names.get(leaf) or nearest(key, names)
    return str(UnknownName(f"setting of {inside}" if inside else "setting", key, known, meant))

"""Reading settings of any kind: from YAML and `key=value`, and checking them against a class that says what there is.

Every mistake ends in one ConfigError that lists all problems with their places; an unknown key names the nearest known one,
beside it or in another group of settings, also by what other libraries call it.
"""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import ScalarNode

from perdure.errors import ConfigError, PerdureError, UnknownName, nearest

Model = TypeVar("Model", bound=BaseModel)


class Settings(BaseModel):
    """Frozen; unknown keys are errors, and so are infinite numbers, and true or false for a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        if _truth_for_a_number(cls.model_fields[info.field_name or ""].annotation, value):
            raise ValueError("should be a number, not true or false")
        return value


def _truth_for_a_number(annotation: Any, value: Any) -> bool:
    """Whether a truth value stands where the type has numbers: pydantic would take it for 1 or 0."""
    kinds = typing.get_args(annotation)
    if typing.get_origin(annotation) is Annotated:
        return _truth_for_a_number(kinds[0], value)
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return bool not in kinds and any(_truth_for_a_number(kind, value) for kind in kinds)
    if typing.get_origin(annotation) in (tuple, list) and isinstance(value, list | tuple):
        return any(_truth_for_a_number(kinds[0], one) for one in value)
    return annotation in (int, float) and isinstance(value, bool)


class _Constructor(SafeConstructor):
    """Plain numbers as YAML 1.2 has them; what a label or a commit may look like (007, 1_000, 12e34, a date) stays text."""

    def as_written(self, node: ScalarNode) -> Any:
        if re.fullmatch(r"0|[-+]?[1-9]\d*", node.value):
            return int(node.value)
        if re.fullmatch(r"[-+]?[\d_]*([eE]\d+)?|0.*[xob_].*", node.value):
            return node.value
        return self.construct_yaml_float(node)


for _tag in ("int", "float"):
    _Constructor.add_constructor(f"tag:yaml.org,2002:{_tag}", _Constructor.as_written)
_Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


def parse_yaml(text: str) -> Any:
    """YAML 1.2 as plain values.

    Raises:
        YAMLError: it is not valid, or a key is given twice; says where.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    try:
        return yaml.load(text)
    except MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise YAMLError(f"{line}{error.problem or error.context}") from error
    except (ValueError, LookupError, RecursionError) as error:  # what a tag such as !!int promises and the value is not
        raise YAMLError(f"{type(error).__name__}: {error}") from error


def read_yaml(path: Path, what: str, error: type[PerdureError] = ConfigError) -> dict[str, Any]:
    """The settings in a YAML file; `what` it is (a sweep, a task) is named in errors.

    Raises:
        error: the file is missing, unreadable or not valid YAML, or holds no settings.
    """
    try:
        if not path.is_file():
            raise error(f"There is no {what} file '{path}'.")
        data = parse_yaml(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as broken:
        raise error(f"'{path}' is not valid YAML: {broken}. Fix it, or put the text in quotes.") from broken
    except OSError as unread:
        reason = unread.strerror or unread
        raise error(
            f"Cannot read the {what} file '{path}': {reason}. Check its permissions, or give another file."
        ) from unread
    if not isinstance(data, dict):
        raise error(f"'{path}' must hold settings as `key: value` lines.")
    return data


def parse_overrides(pairs: list[str]) -> dict[str, Any]:
    """['training.epochs=2', ...] -> {'training.epochs': 2, ...}; values are read as YAML.

    Raises:
        ConfigError: a pair without '=', or a value that is not valid YAML.
    """
    overrides: dict[str, Any] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not key:
            raise ConfigError(f"'{pair}' is not a setting; write key=value, for example training.epochs=2.")
        try:
            parsed = parse_yaml(value)
        except YAMLError as error:
            raise ConfigError(f"The value of '{key}' is not valid YAML: {value!r}. Put text in quotes.") from error
        # without quotes 2E5 is a number here; in a file it stays text, for labels
        overrides[key] = float(parsed) if parsed == value.strip() and POWER.fullmatch(parsed) else parsed
    return overrides


POWER = re.compile(r"[-+]?\d+[eE]\d+")
OWN = re.compile(r"[\w.]+:\w+")
"""module:Class"""
SHORT = {
    "method": "preset",
    "backbone": "model",
    **dict.fromkeys(("init", "consolidate", "replay", "step_rule"), "kind"),
}
"""Settings that a name alone may stand for -> which of theirs the name is."""


WHICH = {"model", "kind"}
"""Settings of a backbone that say which it is."""


def with_override(data: Mapping[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    """A copy of `data` with `a.b.c` set to `value`; a backbone's name leaves settings that were given without one as they are."""
    return _with(data, _keys_of(dotted), value)


def _keys_of(dotted: str) -> list[str]:
    """Its keys, of which a penalty of your own is one: penalties.lab.parts:Overlap.weight."""
    before, mark, after = dotted.partition("penalties.")
    if not mark or not (own := OWN.match(after)):
        return dotted.split(".")
    return [*f"{before}penalties".split("."), own[0], *filter(None, after[own.end() :].split("."))]


def _with(data: Mapping[str, Any], keys: Sequence[str], value: Any) -> dict[str, Any]:
    head, *rest = keys
    current = data.get(head)
    if not rest:
        if (
            head == "backbone"
            and isinstance(value, str)
            and isinstance(current, Mapping)
            and not current.keys() & WHICH
        ):
            value = {**current, SHORT[head]: value}
        return {**data, head: value}
    if isinstance(current, str) and head in SHORT:
        current = {SHORT[head]: current}
    if not isinstance(current, Mapping | None):
        raise ConfigError(f"'{head}' is {current!r:.80} and has no '{'.'.join(rest)}'; write {head}=value.")
    return {**data, head: _with(current or {}, rest, value)}


def validate(model: type[Model], data: Any, where: str = "") -> Model:
    """`data` as a `model`, or one ConfigError that lists every problem with its place."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(model, e, where) for e in _by_place(model, error.errors()))) from error


def _by_place(model: type[BaseModel], errors: Iterable[Any]) -> Iterator[Any]:
    """Errors with a setting that may be of several kinds once, not once for each kind."""
    found: dict[Any, list[Any]] = {}
    for number, error in enumerate(errors):
        kinds = _place_of_kinds(model, error["loc"])
        found.setdefault(kinds or (number,), []).append({**error, "loc": kinds or error["loc"]})
    for same in found.values():
        said = list(dict.fromkeys(_said(error) for error in same))
        yield {**same[0], "said": " or ".join([said[0], *(line.removeprefix("should be ") for line in said[1:])])}


def _place_of_kinds(model: type[BaseModel], loc: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """The place of a setting that may be of several plain kinds, where `loc` goes on with the name of one of them."""
    for end in range(len(loc) - 1, 0, -1):
        owner, last = _owner(model, loc[: end - 1]), loc[end - 1]
        field = owner.model_fields.get(last) if owner and isinstance(last, str) else None
        kinds = typing.get_args(field.annotation) if field else ()
        if field and (
            isinstance(field.annotation, types.UnionType) or typing.get_origin(field.annotation) is typing.Union
        ):
            plain = not any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in kinds)
            return loc[:end] if plain and len([kind for kind in kinds if kind is not type(None)]) > 1 else None
    return None


def _said(error: Any) -> str:
    """What is wrong with a value, in words."""
    message = error["msg"].removeprefix("Value error, ").replace("Input should", "should")
    return EXPECTED.get(error["type"]) or message


def _explain(model: type[BaseModel], error: Any, where: str) -> str:
    place = ".".join(str(part) for part in (*([where] if where else []), *error["loc"])) or "settings"
    if error["type"] == "extra_forbidden":
        key = str(error["loc"][-1])
        inside = ".".join(str(part) for part in (*([where] if where else []), *error["loc"][:-1]))
        return unknown_key(model, key, error["input"], _owner(model, error["loc"][:-1]), inside)
    return f"{place}: {error['said']} (got {error['input']!r:.80})"


ALIASES = {
    **dict.fromkeys(("lr",), "learning_rate"),
    **dict.fromkeys(("epoch", "num_epochs", "num_train_epochs", "n_epochs"), "epochs"),
    **dict.fromkeys(("bs", "batch", "batchsize", "per_device_train_batch_size"), "batch_size"),
    **dict.fromkeys(("grad_accum", "gradient_accumulation_steps"), "accumulation"),
    **dict.fromkeys(("warmup", "warmup_ratio"), "warmup_share"),
    **dict.fromkeys(("scheduler", "lr_scheduler", "lr_scheduler_type"), "schedule"),
    **dict.fromkeys(("wd", "decay"), "weight_decay"),
    **dict.fromkeys(("clip", "grad_clip", "max_norm"), "max_grad_norm"),
    **dict.fromkeys(("r", "lora_r", "lora_rank"), "rank"),
    **dict.fromkeys(("lora_alpha",), "alpha"),
    **dict.fromkeys(("lora_dropout",), "dropout"),
    **dict.fromkeys(("target_modules", "modules"), "targets"),
    **dict.fromkeys(("use_rslora",), "rslora"),
    **dict.fromkeys(("model", "base_model", "model_name"), "backbone"),
    **dict.fromkeys(("max_length", "max_len", "max_seq_length"), "backbone.max_length"),
}
"""What people and other libraries call a setting -> its name here."""


def unknown_key(
    model: type[BaseModel],
    key: str,
    value: Any = None,
    owner: type[BaseModel] | None = None,
    inside: str = "",
    beside: Iterable[str] = (),
) -> str:
    """That settings of a `model` know no `key`, and which was meant: one beside it, or inside another group of settings.

    Args:
        owner, inside: the class that was given the key and its place, where that is not the model itself.
        beside: names that may stand there too.
    """
    own = [*(owner.model_fields if owner else () if inside else model.model_fields), *beside]
    head, _, rest = key.partition(".")
    if rest and head in own:
        nested = with_override({}, rest, value)
        in_file = f"{head}: " + re.sub(r'"([a-z][\w-]*)"', r"\1", json.dumps(nested))
        return f"'{key}' is a setting inside `{head}`: write {head}={nested!r:.80} (in a file `{in_file:.80}`)."
    names = {name: name for name in own} | {leaf: p for leaf, p in _leaves(model).items() if leaf not in own}
    same = ALIASES.get(key.casefold(), "")
    group, _, leaf = same.rpartition(".")
    meant = same if group and group in own else names.get(leaf) or nearest(key, names)
    return str(UnknownName(f"setting of {inside}" if inside else "setting", key, own, meant))


def _leaves(model: type[BaseModel]) -> dict[str, str]:
    """Names of the settings inside the model's groups of settings -> where they are."""
    found: dict[str, str] = {}
    for group, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= {leaf: f"{group}.{leaf}" for leaf in field.annotation.model_fields}
    return found


EXPECTED = {
    **dict.fromkeys(("tuple_type", "list_type"), "expected a list, as in [a, b]"),
    **dict.fromkeys(
        ("dict_type", "mapping_type", "model_type", "model_attributes_type"), "expected settings, as in {key: value}"
    ),
    "missing": "is missing",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "should be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "should be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "should be true or false"),
}
"""Kinds of mistakes -> what a person should have written, where the words of the validation are those of a programmer."""


def _owner(model: type[BaseModel], path: tuple[Any, ...]) -> type[BaseModel] | None:
    """The settings class at `path`, to name the keys it knows."""
    current: Any = model
    for part in path:
        if isinstance(part, int):  # an item of a tuple[Settings, ...]
            current = next(iter(typing.get_args(current)), None)
            continue
        field = current.model_fields.get(part) if isinstance(current, type) and issubclass(current, BaseModel) else None
        current = field.annotation if field else None
        if isinstance(current, types.UnionType) or typing.get_origin(current) is typing.Union:
            current = next((a for a in typing.get_args(current) if isinstance(a, type)), None)
    return current if isinstance(current, type) and issubclass(current, BaseModel) else None

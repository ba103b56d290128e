"""Resolves the setting `method`: a preset's name, or a composition of parts -> the whole composition."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any

from perdure.errors import ConfigError, UnknownName
from perdure.methods.table import PARTS, PRESETS, WANTED, Role, StreamMode

CUSTOM = "module:Class (custom)"
"""How error messages list a part that is not in `PARTS`."""
EXAMPLE = '{penalties: {"my_parts:MyPenalty": {weight: 0.1}}}'
EXCLUSIVE = {"weight", "gradient_share"}
"""Settings of a penalty that replace each other."""


def resolve_method(value: Any) -> dict[str, Any]:
    """A preset's name or a composition -> the whole composition: {name, init, consolidate, penalties, ...}.

    A composition may start from a preset (`preset: ps-lora`) and change parts of it. Settings of the same part are merged, a
    part of another kind replaces it, and null removes an optional one.

    Raises:
        UnknownName: no preset or part has that name.
        ConfigError: a required part is null, or a value is not a part.
    """
    if isinstance(value, str) and ":" in value:
        raise ConfigError(f"method: '{value}' is a custom part, not a method. Put it in its place, like {EXAMPLE}.")
    if isinstance(value, str):
        value = {"preset": value}
    if not isinstance(value, Mapping) or not value:
        got = "an empty one" if value == {} else type(value).__name__
        raise ConfigError(f"method: expected a preset's name or a mapping of parts, like {EXAMPLE}; got {got}.")
    given = dict(value)
    name = given.pop("name", None)
    preset = given.pop("preset", None)
    if preset is not None and (not isinstance(preset, str) or preset not in PRESETS):
        raise UnknownName("method", str(preset), PRESETS)
    resolved = PRESETS[preset or "inc-lora"].composition()
    kinds = _kinds(resolved)
    resolved.setdefault("head", None)
    for key, part in given.items():
        if key not in resolved:
            raise UnknownName("key of `method`", key, [*resolved, "preset"])
        resolved[key] = _changed(key, resolved[key], part)
    if resolved["head"] is None:
        del resolved["head"]  # as `Preset.composition` leaves it out
    resolved["name"] = name or (preset if preset and _kinds(resolved) == kinds else "custom")
    return resolved


def wanted_settings(value: Any) -> dict[str, Any]:
    """Defaults (dotted) that a method sets for the run: those of its init, then those of the preset it starts from.

    Args:
        value: as for `resolve_method`, with the same errors.
    """
    preset = value.get("preset") if isinstance(value, Mapping) else value
    init = resolve_method(value)["init"]["kind"]
    return {**WANTED.get(init, {}), **(PRESETS[preset].settings if preset else {})}


def _kinds(composition: Mapping[str, Any]) -> dict[str, Any]:
    kinds = {key: part and part["kind"] for key, part in composition.items() if key in PARTS}
    penalties = sorted(part["kind"] for part in composition["penalties"].values())
    return {**kinds, "penalties": penalties, "stream": composition["stream"]}


def _changed(key: str, current: Any, given: Any) -> Any:
    if key == "stream":
        if given not in typing.get_args(StreamMode):
            raise UnknownName("stream", str(given), typing.get_args(StreamMode))
        return given
    if key == "penalties":
        return {} if given is None else _penalties(current, given)
    if given is None and key in ("step_rule", "replay", "head"):
        return None
    if given is None:
        raise ConfigError(f"method.{key}: cannot be empty; choose one with `kind`.")
    if not isinstance(given, str | Mapping):
        raise ConfigError(f"method.{key}: expected a name, {CUSTOM}, or a mapping with `kind`; got {given!r:.80}.")
    given = {"kind": given} if isinstance(given, str) else dict(given)
    role: Role = key  # pyright: ignore[reportAssignmentType]  (the other keys were handled above)
    same_kind = isinstance(current, Mapping) and given.get("kind", current["kind"]) == current["kind"]
    part = {**current, **given} if same_kind else given
    if "kind" not in part:
        raise ConfigError(f"method.{key}: choose one with `kind`. Known: {', '.join(sorted(PARTS[role]))}.")
    _check_kind(role, part["kind"])
    return part


def _penalties(current: Mapping[str, Any], given: Any) -> dict[str, Any]:
    """A composition's penalties, with the given ones changed, added, or removed (null)."""
    if not isinstance(given, Mapping):
        raise ConfigError("method.penalties: expected a mapping of penalties, as in {sign-magnitude: {weight: 0.01}}.")
    merged = dict(current)
    for name, settings in given.items():
        if not isinstance(name, str) or "/" in name:  # '/' ends a penalty's name in the run's files
            raise ConfigError(
                f"method.penalties: {name!r:.80} is not a penalty's name. Give a string without '/' "
                f"({_as_custom(name) or CUSTOM})."
            )
        if settings is None:
            merged.pop(name, None)
        elif not isinstance(settings, Mapping):
            raise ConfigError(
                f"method.penalties.{name}: expected a mapping, as in {{weight: 0.01}}; got {settings!r:.80}."
            )
        else:
            base = current.get(name, {"kind": name})
            if settings.get("kind", base["kind"]) != base["kind"]:
                base = {}
            elif any(settings.get(key) is not None for key in EXCLUSIVE):
                base = {key: value for key, value in base.items() if key not in EXCLUSIVE - settings.keys()}
            merged[name] = {**base, **settings}
        _check_kind("penalty", merged.get(name, {"kind": name})["kind"])
    return merged


def _check_kind(role: Role, kind: Any) -> None:
    if str(kind) not in PARTS[role] and not (isinstance(kind, str) and ":" in kind):
        raise UnknownName(role.replace("_", " "), str(kind), [*PARTS[role], CUSTOM], _as_custom(kind))


def _as_custom(kind: Any) -> str | None:
    """`module:Class` for a class or its dotted name, None for anything else."""
    if isinstance(kind, type):
        return f"{kind.__module__}:{kind.__qualname__}"
    module, _, name = str(kind).rpartition(".")
    return f"{module}:{name}" if all(map(str.isidentifier, [*module.split("."), name])) else None

"""What a method is made of, as settings: a preset's name, or a composition of parts -> the whole composition."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any

from perdure.errors import ConfigError, UnknownName
from perdure.methods.table import PARTS, PRESETS, WANTED, Role, StreamMode

OWN = "module:Class of your own"
"""How a part is named that is no row of `PARTS`."""
EXAMPLE = '{penalties: {"my_parts:MyPenalty": {weight: 0.1}}}'


def resolve_method(value: Any) -> dict[str, Any]:
    """A preset's name or a composition -> the whole composition: {name, init, consolidate, penalties, ...}.

    A composition may start from a preset (`preset: ps-lora`) and change parts of it; settings of a part that stays are
    changed one by one, a part of another kind replaces it, and null takes out what a method can do without.

    Raises:
        UnknownName: no preset or part of that name.
        ConfigError: no part where every method has one, or something else than a part.
    """
    if isinstance(value, str) and ":" in value:
        raise ConfigError(
            f"method: '{value}' is a part of your own, not a method; say where it stands, like {EXAMPLE}."
        )
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
    resolved = PRESETS[preset].composition() if preset else PRESETS["inc-lora"].composition()
    usual = _kinds(resolved)
    for key, part in given.items():
        if key not in resolved:
            raise UnknownName("key of `method`", key, [*resolved, "preset"])
        resolved[key] = _changed(key, resolved[key], part)
    resolved["name"] = name or (preset if preset and _kinds(resolved) == usual else "custom")
    return resolved


def wanted_settings(value: Any) -> dict[str, Any]:
    """Settings of the run, dotted, that a method wants where none are given: its init's, and those of the preset it starts from.

    Args:
        value: as for `resolve_method`, which raises the same errors.
    """
    preset = value.get("preset") if isinstance(value, Mapping) else value
    init = resolve_method(value)["init"]["kind"]
    return {**WANTED.get(init, {}), **(PRESETS[preset].settings if preset else {})}


def _kinds(composition: Mapping[str, Any]) -> dict[str, Any]:
    """Which parts a composition is made of, whatever their settings."""
    kinds = {key: part and part["kind"] for key, part in composition.items() if key in PARTS}
    penalties = sorted(part["kind"] for part in composition["penalties"].values())
    return {**kinds, "penalties": penalties, "stream": composition["stream"]}


def _changed(key: str, current: Any, given: Any) -> Any:
    """One entry of a composition with what was given for it."""
    if key == "stream":
        if given not in typing.get_args(StreamMode):
            raise UnknownName("stream", str(given), typing.get_args(StreamMode))
        return given
    if key == "penalties":
        return {} if given is None else _penalties(current, given)
    if given is None and key in ("step_rule", "replay"):
        return None
    if given is None:
        raise ConfigError(f"method.{key}: cannot be empty; say which with `kind`.")
    if not isinstance(given, str | Mapping):
        raise ConfigError(f"method.{key}: expected a name or a mapping with `kind` (or {OWN}), got {given!r:.80}.")
    given = {"kind": given} if isinstance(given, str) else dict(given)
    role: Role = key  # pyright: ignore[reportAssignmentType]  (the other keys were handled above)
    same_kind = isinstance(current, Mapping) and given.get("kind", current["kind"]) == current["kind"]
    part = {**current, **given} if same_kind else given
    if "kind" not in part:
        raise ConfigError(f"method.{key}: say which with `kind`. Known: {', '.join(sorted(PARTS[role]))}.")
    _known(role, part["kind"])
    return part


def _penalties(current: Mapping[str, Any], given: Any) -> dict[str, Any]:
    """The penalties of a composition with those given changed, added, or (null) taken out."""
    if not isinstance(given, Mapping):
        raise ConfigError("method.penalties: expected a mapping of penalties, like {sign-magnitude: {weight: 0.01}}.")
    merged = dict(current)
    for name, settings in given.items():
        _check_name(name)
        if settings is None:
            merged.pop(name, None)
        elif not isinstance(settings, Mapping):
            raise ConfigError(
                f"method.penalties.{name}: expected a mapping like {{weight: 0.01}}, got {settings!r:.80}."
            )
        else:
            own = current.get(name, {"kind": name})
            same_kind = settings.get("kind", own["kind"]) == own["kind"]
            merged[name] = _weighted(dict(own), dict(settings)) if same_kind else dict(settings)
        _known("penalty", merged.get(name, {"kind": name})["kind"])
    return merged


def _check_name(name: Any) -> None:
    """A penalty's name is text without '/', which ends a name in the files of a run.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(name, str) or "/" in name:
        raise ConfigError(
            f"method.penalties: {name!r:.80} is no name of a penalty: give text without '/' ({_as_own(name) or OWN})."
        )


def _weighted(current: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Settings of a penalty; giving one of `weight` and `gradient_share` takes the other back."""
    for one, other in (("weight", "gradient_share"), ("gradient_share", "weight")):
        if given.get(one) is not None:
            current.pop(other, None)
    return {**current, **given}


def _known(role: Role, kind: Any) -> None:
    """A row of `PARTS`, or `module:Class` of your own."""
    if str(kind) in PARTS[role] or (isinstance(kind, str) and ":" in kind):
        return
    raise UnknownName(role.replace("_", " "), str(kind), [*PARTS[role], OWN], _as_own(kind))


def _as_own(kind: Any) -> str | None:
    """`module:Class` for a class itself, or for its dotted name; None for anything else (null or a number, too)."""
    if isinstance(kind, type):
        return f"{kind.__module__}:{kind.__qualname__}"
    module, _, name = str(kind).rpartition(".")
    return f"{module}:{name}" if all(map(str.isidentifier, [*module.split("."), name])) else None

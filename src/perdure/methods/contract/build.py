"""From a composition (names and settings) to a method (parts)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from perdure.errors import ConfigError, UnmetNeed
from perdure.methods.contract.context import Need
from perdure.methods.contract.own import check_written, imported
from perdure.methods.contract.parts import Consolidate, Head, Init, Keeps, Method, Part, Penalty, Replay, StepRule
from perdure.methods.table import PARTS, Role, kind_of
from perdure.settings.read import validate
from perdure.tasks.task import Stage

ROLES: Mapping[Role, type[Part]] = {
    "init": Init,
    "penalty": Penalty,
    "step_rule": StepRule,
    "consolidate": Consolidate,
    "replay": Replay,
    "head": Head,
}


def build_method(composition: Mapping[str, Any]) -> Method:
    """The method of a resolved composition (`perdure.config.composition.resolve_method`).

    Raises:
        ConfigError: an unknown or bad setting of a part, with its place; parts that cannot be used together.
    """

    single: tuple[Role, ...] = ("step_rule", "replay", "head", "init", "consolidate")
    penalties = composition["penalties"].items()
    method = Method(
        name=composition["name"],
        stream=composition["stream"],
        **{role: _part(role, composition.get(role), f"method.{role}") for role in single},
        penalties={name: _part("penalty", settings, f"method.penalties.{name}") for name, settings in penalties},
    )
    check_composition(method)
    return method


def build_head(composition: Mapping[str, Any]) -> Head | None:
    """The head of a composition alone: what answers beside the adapter needs no other part. For errors see `build_method`."""
    return _part("head", composition.get("head"), "method.head")


def _part(role: Role, settings: Mapping[str, Any] | None, where: str) -> Any:
    if not settings:
        return None
    given = {key: value for key, value in settings.items() if key != "kind"}
    return validate(part_class(role, settings["kind"]), given, where)


def check_composition(method: Method) -> None:
    """Every part makes sense beside the others.

    Raises:
        ConfigError: names the part that does not, and the reason.
    """
    if (keeps := method.consolidate.keeps) not in (known := get_args(Keeps)):
        raise ConfigError(f"{kind_of(method.consolidate)}.keeps is {keeps!r}; known: {', '.join(known)}.")
    for name, part in method.parts().items():
        switched_off = isinstance(part, Penalty) and part.weight == 0
        if not switched_off and (reason := part.conflicts(method)):
            raise ConfigError(f"Method '{method.name}', {name}: {kind_of(part)} cannot be used here: {reason}.")


def part_class(role: Role, kind: str) -> type[Part]:
    """The class behind a row of `PARTS`, or behind a custom `module:Class`.

    Raises:
        ConfigError: no such module or class, not a part of that role, or a class that lacks a required method.
    """
    name = role.replace("_", " ")
    found = imported(PARTS[role].get(kind, kind), name)
    if not (isinstance(found, type) and issubclass(found, ROLES[role])):
        raise ConfigError(f"'{kind}' is not a {name}: make it a subclass of {ROLES[role].__name__}.")
    check_written(found)
    return found


def own_part(part: str | type[Part]) -> tuple[Role, type[Part]]:
    """The role and the class of a custom part, given as `module:Class` or as the class.

    Raises:
        ConfigError: no such module or class, not a part, or a class that lacks a required method.
    """
    found = imported(part, "part") if isinstance(part, str) else part
    for role, base in ROLES.items():
        if isinstance(found, type) and issubclass(found, base):
            check_written(found)
            return role, found
    known = ", ".join(base.__name__ for base in ROLES.values())
    raise ConfigError(f"{found!r:.80} is not a part: make it a subclass of {known} (perdure.parts).")


def check_needs(method: Method, offered: Iterable[Need]) -> None:
    """Every need of every part is met.

    Raises:
        UnmetNeed: names the part and what it requires.
    """
    have = set(offered)
    for name, part in method.parts().items():
        for need in sorted(part.requires() - have, key=lambda n: n.name):
            raise UnmetNeed(f"Method '{method.name}', {name}: {kind_of(part)} requires {need.value}.")


def check_stages(method: Method, stages: Sequence[Stage]) -> None:
    """Every part can last through all of these stages.

    Raises:
        ConfigError: names the part, and what to set.
    """
    for name, part in method.parts().items():
        if reason := part.falls_short(stages):
            raise ConfigError(f"Method '{method.name}', {name}: {reason}.")

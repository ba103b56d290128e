"""From a composition (names and settings) to a method (parts)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from perdure.errors import ConfigError, UnmetNeed
from perdure.methods.contract.context import Need
from perdure.methods.contract.own import check_keeps, check_written, imported
from perdure.methods.contract.parts import Consolidate, Init, Method, Part, Penalty, Replay, StepRule
from perdure.methods.table import PARTS, Role, kind_of
from perdure.settings.read import validate

if TYPE_CHECKING:
    from perdure.tasks.task import Stage

ROLES: Mapping[Role, type[Part]] = {
    "init": Init,
    "penalty": Penalty,
    "step_rule": StepRule,
    "consolidate": Consolidate,
    "replay": Replay,
}


def build_method(composition: Mapping[str, Any]) -> Method:
    """The method of a resolved composition (`perdure.config.composition.resolve_method`).

    Raises:
        ConfigError: an unknown or bad setting of a part, with its place; parts that have no meaning together.
    """
    method = _composed(composition)
    check_composition(method)
    return method


def check_composition(method: Method) -> None:
    """Every part has a meaning beside the others.

    Raises:
        ConfigError: names the part, and says why it has none.
    """
    check_keeps(method.consolidate)
    for name, part in method.parts().items():
        switched_off = isinstance(part, Penalty) and part.weight == 0
        if not switched_off and (reason := part.conflicts(method)):
            raise ConfigError(f"Method '{method.name}', {name}: {kind_of(part)} has no meaning here: {reason}.")


def _composed(composition: Mapping[str, Any]) -> Method:
    optional = {
        role: _part(role, composition[role], f"method.{role}") if composition[role] else None
        for role in ("step_rule", "replay")
    }
    return Method(
        name=composition["name"],
        init=_part("init", composition["init"], "method.init"),
        consolidate=_part("consolidate", composition["consolidate"], "method.consolidate"),
        penalties={
            name: _part("penalty", settings, f"method.penalties.{name}")
            for name, settings in composition["penalties"].items()
        },
        stream=composition["stream"],
        **optional,
    )


def part_class(role: Role, kind: str) -> type[Part]:
    """The class behind a row of `PARTS`, or behind `module:Class` of your own.

    Raises:
        ConfigError: there is no such module or class, it is no part for that role, or lacks what its role must have.
    """
    found = imported(PARTS[role].get(kind, kind), role.replace("_", " "))
    if not (isinstance(found, type) and issubclass(found, ROLES[role])):
        raise ConfigError(f"'{kind}' is no {role.replace('_', ' ')}: make it a subclass of {ROLES[role].__name__}.")
    check_written(found)
    return found


def own_part(place: str) -> tuple[Role, type[Part]]:
    """The role and the class of `module:Class`.

    Raises:
        ConfigError: nothing stands there, it is no part, or lacks what its role must have.
    """
    role = role_of(imported(place, "part"))
    return role, part_class(role, place)


def role_of(part: Any) -> Role:
    """The role a class of parts has.

    Raises:
        ConfigError: it is no such class.
    """
    roles: list[Role] = [role for role, base in ROLES.items() if isinstance(part, type) and issubclass(part, base)]
    if roles:
        return roles[0]
    known = ", ".join(base.__name__ for base in ROLES.values())
    raise ConfigError(f"{part!r:.80} is no part: make it a subclass of {known} (perdure.parts).")


def _part(role: Role, settings: Mapping[str, Any], where: str) -> Any:
    own = {key: value for key, value in settings.items() if key != "kind"}
    return validate(part_class(role, settings["kind"]), own, where)


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
    """Every part can see these stages through to the last.

    Raises:
        ConfigError: names the part, and what to set.
    """
    for name, part in method.parts().items():
        if reason := part.falls_short(stages):
            raise ConfigError(f"Method '{method.name}', {name}: {reason}.")

"""What `perdure methods show` prints: the parts of a preset, or one part, with every setting, its default and its meaning."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from perdure.config.composition import wanted_settings
from perdure.errors import UnknownName
from perdure.methods.contract.build import own_part, part_class
from perdure.methods.table import PARTS, PRESETS, Preset, Role
from perdure.settings.words import in_yaml, keys


def method_lines(name: str) -> Iterator[str]:
    """Lines about the preset of that name; where there is none, about every part of that name, or `module:Class` of your own.

    Raises:
        UnknownName: neither a preset nor a part.
    """
    if preset := PRESETS.get(name):
        yield from _preset(name, preset)
        return
    roles: list[Role] = [role for role, kinds in PARTS.items() if name in kinds]
    if not roles and ":" in name:
        roles = [own_part(name)[0]]
    if not roles:
        raise UnknownName("method or part", name, {*PRESETS, *(kind for kinds in PARTS.values() for kind in kinds)})
    for role in roles:
        key = f"method.penalties.{name}" if role == "penalty" else f"method.{role}"
        yield from _part(role, {"kind": name}, key)


def _preset(name: str, preset: Preset) -> Iterator[str]:
    row = preset.composition()
    yield f"{name}: {preset.promise}  [{preset.source}]"
    yield f"Learnt: {row['stream']}. Explained in docs/methods/{name}.md."
    for setting, value in wanted_settings(name).items():
        yield f"{setting}={in_yaml(value)} where nothing else is given."
    for role in PARTS:
        if role != "penalty" and row[role]:
            yield from _part(role, row[role], f"method.{role}")
    for own, settings in row["penalties"].items():
        yield from _part("penalty", settings, f"method.penalties.{own}")


def _part(role: Role, given: Mapping[str, Any], key: str) -> Iterator[str]:
    """A part as its class tells of it; a setting stands as it is given on the command line."""
    found = part_class(role, given["kind"])
    promise = (inspect.getdoc(found) or "").partition("\n")[0]
    yield ""
    yield f"{key}.kind={given['kind']}"
    yield f"    {promise}"
    for setting in keys(found):
        value = in_yaml(given[setting.name]) if setting.name in given else setting.default
        yield f"  {key}.{setting.name}={'' if value is None else value}    {setting.values}"
        if setting.meaning:
            yield f"    {setting.meaning}"

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
    """Lines about the preset called `name`; else about every part called so, or the custom part `module:Class`.

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
    composition = preset.composition()
    yield f"{name}: {preset.summary}  [{preset.source}]"
    yield f"Stream: {composition['stream']}. Explained in docs/methods/{name}.md."
    for setting, value in wanted_settings(name).items():
        yield f"{setting}={in_yaml(value)} by default."
    for role in PARTS:
        if role != "penalty" and composition.get(role):
            yield from _part(role, composition[role], f"method.{role}")
    for penalty, settings in composition["penalties"].items():
        yield from _part("penalty", settings, f"method.penalties.{penalty}")


def _part(role: Role, given: Mapping[str, Any], key: str) -> Iterator[str]:
    """A part's summary and settings, each as it would be given on the command line."""
    cls = part_class(role, given["kind"])
    summary = (inspect.getdoc(cls) or "").partition("\n")[0]
    yield from ("", f"{key}.kind={given['kind']}", f"    {summary}")
    for setting in keys(cls):
        value = in_yaml(given[setting.name]) if setting.name in given else setting.default
        yield f"  {key}.{setting.name}={'' if value is None else value}    {setting.values}"
        if setting.meaning:
            yield f"    {setting.meaning}"

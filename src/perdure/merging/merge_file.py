"""A merge written down in YAML: which adapters, which rule, and other rules for some modules.

rule: ties
density: 0.2
adapters: [runs/news, {path: runs/mail, weight: 0.5}]
base: models/llama          # or rank: 64
out: merged
overrides:
  - {modules: "*.v_proj", rule: max-magnitude}
  - {modules: "*.layers.[01].*", density: 0.5}    # the same rule, one setting changed

With `rule: guarded` (tolerance, confidence) and `covariance-gain`: `tasks`, `order`, `backbone`, `kind` as on the command line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from perdure.errors import ConfigError
from perdure.merging.rules import Rule, name_of, rule_named
from perdure.settings.read import Settings, read_yaml, validate


class Override(Settings):
    """Another rule, or another setting of the same rule, for the modules whose names match a pattern."""

    modules: str
    rule: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, value: Any) -> Any:
        """Everything beside `modules` and `rule` is a setting of the rule."""
        if not isinstance(value, Mapping):
            return value
        own = {key: value[key] for key in ("modules", "rule") if key in value}
        rest = {key: part for key, part in value.items() if key not in ("modules", "rule", "settings")}
        return {**own, "settings": _with_rest(value.get("settings"), rest)}

    def chosen(self, rule: Rule) -> Rule:
        """The rule it stands for, given the merge's own.

        Raises:
            UnknownName, ConfigError: no such rule or setting.
        """
        if self.rule is None or self.rule == name_of(rule):
            return rule_named(name_of(rule), {**rule.model_dump(exclude_unset=True), **self.settings})
        return rule_named(self.rule, self.settings)


def rules_by_module(modules: Iterable[str], rule: Rule, overrides: Sequence[Override]) -> dict[str, Rule]:
    """Module -> its rule: that of the first override whose pattern matches, else the merge's own.

    Modules under one override share the very same object: a rule that looks at a whole update (TIES) knows which are its own.

    Raises:
        ConfigError: an override that matches no module.
    """
    chosen = [override.chosen(rule) for override in overrides]
    found: dict[str, Rule] = {}
    used: set[int] = set()
    for module in modules:
        place = next((i for i, override in enumerate(overrides) if fnmatchcase(module, override.modules)), None)
        found[module] = rule if place is None else chosen[place]
        used |= {place} if place is not None else set()
    if unused := [override.modules for i, override in enumerate(overrides) if i not in used]:
        examples = ", ".join(list(found)[:3])
        raise ConfigError(f"No module matches the override '{unused[0]}'. Modules are called like: {examples}.")
    return found


class Source(Settings):
    """One adapter of a merge file."""

    path: str
    weight: float | None = None


class MergeFile(Settings):
    """A merge as it is written down; keys that are not listed here are settings of the rule."""

    rule: str
    adapters: tuple[Source, ...] = ()
    out: str | None = None
    base: str | None = None
    rank: int | None = Field(default=None, ge=1)
    dtype: str | None = None
    overrides: tuple[Override, ...] = ()
    tasks: str | None = None
    order: str | None = None
    backbone: str | None = None
    kind: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, value: Any) -> Any:
        """Bare paths become sources; keys of no field become settings of the rule."""
        if not isinstance(value, Mapping):
            return value
        known = {key: part for key, part in value.items() if key in cls.model_fields}
        rest = {key: part for key, part in value.items() if key not in cls.model_fields}
        listed = known.get("adapters") or []
        if isinstance(listed, list):  # else the validation says what is expected
            listed = [{"path": item} if isinstance(item, str) else item for item in listed]
        return {**known, "adapters": listed, "settings": _with_rest(known.get("settings"), rest)}

    def chosen(self) -> Rule:
        """The rule with its settings, and the adapters' weights if any is given.

        Raises:
            UnknownName, ConfigError: no such rule or setting.
        """
        weights = [source.weight for source in self.adapters]
        settings = dict(self.settings)
        if any(weight is not None for weight in weights):
            if "weights" in settings:
                raise ConfigError("Give weights beside the adapters or as a list `weights`, not both.")
            settings["weights"] = [1.0 if weight is None else weight for weight in weights]
        return rule_named(self.rule, settings)


def _with_rest(settings: Any, rest: Mapping[str, Any]) -> Any:
    """What stands under `settings`, with the `rest`; what is no mapping stays as it is, for the validation to refuse."""
    return {**(settings or {}), **rest} if isinstance(settings or {}, Mapping) else settings


def read_merge_file(path: Path) -> MergeFile:
    """A merge file, with its relative paths taken from where it lies.

    Raises:
        ConfigError: no such file, no YAML, or a bad value; each with its place.
    """
    found = validate(MergeFile, read_yaml(path, "merge"), str(path))
    here = path.parent

    def placed(place: str) -> str:
        return str(here / place) if (here / place).exists() else place

    sources = tuple(Source(path=placed(source.path), weight=source.weight) for source in found.adapters)
    named = {key: placed(place) for key in ("base", "tasks", "backbone") if (place := getattr(found, key)) is not None}
    if found.out is not None:
        named["out"] = str(here / found.out)
    return found.model_copy(update={"adapters": sources, **named})

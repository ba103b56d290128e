"""A merge as a YAML file (docs/merging.md): which adapters, which rule, and other rules for some modules.

{rule: ties, density: 0.2, adapters: [runs/news, {path: runs/mail, weight: 0.5}], rank: 64, out: merged,
 overrides: [{modules: "*.v_proj", rule: max-magnitude}, {modules: "*.layers.[01].*", density: 0.5}]}
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from perdure.errors import ConfigError
from perdure.merging.like import Liked, Tool, rule_like
from perdure.merging.rules import Rule, name_of, rule_named
from perdure.settings.read import Settings, validate
from perdure.settings.yaml_text import read_yaml


class _WithSettings(Settings):
    """Keys that are not fields are settings of a rule."""

    settings: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        known = {key: part for key, part in value.items() if key in cls.model_fields}
        rest = {key: part for key, part in value.items() if key not in cls.model_fields}
        settings = value.get("settings") or {}
        return {**known, "settings": {**settings, **rest} if isinstance(settings, Mapping) else settings}


class Override(_WithSettings):
    """Another rule, or another setting of the same rule, for the modules whose names match a pattern."""

    modules: str
    rule: str | None = None
    like: Tool | None = None

    def chosen(self, rule: Rule) -> Rule:
        """The rule for its modules, given the merge's own; an UnknownName or ConfigError for a bad name or setting."""
        if self.like is not None:
            if self.rule is None:
                raise ConfigError(
                    f"The override '{self.modules}' has `like`, so it must name its rule in {self.like}'s words."
                )
            return rule_like(self.like, self.rule, self.settings).rule
        if self.rule is None or self.rule == name_of(rule):
            return rule_named(name_of(rule), {**rule.model_dump(exclude_unset=True), **self.settings})
        return rule_named(self.rule, self.settings)


def rules_by_module(modules: Iterable[str], rule: Rule, overrides: Sequence[Override]) -> dict[str, Rule]:
    """Module -> its rule: that of the first override whose pattern matches, else the merge's own.

    Modules under one override share one rule object, by which a rule that looks at a whole update (TIES) finds its modules. An
    override that matches no module is a ConfigError.
    """
    chosen = [override.chosen(rule) for override in overrides]
    unused = {i: override.modules for i, override in enumerate(overrides)}
    rules: dict[str, Rule] = {}
    for module in modules:
        place = next((i for i, override in enumerate(overrides) if fnmatchcase(module, override.modules)), -1)
        rules[module] = chosen[place] if place >= 0 else rule
        unused.pop(place, None)
    if unused:
        examples = ", ".join(list(rules)[:3])
        raise ConfigError(
            f"No module matches the override '{next(iter(unused.values()))}'. Modules are called, for example: {examples}."
        )
    return rules


class Source(Settings):
    """One adapter of a merge file."""

    path: str
    weight: float | None = None


class MergeFile(_WithSettings):
    """The content of a merge file."""

    rule: str
    like: Tool | None = None
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

    @field_validator("adapters", mode="before")
    @classmethod
    def _paths(cls, value: Any) -> Any:
        """Turn bare paths into sources."""
        listed = value or []
        return (
            [{"path": item} if isinstance(item, str) else item for item in listed]
            if isinstance(listed, list)
            else value
        )

    def chosen(self) -> Liked:
        """The rule with its settings, and the adapters' weights if any is given; raises as `rule_named` and `rule_like` do."""
        if self.like is not None:
            return rule_like(self.like, self.rule, self.weighted())
        return Liked(rule_named(self.rule, self.weighted()))

    def weighted(self) -> dict[str, Any]:
        """The rule's settings with the adapters' weights, if any is given."""
        weights = [source.weight for source in self.adapters]
        if all(weight is None for weight in weights):
            return self.settings
        if "weights" in self.settings:
            raise ConfigError("Give weights beside the adapters or as a list `weights`, not both.")
        return {**self.settings, "weights": [1.0 if weight is None else weight for weight in weights]}

    def spelt_out(self) -> tuple[Override, ...]:
        """The overrides; in a file with `like`, each with its rule and all settings in that tool's words."""
        if self.like is None:
            return self.overrides
        return tuple(
            override
            if override.like
            else override.model_copy(
                update={
                    "like": self.like,
                    "rule": override.rule or self.rule,
                    "settings": (self.weighted() if override.rule in (None, self.rule) else {}) | override.settings,
                }
            )
            for override in self.overrides
        )


def read_merge_file(path: Path) -> MergeFile:
    """A merge file, its paths relative to its folder.

    Raises:
        ConfigError: no such file, not YAML, or a bad value; each with its place.
    """
    merge = validate(MergeFile, read_yaml(path, "merge"), str(path))
    here = path.parent

    def placed(place: str) -> str:
        return str(here / place) if os.path.exists(here / place) else place

    sources = tuple(Source(path=placed(source.path), weight=source.weight) for source in merge.adapters)
    named = {key: placed(place) for key in ("base", "tasks", "backbone") if (place := getattr(merge, key)) is not None}
    if merge.out is not None:
        named["out"] = str(here / merge.out)
    return merge.model_copy(update={"adapters": sources, **named})

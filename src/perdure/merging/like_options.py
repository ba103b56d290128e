"""What the options of another tool's merge rule give: perdure's rule with its settings, and the rank the tool would write."""

from __future__ import annotations

from typing import Any, Literal

from perdure.merging.rule import Rule
from perdure.settings.read import Settings

Rank = int | Literal["largest"] | None
"""A number, the largest of the adapters' ranks, or None: not cut."""

Ours = tuple[type[Rule], dict[str, Any]]
"""A rule's class and its settings."""


class Options(Settings):
    """The options of one or more rules of a tool."""

    def ours(self, name: str) -> Ours:
        """perdure's rule for the tool's rule `name`; a ConfigError for options that no rule here has."""
        raise NotImplementedError

    def rank(self) -> Rank:
        """The rank that the tool writes."""
        return None

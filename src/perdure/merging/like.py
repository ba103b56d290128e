"""Merge rules by the names, options and defaults of another tool: `perdure merge A B --like peft --rule ties_svd ...`.

A tool's table names for each of its rules the class that holds its options and turns them into perdure's rule. What differs in
meaning is in docs/merging.md; what has no meaning here is refused with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from perdure.errors import ConfigError, UnknownName
from perdure.merging.elsewhere import hint
from perdure.merging.like_mergekit import MERGEKIT
from perdure.merging.like_options import Options, Rank
from perdure.merging.like_peft import PEFT
from perdure.merging.rules import RULES, Rule
from perdure.settings.read import validate

Tool = Literal["peft", "mergekit"]

TOOLS: Mapping[str, Mapping[str, type[Options]]] = {"peft": PEFT, "mergekit": MERGEKIT}

WITHOUT_MEANING: Mapping[str, str] = {
    "weight": "is `weights` here: weights=[0.7, 0.3], one number for each adapter",
    "int8_mask": "saves memory in mergekit and changes no number; leave it out",
    "svd_full_matrices": "changes no number of the result; leave it out",
    "svd_driver": "changes no number of the result; leave it out",
    "svd_clamp": "clips the factors after the merge, which moves the update by an amount nobody chose; it is not here",
    "nuslerp_flatten": "is always true here: angles are between whole matrices; leave it out",
    "nuslerp_row_wise": "is always false here: angles are between whole matrices; leave it out",
    "filter_wise": "is always false here: angles are between whole matrices; leave it out",
    "normalize_weights": "is always true here; leave it out",
    "eps": "guards divisions by 0, which are errors here; leave it out",
}
"""Options of a tool's rule -> why they are not taken."""


@dataclass(frozen=True)
class Liked:
    """perdure's rule for another tool's, and the rank that the tool would write."""

    rule: Rule
    rank: Rank = None


def rule_like(tool: str, name: str, settings: Mapping[str, Any] | None = None) -> Liked:
    """The rule that `tool` calls `name`, with the tool's options and defaults.

    Raises:
        UnknownName: no such tool, or it has no such rule, or none that adapters can have.
        ConfigError: an option it does not have or that has no meaning here, or a bad value.
    """
    if tool not in TOOLS:
        raise UnknownName("tool for --like", tool, TOOLS)
    rules = TOOLS[tool]
    if name not in rules:
        own = f"'{name}' is perdure's own name: leave --like out." if name in (*RULES, "guarded") else None
        raise UnknownName(f"merge rule of {tool}", name, rules, hint=own or hint(name, [*rules]) or "")
    options, given = rules[name], dict(settings or {})
    for option, reason in WITHOUT_MEANING.items():
        if option in given and option not in options.model_fields:
            raise ConfigError(f"{tool}'s option {option} {reason}.")
    given = {"lambda_" if key == "lambda" else key: value for key, value in given.items()}  # a word of Python's own
    chosen = validate(options, given, f"{tool}'s {name}")
    rule, translated = chosen.ours(name)
    return Liked(validate(rule, translated, f"{tool}'s {name}"), chosen.rank())

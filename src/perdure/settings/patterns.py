"""Regular expressions from users, held against names: bounded in length and time, so that none can hang a run."""

from __future__ import annotations

from collections.abc import Iterable

import regex

from perdure.errors import ConfigError

LONGEST = 2000
"""Characters of a pattern."""
SECONDS = 2.0
"""For all names together; real patterns take microseconds."""


def checked_pattern(pattern: str) -> str:
    """The pattern itself; ValueError if it is too long, or not a regular expression."""
    if len(pattern) > LONGEST:
        raise ValueError(f"a regular expression of {len(pattern)} characters; at most {LONGEST} are allowed")
    try:
        regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError) as error:
        raise ValueError(f"'{pattern:.60}' is not a regular expression ({error})") from error
    return pattern


def full_matches(pattern: str, names: Iterable[str], setting: str) -> list[str]:
    """The names that the pattern matches as a whole, as re.fullmatch does.

    Raises:
        ConfigError: it takes longer than `SECONDS`, as nested repetitions such as (a+)+ do; names the `setting`.
    """
    compiled, left = regex.compile(checked_pattern(pattern)), SECONDS
    try:
        return [name for name in names if compiled.fullmatch(name, timeout=left)]
    except TimeoutError as error:
        raise ConfigError(
            f"{setting}: matching the regular expression '{pattern:.60}' takes too long, as nested repetitions do. "
            "Simplify it, or give a list of names."
        ) from error

"""YAML as plain Python values: version 1.2, of limited size, from text or a file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import ScalarNode

from perdure.errors import ConfigError, PerdureError
from perdure.files.parsing import DEEPEST, check_size, read_limited

LONGEST, MOST = 500_000, 100_000
"""How many characters and values a YAML file may hold; aliases (`*name`) make many values out of a few characters."""


class _Constructor(SafeConstructor):
    """YAML 1.2 numbers; what may be a label or a commit (007, 1_000, 12e34, a date) stays a string."""

    def flatten_mapping(self, node: Any) -> Any:
        """As in ruamel, but merge keys (`<<: *name`) must not double a mapping over and over."""
        merged = super().flatten_mapping(node)
        if len(node.value) > MOST:
            raise ValueError(f"more than {MOST:,} values")
        return merged

    def number(self, node: ScalarNode) -> Any:
        if re.fullmatch(r"0|[-+]?[1-9]\d*", node.value):
            return int(node.value)
        if re.fullmatch(r"[-+]?[\d_]*([eE]\d+)?|0.*[xob_].*", node.value):
            return node.value
        return self.construct_yaml_float(node)


for _tag in ("int", "float"):
    _Constructor.add_constructor(f"tag:yaml.org,2002:{_tag}", _Constructor.number)
_Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


def parse_yaml(text: str) -> Any:
    """Parse YAML 1.2 into plain Python values.

    Raises:
        YAMLError: invalid YAML or a duplicate key; names the line.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    try:
        if len(text) > LONGEST:
            raise ValueError(f"longer than {LONGEST:,} characters")
        value = yaml.load(text)
        check_size(value, MOST)
    except RecursionError as error:
        raise YAMLError(f"nested more than {DEEPEST} deep") from error
    except MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise YAMLError(f"{line}{error.problem or error.context}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:  # such as !!int where the value is none
        raise YAMLError(f"{error}") from error
    return value


def read_yaml(path: Path, what: str, error: type[PerdureError] = ConfigError) -> dict[str, Any]:
    """The settings in a YAML file.

    Args:
        what: the kind of file (sweep, task), for error messages.

    Raises:
        error: the file is missing, unreadable, not valid YAML, or not a mapping.
    """
    try:
        if not path.is_file():
            raise error(f"No such {what} file: '{path}'.")
        data = parse_yaml(read_limited(path, 4 * LONGEST))
    except (YAMLError, ValueError) as broken:
        raise error(f"'{path}' is not valid YAML: {broken}. Fix it, or put the string in quotes.") from broken
    except OSError as unread:
        reason = unread.strerror or unread
        raise error(f"Cannot read {what} file '{path}': {reason}. Check the permissions, or give another.") from unread
    if not isinstance(data, dict):
        raise error(f"'{path}' must hold settings as `key: value` lines.")
    return data
